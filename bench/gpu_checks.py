"""The sections of `bench.gpu` that check whether a GPU is right: the CPU's numbers, the same bits twice, resume."""

import contextlib
import gc
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch.nn.functional import normalize

from bench.gpu_parts import (
    CLASSES,
    FULL,
    PAPERS,
    ROOT,
    Line,
    Scale,
    Steps,
    packed_pictures,
    paper_recipe,
    precisions,
)
from bench.native import synthetic
from pipeline.base.config import read_params
from pipeline.engines.places import mps_is_on
from pipeline.health import device
from pipeline.metrics.retrieval import COUNTINGS, nearest, retrieval
from pipeline.networks.network import prepare
from pipeline.training import resident
from pipeline.training.augmentations.random_resized_crop import CROP_DRAWS, boxes
from pipeline.training.images import cropped
from pipeline.training.parts import build_loss

CPU = torch.device("cpu")


def machine(scale: Scale, folder: Path) -> Iterator[Line]:
    """The machine and the software on which everything is measured."""
    for name, version in (("torch", torch.__version__), ("torchvision", torchvision.__version__)):
        yield Line(name, version)
    yield Line("Python", platform.python_version())
    yield Line("cores", len(os.sched_getaffinity(0)))
    if not torch.cuda.is_available():
        yield Line("GPU", "none: everything is measured on the processor")
        return
    from cuda.bindings import nvrtc

    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        shown = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()[0]
        yield Line("driver, clock, power limit", shown)
    properties = torch.cuda.get_device_properties(0)
    yield Line("GPU", properties.name)
    yield Line("capability", f"{properties.major}.{properties.minor}")
    yield Line("memory", properties.total_memory / 1e9, "GB")
    yield Line("CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")
    yield Line("NVRTC", ".".join(map(str, nvrtc.nvrtcVersion()[1:])))
    yield Line("MPS", "on" if mps_is_on() else "off")
    for name, state, found, fix in device.lines(torch.device("cuda")):
        yield Line(f"doctor: {name}", f"{state}, {found}{f': {fix}' if fix else ''}", good=state != "fail")


def apart_by(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, as a share of the largest entry of `wanted`."""
    return ((found.cpu() - wanted.cpu()).abs().max() / wanted.abs().max().clamp_min(1e-30)).item()


def every_loss() -> dict[str, tuple[str, dict[str, Any]]]:
    """Every loss of the papers' and the comparison's grids, each with its settings once: name -> file of
    pipeline/losses, settings."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for grid in (*PAPERS, "comparison"):
        params = read_params(ROOT / "papers" / grid / "params.yaml")
        for name in params.losses:
            if params.loss(name) not in found.values():
                found[f"{grid} {name}"] = params.loss(name)
    return found


def loss_results(module: str, settings: dict[str, Any], device: torch.device) -> list[torch.Tensor]:
    """A loss and its gradients on a device, for the same random embeddings on every device."""
    torch.manual_seed(0)
    criterion = build_loss(module, settings, CLASSES, 512, module).to(device)
    embeddings = normalize(torch.randn(81, 512)).to(device).requires_grad_()
    loss = criterion(embeddings, (torch.arange(81) // 3).to(device))
    loss.backward()
    gradients = [parameter.grad for parameter in criterion.parameters() if parameter.grad is not None]
    assert embeddings.grad is not None
    return [loss.detach(), embeddings.grad, *gradients]


def searches(device: torch.device, counting: str, apart: bool) -> tuple[dict[str, float], torch.Tensor]:
    """All retrieval metrics of made-up embeddings, among themselves or in a gallery apart, and the nearest images."""
    embeddings, labels = (part.to(device) for part in synthetic(600, 20, 20, 1.0))
    queries = slice(0, 250 if apart else 600)
    gallery = {"gallery": embeddings[250:], "gallery_labels": labels[250:]} if apart else {}
    found = retrieval(embeddings[queries], labels[queries], (1, 2, 4, 8), counting=counting, **gallery)
    rows = torch.arange(100, device=device)
    return found, nearest(embeddings[queries], rows, 8, gallery=gallery.get("gallery"))[0].cpu()


def as_on_the_cpu(scale: Scale, folder: Path) -> Iterator[Line]:
    """Crops, every loss, every counting, and each network forward and backward, compared with the CPU in float32."""
    device = prepare(paper_recipe("proxygml", scale), "auto")
    wrong = different_crops(scale, folder, device)
    yield Line(
        "crops that differ in any byte, of 300" if scale is FULL else "crops that differ", wrong, good=wrong == 0
    )
    for counting in COUNTINGS:
        for apart in (False, True) if counting != "drop_first" else (False,):
            (ours, near), (theirs, as_near) = (searches(place, counting, apart) for place in (device, CPU))
            worst = max(abs(ours[metric] - theirs[metric]) for metric in theirs)
            same = torch.equal(near, as_near)
            name = f"retrieval, counting {counting}{', gallery apart' * apart}"
            # Ranks are exact, so only the order in which their scores are added up may differ.
            yield Line(name, worst, "" if same else "and other neighbours", good=worst < 1e-9 and same)
    for name, (module, settings) in every_loss().items():
        worst = max(map(apart_by, loss_results(module, settings, device), loss_results(module, settings, CPU)))
        yield Line(f"{name}, loss and gradients", worst, "of the largest", good=worst < 1e-4)
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
        forward, backward = map(apart_by, *results)
        yield Line(f"{steps.recipe.backbone}, forward", forward, "of the largest", good=forward < 1e-3)
        yield Line(f"{steps.recipe.backbone}, backward", backward, "of the largest", good=backward < 1e-2)


def different_crops(scale: Scale, folder: Path, device: torch.device) -> int:
    """The number of crops of photographs that differ from the CPU's."""
    packed, count = packed_pictures(folder, scale), 300 if scale is FULL else 6
    numbers = list(range(min(count, scale.photographs)))
    kept = resident.ResidentImages(packed, numbers, 3, scale.size, device)
    generator = np.random.default_rng(0)
    rows = generator.integers(len(numbers), size=count)
    decoded = [packed.decoded(number, 3) for number in numbers]
    sizes = np.array([decoded[row].shape[:2] for row in rows])
    found = boxes(sizes, generator.random((count, CROP_DRAWS)), 0.08)
    ours = kept.crop(kept.plan(rows, found))
    theirs = [cropped(decoded[row], box, scale.size) for row, box in zip(rows, found, strict=True)]
    return int((ours.cpu() != torch.stack(theirs)).flatten(1).any(1).sum())


def same_bits(scale: Scale, folder: Path) -> Iterator[Line]:
    """Both papers' steps, twice and with graphs, in every precision."""
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


def graphs_without_memory(scale: Scale, folder: Path) -> Iterator[Line]:
    """A graph that does not fit into memory: it must fail as it should. And 20 more steps in the process that it failed
    in, which a run would end."""
    if not torch.cuda.is_available():
        yield Line("graphs", "a GPU's alone")
        return
    total = torch.cuda.get_device_properties(0).total_memory
    for paper in PAPERS:
        torch.cuda.reset_peak_memory_stats()
        expected = Steps(paper, scale).hash_after(20)
        step = torch.cuda.max_memory_allocated()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, 1.3 * step / total))
        short = Steps(paper, scale, graphs=True)
        found = "; ".join(short.graphed.found.values())
        yield Line(f"{paper}, memory for 1.3 steps", found, good="out of memory" in found)
        try:
            after = "equal" if short.hash_after(20) == expected else "differ"
        except RuntimeError as error:
            after = str(error).splitlines()[0]
        yield Line(f"{paper}, 20 more steps in the same process", after)
        del short
        torch.cuda.set_per_process_memory_fraction(1.0)
        gc.collect()
        torch.cuda.empty_cache()


RUN: dict[str, Callable[[Scale, Path], Iterator[Line]]] = {
    "graphs": graphs_without_memory,
    "machine": machine,
    "as on the CPU": as_on_the_cpu,
    "same bits": same_bits,
}
