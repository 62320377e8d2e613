"""The sections of `bench.gpu`: each yields its lines as they are measured."""

import contextlib
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
import yaml
from torch.nn.functional import normalize

from bench.gpu_parts import (
    CLASSES,
    FULL,
    PAPERS,
    PRECISIONS,
    ROOT,
    TINY,
    Line,
    Scale,
    Steps,
    packed_pictures,
    paper_recipe,
    seconds_a_call,
    undetermined,
    wait,
)
from bench.retrieval import SIZES, synthetic
from pipeline.data.manifests import Row, write_manifests
from pipeline.engines.places import mps_is_on
from pipeline.losses import proxy_an, proxy_anchor, proxy_gml, proxy_nca
from pipeline.metrics.retrieval import recall_at_k, retrieval
from pipeline.networks.network import prepare
from pipeline.training import resident
from pipeline.training.batches import Shuffled
from pipeline.training.images import CROP_DRAWS, boxes, cropped
from pipeline.training.loading import CroppedImages, training_batches

__all__ = ["FULL", "RUN", "TINY"]

CPU = torch.device("cpu")

MODEL = {
    # Of an H100, counted: docs/gpu.md.
    ("proxygml", "float32", False): (2300, 3100),
    ("proxygml", "tf32", False): (4000, 5500),
    ("proxygml", "bfloat16", False): (3500, 5000),
    ("proxygml", "float32", True): (2300, 3400),
    ("proxygml", "tf32", True): (4800, 6300),
    ("proxygml", "bfloat16", True): (7000, 12500),
    ("proxy_an", "float32", False): (1250, 1500),
    ("proxy_an", "tf32", False): (2100, 2900),
    ("proxy_an", "bfloat16", False): (4500, 5900),
    ("proxy_an", "float32", True): (1250, 1500),
    ("proxy_an", "tf32", True): (2100, 2900),
    ("proxy_an", "bfloat16", True): (4500, 5900),
}
"""Images/s of a paper's step by precision, and whether it is a graph."""


def expected(*case: Any) -> tuple[float, float] | None:
    """What the model says of this card: it knows one."""
    return MODEL.get(case) if torch.cuda.is_available() and "H100" in torch.cuda.get_device_name() else None


def machine(scale: Scale, folder: Path) -> Iterator[Line]:
    """What is measured on."""
    for name, version in (("torch", torch.__version__), ("torchvision", torchvision.__version__)):
        yield Line(name, version)
    yield Line("Python", platform.python_version())
    yield Line("cores", len(os.sched_getaffinity(0)))
    if not torch.cuda.is_available():
        yield Line("GPU", "none: all of this is measured on the processor")
        return
    import triton

    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        shown = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()[0]
        yield Line("driver, clock, power limit", shown)
    properties = torch.cuda.get_device_properties(0)
    yield Line("GPU", properties.name)
    yield Line("capability", f"{properties.major}.{properties.minor}")
    yield Line("memory", properties.total_memory / 1e9, "GB")
    yield Line("CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")
    yield Line("triton", triton.__version__)
    yield Line("MPS", "on" if mps_is_on() else "off")


def precisions() -> tuple[str, ...]:
    """Those that are measured: on a processor without bfloat16's instructions a step in it takes minutes."""
    return PRECISIONS if torch.cuda.is_available() else PRECISIONS[:1]


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, in shares of the largest entry."""
    return ((found.cpu() - wanted.cpu()).abs().max() / wanted.abs().max().clamp_min(1e-30)).item()


def loss_results(kind: Callable[[], torch.nn.Module], device: torch.device) -> list[torch.Tensor]:
    """A loss and its gradients, of the same drawn embeddings on every device."""
    torch.manual_seed(0)
    criterion = kind().to(device)
    embeddings = normalize(torch.randn(81, 512)).to(device).requires_grad_()
    loss = criterion(embeddings, (torch.arange(81) // 3).to(device))
    loss.backward()
    gradient = criterion.get_parameter("proxies").grad
    assert embeddings.grad is not None and gradient is not None
    return [loss.detach(), embeddings.grad, gradient]


LOSSES: dict[str, Callable[[], torch.nn.Module]] = {
    "proxy_gml": lambda: proxy_gml.Loss(CLASSES, 512, proxies_per_class=12, ratio=0.05, regulariser_weight=0.3),
    "proxy_an": lambda: proxy_an.Loss(CLASSES, 512, alpha=32.0, margin=0.1),
    "proxy_anchor": lambda: proxy_anchor.Loss(CLASSES, 512, alpha=32.0, margin=0.1),
    "proxy_nca": lambda: proxy_nca.Loss(CLASSES, 512),
}


def as_on_the_cpu(scale: Scale, folder: Path) -> Iterator[Line]:
    """Every loss, the metrics, each network forward and backward, and crops, against the CPU in float32."""
    device = prepare(paper_recipe("proxygml", scale), "auto")
    for name, kind in LOSSES.items():
        worst = max(map(apart, loss_results(kind, device), loss_results(kind, CPU)))
        yield Line(f"{name}, loss and gradients", worst, "of the largest", good=worst < 1e-4)
    embeddings, labels = synthetic(600, 20, 20, 1.0)
    both = [retrieval(embeddings.to(place), labels.to(place), (1, 2, 4, 8)) for place in (device, CPU)]
    worst = max(abs(both[0][metric] - both[1][metric]) for metric in both[1])
    yield Line("retrieval, all metrics", worst, good=worst < 2e-3)
    for paper in PAPERS:
        batch = min(scale.batch or 12, 12)
        small = Scale(**vars(scale) | {"batch": batch})
        results = []
        for place in (device.type, "cpu"):
            steps = Steps(paper, small, place, clip_value=None)
            steps.network.eval()
            torch.manual_seed(1)
            images, weights = torch.randn(batch, 3, scale.size, scale.size), torch.randn(batch, steps.recipe.dimension)
            embedded = steps.network(images.to(steps.device))
            (embedded * weights.to(steps.device)).sum().backward()
            gradients = [parameter.grad for parameter in steps.network.parameters() if parameter.grad is not None]
            results.append([embedded.detach(), torch.cat([gradient.flatten() for gradient in gradients])])
        forward, backward = map(apart, *results)
        yield Line(f"{steps.recipe.backbone}, forward", forward, "of the largest", good=forward < 1e-3)
        yield Line(f"{steps.recipe.backbone}, backward", backward, "of the largest", good=backward < 1e-2)
    wrong = different_crops(scale, folder, device)
    yield Line(
        "crops that differ in any byte, of 300" if scale is FULL else "crops that differ", wrong, good=wrong == 0
    )


def different_crops(scale: Scale, folder: Path, device: torch.device) -> int:
    """How many crops of photographs differ from the CPU's."""
    packed, count = packed_pictures(folder, scale), 300 if scale is FULL else 6
    numbers = list(range(min(count, scale.photographs)))
    kept = resident.ResidentImages(packed, numbers, 3, scale.size, device)
    generator = np.random.default_rng(0)
    rows = generator.integers(len(numbers), size=count)
    decoded = [packed.decoded(number, 3) for number in numbers]
    sizes = np.array([decoded[row].shape[:2] for row in rows])
    found, flips = boxes(sizes, generator.random((count, CROP_DRAWS)), 0.08), generator.random(count) < 0.5
    ours, _ = kept.crop((kept.plan(rows, found, flips), torch.zeros(count)))
    theirs = [
        cropped(decoded[row], box, scale.size, flip) for row, box, flip in zip(rows, found, flips, strict=True)
    ]  # fmt: skip
    return int((ours.cpu() != torch.stack(theirs)).flatten(1).any(1).sum())


def same_bits(scale: Scale, folder: Path) -> Iterator[Line]:
    """Both papers' steps twice, and with graphs, in every precision."""
    for paper in PAPERS:
        for precision in precisions():
            hashes = {Steps(paper, scale, precision=precision).hash_after(3) for _ in range(2)}
            yield Line(f"{paper}, {precision}, twice", "equal" if len(hashes) == 1 else "differ", good=len(hashes) == 1)
            if not torch.cuda.is_available():
                continue
            graphed = Steps(paper, scale, graphs=True, precision=precision)
            found = next(iter(graphed.graphed.found.values()))
            same = {graphed.hash_after(3)} == hashes
            yield Line(f"{paper}, {precision}, graphs", f"{found}; {'equal' if same else 'differ'}", good=same)


def resume(scale: Scale, folder: Path) -> Iterator[Line]:
    """A run that is killed in its last epoch, and one that is told to stop, against an undisturbed one."""
    packed = packed_pictures(folder, scale)
    place, epochs = folder / "resume", 3
    (place / "data/splits").mkdir(parents=True)
    (place / "data/packed").mkdir()
    shutil.copytree(packed.folder, place / "data/packed/cub")
    rows = [Row(entry.image, entry.label, entry.name) for entry in packed.entries]
    write_manifests(
        place / "data/splits/cub", {"train": rows, "test": rows}, [place / "data/packed/cub/index.csv"]
    )  # fmt: skip
    changes: dict[str, Any] = {
        "epochs": epochs,
        "evaluated_epochs": epochs,
        "decay_epochs": [2],
        "head_only_epochs": [1],
    }
    recipe = paper_recipe("proxygml", scale, **changes).model_dump(mode="json")
    content = {"tables": {}, "machine": {"device": "auto", "workers": 0}, "recipes": {"cub": recipe}}
    settings = {"alpha": 32.0, "margin": 0.1}
    (place / "params.yaml").write_text(yaml.safe_dump(content | {"losses": {"proxy_an": settings}}))
    command = [sys.executable, "-m", "pipeline.train", "--dataset", "cub", "--loss", "proxy_an", "--seed", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = (place / "log").open("w")

    def start(out: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, "--out", out], cwd=place, env=environment, stdout=log, stderr=log)

    def files(out: str) -> dict[str, bytes]:
        if start(out).wait():
            raise RuntimeError((place / "log").read_text()[-1000:])
        found = {path.name: path.read_bytes() for path in (place / out).iterdir() if path.name != "made.json"}
        shutil.rmtree(place / "data/store")
        return found

    undisturbed = files("undisturbed")
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = start(number.name)
        while process.poll() is None and not list(place.glob("data/store/*.checkpoint")):
            time.sleep(0.02)
        process.send_signal(number)
        process.wait()
        came = bool(list(place.glob("data/store/*.checkpoint")))
        same = files(number.name) == undisturbed
        yield Line(f"{number.name}, then on", "same bytes" if same else "other bytes", good=same and came)


def speed(scale: Scale, folder: Path) -> Iterator[Line]:
    """Images/s of both papers' steps on one resident batch."""
    for paper in PAPERS:
        for precision in precisions():
            for graphs in (False, True) if torch.cuda.is_available() else (False,):
                steps = Steps(paper, scale, graphs=graphs, precision=precision)
                for determined in (True, False):
                    # A graph holds what was chosen when it was captured.
                    if graphs and not determined:
                        continue
                    with contextlib.nullcontext() if determined else undetermined():
                        took = seconds_a_call(steps.step, steps.device, scale.seconds)
                    name = f"{paper}, {precision}{', graphs' * graphs}{', not deterministic' * (not determined)}"
                    rate = steps.recipe.batch_size / took
                    yield Line(name, rate, "images/s", expected(paper, precision, graphs) if determined else None)
                del steps


def _sharer(
    paper: str, scale: Scale, precision: str, cores: set[int], variables: dict[str, str], start: Any, rates: Any
) -> None:
    """One of several runs that share a GPU."""
    os.environ |= variables
    os.sched_setaffinity(0, cores)
    steps = Steps(paper, scale, graphs=True, precision=precision)
    steps.step()
    wait(steps.device)
    start.wait()
    rates.put(steps.recipe.batch_size / seconds_a_call(steps.step, steps.device, scale.seconds))


def together(paper: str, scale: Scale, precision: str, count: int, variables: dict[str, str]) -> float:
    """Images/s of several runs at once, all together."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.gpu_sections"])
    start, rates = context.Barrier(count), context.Queue()
    cores = sorted(os.sched_getaffinity(0))
    shares = [set(cores[turn::count]) or set(cores) for turn in range(count)]
    words = [(paper, scale, precision, share, variables, start, rates) for share in shares]
    runs = [context.Process(target=_sharer, args=given) for given in words]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    if any(run.exitcode for run in runs):
        raise RuntimeError(f"{count} runs at once: exit codes {[run.exitcode for run in runs]}")
    return float(sum(rates.get() for _ in runs))


@contextlib.contextmanager
def own_mps(folder: Path) -> Iterator[dict[str, str]]:
    """The variables of processes that share a GPU by a Multi-Process Service of our own, which ends with the block."""
    pipes = folder / "mps"
    pipes.mkdir()
    variables = {"CUDA_MPS_PIPE_DIRECTORY": str(pipes), "CUDA_MPS_LOG_DIRECTORY": str(pipes)}
    command = ["nvidia-cuda-mps-control"]
    subprocess.run([*command, "-d"], env=os.environ | variables, check=True, timeout=10)
    try:
        yield variables
    finally:
        subprocess.run(command, input="quit\n", text=True, env=os.environ | variables, timeout=20)


def shared(scale: Scale, folder: Path) -> Iterator[Line]:
    """1, 2 and 3 runs of BN-Inception at once, with and without MPS."""
    cases = [(count, precision) for precision in ("float32", "bfloat16") for count in (1, 2, 3)]
    if not torch.cuda.is_available():
        cases = [(2, "float32")]
    for count, precision in cases:
        rate = together("proxygml", scale, precision, count, {})
        yield Line(f"proxygml, {precision}, {count} at once", rate, "images/s")
    if not torch.cuda.is_available() or shutil.which("nvidia-cuda-mps-control") is None or mps_is_on():
        state = "on already: all of the above" if torch.cuda.is_available() and mps_is_on() else "not here"
        yield Line("MPS", state)
        return
    with own_mps(folder) as variables:
        for count, precision in cases:
            rate = together("proxygml", scale, precision, count, variables)
            yield Line(f"proxygml, {precision}, {count} at once, MPS", rate, "images/s")


def loop(scale: Scale, folder: Path) -> Iterator[Line]:
    """The whole loop as it trains, images resident or loaded, as a share of the steps on one resident batch."""
    packed = packed_pictures(folder, scale)
    labels = torch.arange(scale.pictures) % min(CLASSES, scale.pictures // 3)
    on_gpu = torch.cuda.is_available()
    for paper in PAPERS:
        for precision in precisions():
            steps = Steps(paper, scale, graphs=True, precision=precision)
            alone = seconds_a_call(steps.step, steps.device, scale.seconds)
            for device in (steps.device, CPU) if on_gpu else (CPU,):
                size = steps.recipe.batch_size
                images = CroppedImages(packed, range(scale.pictures), labels, 3, steps.recipe, 0, device)
                batches = Shuffled(scale.pictures // size * size, size, 0)
                workers = min(8, len(os.sched_getaffinity(0))) if on_gpu else 0
                loaded = iter(training_batches(images, batches, range(1, 10**6), workers, pin=on_gpu))

                def step(steps: Steps = steps, loaded: Any = loaded) -> None:
                    steps.step(next(loaded))

                took = seconds_a_call(step, steps.device, scale.seconds)
                where = "resident" if images.resident is not None else f"loader, {workers} processes"
                yield Line(f"{paper}, {precision}, {where}", size / took, "images/s")
                share = 100 * alone / took
                yield Line(f"{paper}, {precision}, {where}: of the resident batch's", share, "%")
                loaded.close()
            del steps


def memory(scale: Scale, folder: Path) -> Iterator[Line]:
    """The most memory that PyTorch took for a step, graphs included, and keeps."""
    if not torch.cuda.is_available():
        yield Line("peak", "a GPU's alone")
        return
    for paper in PAPERS:
        for precision in PRECISIONS:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            steps = Steps(paper, scale, precision=precision)
            steps.step()
            yield Line(f"{paper}, {precision}", torch.cuda.max_memory_allocated() / 1e9, "GB")
            del steps


def evaluation(scale: Scale, folder: Path) -> Iterator[Line]:
    """All retrieval metrics, and Recall@K alone, at datasets' sizes."""
    device = prepare(paper_recipe("proxygml", scale), "auto")
    for name, images in scale.retrieved.items():
        _, _, classes, least, spread, ks = SIZES[name]
        classes = min(classes, images // least)
        embeddings, labels = (part.to(device) for part in synthetic(images, classes, least, spread))
        chosen = [k for k in ks if k < images]
        ways: dict[str, Callable[..., Any]] = {"all metrics": retrieval, "Recall@K": recall_at_k}
        for way, function in ways.items():
            took = seconds_a_call(partial(function, embeddings, labels, chosen), device, scale.seconds / 10, 1)
            yield Line(f"{name}, {images:,} images, {way}", took, "s")


def losses(scale: Scale, folder: Path) -> Iterator[Line]:
    """Each loss, forward and backward, against the product that it needs."""
    device = prepare(paper_recipe("proxygml", scale), "auto")
    for name, kind in LOSSES.items():
        torch.manual_seed(0)
        criterion = kind().to(device)
        embeddings = normalize(torch.randn(81, 512)).to(device).requires_grad_()
        labels = (torch.arange(81) // 3).to(device)
        proxies = criterion.get_parameter("proxies").detach().reshape(-1, 512).clone().requires_grad_()
        gradient = torch.randn(81, len(proxies), device=device)

        def loss(
            criterion: Any = criterion, embeddings: torch.Tensor = embeddings, labels: torch.Tensor = labels
        ) -> None:
            criterion(embeddings, labels).backward()

        def floor(
            embeddings: torch.Tensor = embeddings, proxies: torch.Tensor = proxies, gradient: torch.Tensor = gradient
        ) -> None:
            (embeddings @ normalize(proxies).T).backward(gradient)

        times = [seconds_a_call(call, device, scale.seconds / 2) for call in (loss, floor)]
        yield Line(f"{name}, of its floor", times[0] / times[1], "times")


RUN: dict[str, Callable[[Scale, Path], Iterator[Line]]] = {
    "machine": machine,
    "as on the CPU": as_on_the_cpu,
    "same bits": same_bits,
    "resume": resume,
    "speed": speed,
    "shared": shared,
    "loop": loop,
    "memory": memory,
    "evaluation": evaluation,
    "losses": losses,
}
