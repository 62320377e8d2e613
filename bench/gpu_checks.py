"""The sections of `bench.gpu` that check whether a GPU is right: the CPU's numbers, the same bits twice, resume."""

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
import yaml
from torch.nn.functional import normalize

from bench.gpu_parts import (
    FULL,
    LOSSES,
    PAPERS,
    ROOT,
    Line,
    Scale,
    Steps,
    packed_pictures,
    paper_recipe,
    precisions,
)
from bench.retrieval import synthetic
from pipeline.data.manifests import Row, write_manifests
from pipeline.engines.places import mps_is_on
from pipeline.metrics.retrieval import retrieval
from pipeline.networks.network import prepare
from pipeline.training import resident
from pipeline.training.images import CROP_DRAWS, boxes, cropped

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


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, as a share of the largest entry of `wanted`."""
    return ((found.cpu() - wanted.cpu()).abs().max() / wanted.abs().max().clamp_min(1e-30)).item()


def loss_results(kind: Callable[[], torch.nn.Module], device: torch.device) -> list[torch.Tensor]:
    """A loss and its gradients on a device, for the same random embeddings on every device."""
    torch.manual_seed(0)
    criterion = kind().to(device)
    embeddings = normalize(torch.randn(81, 512)).to(device).requires_grad_()
    loss = criterion(embeddings, (torch.arange(81) // 3).to(device))
    loss.backward()
    gradient = criterion.get_parameter("proxies").grad
    assert embeddings.grad is not None and gradient is not None
    return [loss.detach(), embeddings.grad, gradient]


def as_on_the_cpu(scale: Scale, folder: Path) -> Iterator[Line]:
    """Every loss, the metrics, each network forward and backward, and crops, compared with the CPU in float32."""
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
    """The number of crops of photographs that differ from the CPU's."""
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


def resume(scale: Scale, folder: Path) -> Iterator[Line]:
    """A run that is killed after its first checkpoint, and one that is asked to stop then, each resumed and compared
    with an undisturbed run."""
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
        yield Line(f"{number.name}, then resumed", "same bytes" if same else "other bytes", good=same and came)


RUN: dict[str, Callable[[Scale, Path], Iterator[Line]]] = {
    "machine": machine,
    "as on the CPU": as_on_the_cpu,
    "same bits": same_bits,
    "resume": resume,
}
