"""The step never waits for a GPU: nothing in it asks on the host for a value that the device computes."""

import re
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.base.config import read_params
from pipeline.networks import network as networks
from pipeline.networks.freezing import set_trainable
from pipeline.networks.network import EmbeddingNetwork
from pipeline.training.optimiser import build_optimiser
from pipeline.training.parts import build_loss
from pipeline.training.step import training_step
from tests.test_trajectories import Maps, Vectors

ROOT = Path(__file__).parent.parent
CLASSES = 9
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
GRIDS = {name: read_params(ROOT / "papers" / name / "params.yaml") for name in ("proxygml", "proxy_an", "comparison")}
RECIPES = [(grid, name, None) for grid in ("proxygml", "proxy_an") for name in GRIDS[grid].recipes]
LOSSES = [("comparison", "cub", name) for name in GRIDS["comparison"].losses]
LOSSES += [("proxygml", "cub", name) for name in ("SML", "SL", "S", "ML", "none")]
WAITING = yaml.safe_load((ROOT / "tests/host_waits.yaml").read_text())["step"]
LOSSES = [case for case in LOSSES if case[2] not in WAITING]  # test_pretended_gpu.py counts how often those wait
pytestmark = pytest.mark.usefixtures("one_thread")


class WaitedError(Exception):
    """Something would wait for a GPU."""


class _Operations(TorchDispatchMode):
    """Operations whose value, or whose result's shape, the host needs."""

    WAIT = re.compile("aten::(_local_scalar_dense|nonzero|is_nonzero|equal|masked_select|_?unique|bincount)")

    def __torch_dispatch__(self, operation, types, arguments=(), settings=None):
        name = operation.name()
        # A mask as an index is turned into numbers first, unless one number is put where it is true.
        indices = arguments[1] if name.startswith("aten::index") and isinstance(arguments[1], list | tuple) else ()
        masked = any(index is not None and index.dtype == torch.bool for index in indices)
        if self.WAIT.match(name) or (masked and not ("put" in name and arguments[2].numel() == 1)):
            raise WaitedError(name)
        return operation(*arguments, **(settings or {}))


class _Copies(TorchFunctionMode):
    """Copies to the host, which on a CPU are nothing and reach no operation."""

    def __torch_function__(self, function, types, arguments=(), settings=None):
        if function in (torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.tolist):
            raise WaitedError(function.__name__)
        return function(*arguments, **(settings or {}))


@contextmanager
def no_waiting():
    """Raise where anything inside would wait for a GPU; where there is one, PyTorch itself looks, too."""
    with ExitStack() as stack:
        if GPU:
            stack.callback(torch.cuda.set_sync_debug_mode, "default")
            torch.cuda.set_sync_debug_mode("error")
        stack.enter_context(_Operations())
        stack.enter_context(_Copies())
        yield


@pytest.mark.parametrize(
    "waits",
    [
        lambda values: values.sum().item(),
        lambda values: values.sum().cpu(),
        lambda values: values.numpy(),
        lambda values: bool(values.sum() > 0),
        lambda values: int(values[0]),
        lambda values: values.tolist(),
        lambda values: values[values > 0],
        lambda values: values.unique(),
        lambda values: torch.where(values > 0),
        lambda values: [1, 2][values.sum().long()],
    ],
)
def test_what_waits_is_noticed(waits):
    with pytest.raises(WaitedError), no_waiting():
        waits(torch.ones(3))


def stepper(grid, recipe_name, loss, backbone, size, monkeypatch, **changes):
    """A function that takes the step of an epoch on a batch of noise."""
    params = GRIDS[grid]
    recipe = params.recipes[recipe_name].model_copy(update={"dimension": 16} | changes)
    if backbone is not None:
        monkeypatch.setattr(networks, "submodule", lambda package, name: SimpleNamespace(Backbone=backbone))
    torch.manual_seed(0)
    network = EmbeddingNetwork(recipe).to(DEVICE)
    loss = loss or ("proxy_an" if grid == "proxy_an" else params.loss_entry("proxy_gml", recipe_name))
    module, settings = params.loss(loss)
    if module == "proxy_gml":
        settings |= {"ratio": 0.4}
    criterion = build_loss(module, settings, CLASSES, recipe.dimension, "test").to(DEVICE)
    optimiser = build_optimiser(recipe, network, criterion)
    pixels = torch.randint(256, (12, 3, size, size), dtype=torch.uint8)
    labels = torch.arange(12) // 3
    if GPU:
        pixels, labels = pixels.pin_memory(), labels.pin_memory()

    def step():
        return training_step(recipe, network, criterion, optimiser, pixels, labels, DEVICE)

    def epoch(number):
        set_trainable(network, recipe, number)
        step()  # what is set up once, such as a mean's copy on the device
        with no_waiting():
            return [step(), step()]

    return epoch


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize(("grid", "recipe", "loss"), RECIPES)
def test_no_recipe_waits_in_a_step(grid, recipe, loss, precision, monkeypatch):
    backbone = Vectors if "deit" in recipe else Maps
    epoch = stepper(grid, recipe, loss, backbone, backbone.size, monkeypatch, precision=precision)
    for number in (1, 2, 3):
        assert all(torch.isfinite(value) for value in epoch(number))


@pytest.mark.parametrize(("grid", "recipe", "loss"), LOSSES)
def test_no_loss_waits_in_a_step(grid, recipe, loss, monkeypatch):
    epoch = stepper(grid, recipe, loss, Maps, Maps.size, monkeypatch)
    assert all(torch.isfinite(value) for value in epoch(1))


@pytest.mark.parametrize(("grid", "recipe"), [("proxygml", "cub"), ("proxy_an", "cub")])
def test_the_papers_networks_do_not_wait(grid, recipe, monkeypatch):
    epoch = stepper(grid, recipe, None, None, 64, monkeypatch)
    assert all(torch.isfinite(value) for value in epoch(3))
