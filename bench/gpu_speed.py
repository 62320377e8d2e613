"""The sections of `bench.gpu` that measure how fast a GPU is, and how much memory it takes."""

import contextlib
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from bench.gpu_parts import (
    CLASSES,
    LOSSES,
    PAPERS,
    PRECISIONS,
    Busy,
    Line,
    Scale,
    Steps,
    expected,
    packed_pictures,
    paper_recipe,
    precisions,
    seconds_a_call,
    undetermined,
    wait,
)
from bench.native import SIZES, synthetic
from pipeline.engines.places import mps_is_on
from pipeline.metrics.retrieval import recall_at_k, retrieval
from pipeline.networks.network import prepare
from pipeline.training.batches import Shuffled
from pipeline.training.loading import training_batches, training_images
from pipeline.training.memory import Memory

CPU = torch.device("cpu")


def speed(scale: Scale, folder: Path) -> Iterator[Line]:
    """Images/s of both papers' steps on one resident batch."""
    for paper in PAPERS:
        for precision in precisions():
            for graphs in (False, True) if torch.cuda.is_available() else (False,):
                steps = Steps(paper, scale, graphs=graphs, precision=precision)
                for determined in (True, False):
                    # A graph keeps the algorithms that were chosen when it was captured.
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
    """The main function of one of several runs that share a GPU."""
    os.environ |= variables
    os.sched_setaffinity(0, cores)
    steps = Steps(paper, scale, graphs=True, precision=precision)
    steps.step()
    wait(steps.device)
    start.wait()
    rates.put(steps.recipe.batch_size / seconds_a_call(steps.step, steps.device, scale.seconds))


def together(paper: str, scale: Scale, precision: str, count: int, variables: dict[str, str]) -> float:
    """Images/s of several runs at the same time, in total."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.gpu_speed"])
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
    """Start our own Multi-Process Service, which ends with the block. Yields the environment variables for processes
    that share a GPU by this service."""
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
    """1, 2 and 3 runs of BN-Inception at the same time, with and without MPS."""
    cases = [(count, "bfloat16") for count in (1, 2, 3)]
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
    """The whole training loop, with resident or loaded images, and its speed as a share of the steps on one resident
    batch."""
    packed = packed_pictures(folder, scale)
    labels = torch.arange(scale.pictures) % min(CLASSES, scale.pictures // 3)
    on_gpu = torch.cuda.is_available()
    for paper in PAPERS:
        for precision in precisions():
            steps = Steps(paper, scale, graphs=True, precision=precision)
            alone = seconds_a_call(steps.step, steps.device, scale.seconds)
            for device in (steps.device, CPU) if on_gpu else (CPU,):
                size = steps.recipe.batch_size
                images = training_images(packed, range(scale.pictures), labels, 3, steps.recipe, 0, Memory(device))
                batches = Shuffled(scale.pictures // size * size, size, 0)
                workers = min(8, len(os.sched_getaffinity(0))) if on_gpu else 0
                loaded = iter(training_batches(images, batches, range(1, 10**6), workers, steps.device))

                def step(steps: Steps = steps, loaded: Any = loaded) -> None:
                    steps.step(next(loaded))

                with Busy() as busy:
                    took = seconds_a_call(step, steps.device, scale.seconds)
                where = "resident" if images.resident is not None else f"loader, {workers} processes"
                yield Line(f"{paper}, {precision}, {where}", size / took, "images/s")
                share = 100 * alone / took
                yield Line(f"{paper}, {precision}, {where}: share of the resident batch's speed", share, "%")
                if busy.percent is not None:
                    yield Line(f"{paper}, {precision}, {where}: time that the GPU was busy", busy.percent, "%")
                loaded.close()
            del steps


def memory(scale: Scale, folder: Path) -> Iterator[Line]:
    """The most memory that PyTorch allocates for a step."""
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
    """All retrieval metrics, and only Recall@K, at the sizes of datasets."""
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
    """The time of each loss, forward and backward, as a multiple of the product that it needs."""
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
        yield Line(f"{name}, relative to its floor", times[0] / times[1], "times")


RUN: dict[str, Callable[[Scale, Path], Iterator[Line]]] = {
    "speed": speed,
    "shared": shared,
    "loop": loop,
    "memory": memory,
    "evaluation": evaluation,
    "losses": losses,
}
