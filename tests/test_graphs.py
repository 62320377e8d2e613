"""CUDA graphs: used only where they give the same bits, and then a run is the same to the byte. On a CPU a stand-in
with a graph's habits takes their place: fixed memory for input, output and gradients, and a moved batch norm."""

import contextlib
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline import train
from pipeline.base.config import read_params
from pipeline.engines import local
from pipeline.engines.local import Pool, Slot
from pipeline.engines.places import Place
from pipeline.networks import network as networks
from pipeline.networks.freezing import set_trainable
from pipeline.networks.network import EmbeddingNetwork
from pipeline.training import graphs
from pipeline.training.embedding import embed
from pipeline.training.graphs import GraphedNetwork, GraphsFailedError
from pipeline.training.optimiser import build_optimiser
from pipeline.training.parts import build_loss
from pipeline.training.step import training_step
from pipeline.work import job
from tests.test_trajectories import Maps

PAPERS = Path(__file__).parent.parent / "papers"
GRIDS = {name: read_params(PAPERS / name / "params.yaml") for name in ("proxygml", "proxy_an", "comparison")}
CASES = [
    ("proxygml", "proxy_gml_cub"),
    ("proxy_an", "proxy_an"),
    ("comparison", "margin"),
    ("comparison", "soft_triple"),
]
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
CLASSES, BATCH = 6, 12
pytestmark = pytest.mark.usefixtures("one_thread", "deterministic")


@pytest.fixture
def deterministic():
    """Bytes are compared, so algorithms are chosen as in a run."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_deterministic_debug_mode(before)


def stand_in(network, images, off=0.0):
    """What `graphs.capture` gives, on a CPU: one input, one output and one gradient of each parameter, reused."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    given, gradients = images.clone(), [torch.empty_like(parameter) for parameter in parameters]
    held = {}

    class Graphed(torch.autograd.Function):
        @staticmethod
        def forward(context, images, *parameters):
            assert images.shape == given.shape, "a graph takes one shape"
            given.copy_(images)
            with torch.enable_grad():
                held["found"] = network(given)
            held.setdefault("out", torch.empty_like(held["found"])).copy_(held["found"].detach())
            return held["out"].detach()

        @staticmethod
        def backward(context, gradient):
            for own, found in zip(gradients, torch.autograd.grad(held["found"], parameters, gradient), strict=True):
                own.copy_(found + off)
            return None, *(own.detach() for own in gradients)

    return lambda images: Graphed.apply(images, *parameters)


class Run:
    """A short run: its epochs freeze and thaw, and end with a smaller batch."""

    def __init__(self, grid, loss, wanted, monkeypatch, backbone=Maps, size=Maps.size, **changes):
        params = GRIDS[grid]
        self.recipe = params.recipes["cub"].model_copy(update={"dimension": 16} | changes)
        if backbone is not None:
            monkeypatch.setattr(networks, "submodule", lambda package, name: SimpleNamespace(Backbone=backbone))
        torch.manual_seed(0)
        self.network = EmbeddingNetwork(self.recipe).to(DEVICE)
        module, settings = params.loss(loss)
        if module == "proxy_gml":
            settings |= {"ratio": 0.4}
        self.criterion = build_loss(module, settings, CLASSES, 16, "test").to(DEVICE)
        self.optimiser = build_optimiser(self.recipe, self.network, self.criterion)
        trained = (self.network, self.criterion, self.optimiser)
        self.graphed = GraphedNetwork(self.recipe, *trained, DEVICE, wanted=wanted)
        generator = torch.Generator().manual_seed(1)
        shape = (4, BATCH, 3, size, size)
        self.batches = list(torch.randint(256, shape, dtype=torch.uint8, generator=generator))
        self.batches.append(self.batches[0][:6])

    def epochs(self, count=4):
        losses = []
        for epoch in range(1, count + 1):
            set_trainable(self.network, self.recipe, epoch)
            for step, pixels in enumerate(self.batches):
                labels = torch.arange(len(pixels)) // 2
                if step == 0:
                    self.graphed.begin(epoch, pixels, labels)
                losses.append(
                    training_step(self.recipe, self.graphed, self.criterion, self.optimiser, pixels, labels, DEVICE)
                )
            losses.append(embed(self.network, self.batches[1], self.recipe, DEVICE).sum())
        return graphs._bytes([losses, self.graphed._state()])


@pytest.mark.parametrize("capture", [stand_in] if not GPU else [graphs.capture])
@pytest.mark.parametrize("batch_norm", ["trained", "fixed_statistics"])
@pytest.mark.parametrize(("grid", "loss"), CASES)
def test_a_run_with_graphs_is_the_same_to_the_byte(grid, loss, batch_norm, capture, monkeypatch):
    changes = {"batch_norm": batch_norm, "precision": "float32"}
    expected = Run(grid, loss, False, monkeypatch, **changes).epochs()
    monkeypatch.setattr(graphs, "capture", capture)
    run = Run(grid, loss, True, monkeypatch, **changes)
    assert run.epochs() == expected
    alone = [epoch in run.recipe.head_only_epochs for epoch in range(1, 5)]
    phases = [1, *(epoch for epoch in (2, 3, 4) if alone[epoch - 1] != alone[epoch - 2])]
    assert run.graphed.found == {f"from epoch {epoch}": "used: the same bits" for epoch in phases}


@pytest.mark.parametrize("off", [1e-9, float("nan")])
def test_a_graph_that_gives_other_bits_is_not_used(off, monkeypatch):
    monkeypatch.setattr(graphs, "capture", lambda network, images: stand_in(network, images, off))
    run = Run("proxy_an", "proxy_an", True, monkeypatch)
    with pytest.raises(GraphsFailedError, match=r"^from epoch 1: they gave other bits$"):
        run.epochs()
    assert not run.graphed.in_use


def test_a_graph_that_cannot_be_captured_is_not_used(monkeypatch):
    def fails(network, images):
        network(images)  # moves running statistics
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "capture", fails)
    run = Run("proxygml", "proxy_gml_cub", True, monkeypatch, batch_norm="trained")
    with pytest.raises(GraphsFailedError, match=r"^from epoch 1: .*operation not permitted when stream is capturing$"):
        run.epochs()


def test_without_the_copy_gradients_would_count_twice(monkeypatch):
    """The check notices it: what the stand-in is for."""
    monkeypatch.setattr(graphs, "capture", stand_in)
    monkeypatch.setattr(GraphedNetwork, "_own_gradients", lambda self: None)
    run = Run("proxygml", "proxy_gml_cub", True, monkeypatch)
    with pytest.raises(GraphsFailedError, match="other bits") if not GPU else contextlib.nullcontext():
        run.epochs(1)


def test_what_pytorchs_function_leaves_behind_is_put_back(monkeypatch):
    """On a CPU by a stand-in that moves statistics, overwrites its sample and puts a `forward` into the module."""
    asked = []

    def make(network, arguments, num_warmup_iters=3, allow_unused_input=False, capture_error_mode="global"):
        asked.append(capture_error_mode)
        for _ in range(num_warmup_iters):
            network(*arguments)
        arguments[0].zero_()
        network.forward = lambda images: "graphed"
        return network

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
    run = Run("proxy_an", "proxy_an", False, monkeypatch, batch_norm="trained")
    set_trainable(run.network, run.recipe, 3)
    before = graphs._bytes(run.network.state_dict())
    images = torch.ones(BATCH, 3, Maps.size, Maps.size, device=DEVICE)
    assert graphs.capture(run.network, images)(images) == "graphed"
    assert graphs._bytes(run.network.state_dict()) == before
    assert run.network(images).shape == (BATCH, 16) and bool((images == 1).all())
    assert asked == ["thread_local"]


def test_an_older_pytorch_does_not_capture_while_batches_are_pinned(monkeypatch):
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda network, arguments, allow_unused_input: network)
    network, images, done = nn.Linear(2, 2), torch.ones(1, 2), threading.Event()
    assert torch.equal(graphs.capture(network, images)(images), network(images))

    def _pin_memory_loop():
        done.wait()

    thread = threading.Thread(target=_pin_memory_loop)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="cannot capture graphs while loader processes work"):
            graphs.capture(network, images)
    finally:
        done.set()
        thread.join()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize(("grid", "loss"), CASES[:2])
def test_the_papers_networks_with_graphs_are_the_same_to_the_byte(grid, loss, precision, monkeypatch):
    changes = {"backbone": None, "size": 224, "precision": precision}
    expected = Run(grid, loss, False, monkeypatch, **changes).epochs(3)
    run = Run(grid, loss, True, monkeypatch, **changes)
    assert run.epochs(3) == expected
    assert set(run.graphed.found.values()) == {"used: the same bits"}


@pytest.mark.gpu
def test_a_capture_leaves_the_network_as_it_was(monkeypatch):
    run = Run("proxy_an", "proxy_an", True, monkeypatch, batch_norm="trained")
    set_trainable(run.network, run.recipe, 3)
    before = graphs._bytes(run.network.state_dict())
    images = torch.randn(BATCH, 3, Maps.size, Maps.size, device=DEVICE)
    graphed = graphs.capture(run.network, images)
    assert graphs._bytes(run.network.state_dict()) == before and "forward" not in vars(run.network)
    run.network.eval()
    assert torch.equal(graphed(images), run.network(images)), "evaluation falls back by itself"
    assert isinstance(run.network, nn.Module) and len(run.network(images[:3])) == 3


def test_a_run_by_hand_goes_on_without_graphs_in_a_new_process(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(PAPERS.parent)
    monkeypatch.setattr(train, "training_key", lambda run, device: SimpleNamespace(digest="a" * 64))
    words = ["--dataset", "glyphs", "--loss", "proxy_an", "--seed", "0", "--out", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["train", *words])
    asked = []

    def fails(job, key, make):
        raise GraphsFailedError("from epoch 1: CUDA out of memory")

    def replaced(program, command):
        asked.append(command)
        raise SystemExit

    monkeypatch.setattr(job, "do", fails)
    monkeypatch.setattr("os.execv", replaced)
    with pytest.raises(SystemExit):
        train.main()
    assert asked == [[sys.executable, "-m", "pipeline.train", *words]]
    assert "CUDA graphs failed from epoch 1: CUDA out of memory: the run goes on without" in capsys.readouterr().err


def test_a_pool_starts_a_run_again_whose_graphs_failed():
    pool, run = Pool.__new__(Pool), SimpleNamespace(place="run")
    pool.progress = SimpleNamespace(frees=lambda *words: None)
    slot = Slot(0, Place(), run, SimpleNamespace(exitcode=job.GRAPHS_FAILED, join=lambda: None))
    slot.new_lines = lambda to_the_end: []
    assert local.GRAPHS_FAILED == job.GRAPHS_FAILED
    assert pool._look(slot) == [run] and slot.run is None
