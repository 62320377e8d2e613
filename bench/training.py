"""The cost of a training step, part by part, as ratios measured in one run.

    python -m bench.training [losses] [resnet50] [loader] [--threads 2] [--repeats 100]

losses: the forward and backward pass of each loss on a batch of its paper's size, with CUB's and SOP's numbers of
classes, 512 dimensions, float32, and proxies as drawn. The floor is the product that every loss needs, in plain
PyTorch: proxies scaled to unit length, their cosines with the batch, and the backward pass to batch and proxies from a
given gradient. Loss and floor take turns; times are medians. Expect at most 3 floors at CUB's size and 1.5 at SOP's
(docs/losses.md).

resnet50: images per second of training steps (forward, cross-entropy, backward, AdamW) of torchvision's ResNet-50 with
512 outputs on 32 images of 224 x 224, on the CPU: plain float32, float32 in channels_last, and channels_last in
bfloat16 autocast if oneDNN supports it (otherwise a step takes minutes). They take turns, with a tenth of the repeats;
times are medians. Expect two minutes on 2 cores.

loader: how much loading slows training down, on JPEG files of 500 x 375 cropped to 224 x 224. Without a GPU: the share
of Proxy-AN's ResNet-50 step on 32 images that is spent waiting for images, decoded once or each time, with 0 and 2
loader processes, with a twentieth of the repeats. With a GPU: images per second of the whole loop, with all images
decoded in memory, compared with the same steps on one batch that stays on the GPU, for both papers' networks and
batches with 8 loader processes; the goal is 95 %. Expect five minutes on 2 cores.
"""

import argparse
import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torchvision.models import resnet50

from bench.loading import photograph
from bench.retrieval import take_turns
from pipeline.base.config import Recipe, read_params
from pipeline.data.packed import PackedImages, SourceImage, pack
from pipeline.losses import proxy_an, proxy_anchor, proxy_gml, proxy_nca
from pipeline.networks.freezing import set_trainable
from pipeline.networks.network import EmbeddingNetwork, prepare
from pipeline.training.batches import Shuffled
from pipeline.training.loading import CroppedImages, training_batches, training_images
from pipeline.training.optimiser import build_optimiser
from pipeline.training.step import training_step

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from malloc.h
DIMENSION = 512
# Dataset: classes, Proxy-AN's batch, ProxyGML's N and lambda (ProxyGML's batch is always 32).
SIZES = {"CUB": (100, 81, 12, 0.3), "SOP": (11318, 80, 1, 0.0)}


def medians(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median seconds of each, after a first turn that does not count."""
    for run in runs.values():
        run()
    return {name: statistics.median(times) for name, times in take_turns(runs, repeats).items()}


def loss_row(name: str, dataset: str, classes: int, batch: int, criterion: nn.Module, repeats: int) -> str:
    """One line of the table of losses."""
    embeddings = normalize(torch.randn(batch, DIMENSION)).requires_grad_()
    labels = torch.randint(classes, (batch,))
    proxies = criterion.get_parameter("proxies").detach().reshape(-1, DIMENSION).clone().requires_grad_()
    gradient = torch.randn(batch, len(proxies)) / batch

    def loss() -> None:
        embeddings.grad = criterion.proxies.grad = None
        criterion(embeddings, labels).backward()

    def floor() -> None:
        embeddings.grad = proxies.grad = None
        (embeddings @ normalize(proxies).T).backward(gradient)

    times = medians({"floor": floor, "loss": loss}, repeats)
    cells = [name, dataset, f"{batch} x {len(proxies)}", f"{times['floor'] * 1e3:.2f}", f"{times['loss'] * 1e3:.2f}"]
    return "| " + " | ".join([*cells, f"{times['loss'] / times['floor']:.2f}"]) + " |"


def losses(repeats: int) -> None:
    """Print the table of losses."""
    print("| loss | size | batch x proxies | floor, ms | loss, ms | ratio |\n" + "|---" * 6 + "|")
    for dataset, (classes, batch, per_class, weight) in SIZES.items():
        settings: dict[str, Any] = {"proxies_per_class": per_class, "ratio": 0.05, "regulariser_weight": weight}
        for name, rows, criterion in (
            ("proxy_gml", 32, proxy_gml.Loss(classes, DIMENSION, **settings)),
            ("proxy_an", batch, proxy_an.Loss(classes, DIMENSION, alpha=32.0, margin=0.1)),
            ("proxy_anchor", batch, proxy_anchor.Loss(classes, DIMENSION, alpha=32.0, margin=0.1)),
            ("proxy_nca", batch, proxy_nca.Loss(classes, DIMENSION)),
        ):
            print(loss_row(name, dataset, classes, rows, criterion, repeats), flush=True)


def plain_step(layout: torch.memory_format, bfloat16: bool) -> Callable[[], None]:
    """A whole step of ResNet-50 on 32 random images in this memory layout, with float32 weights and images."""
    network = resnet50(num_classes=DIMENSION).to(memory_format=layout)
    images = torch.randn(32, 3, 224, 224).to(memory_format=layout)
    labels = torch.randint(DIMENSION, (32,))
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = cross_entropy(network(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def networks(repeats: int) -> None:
    """Print the table of ResNet-50's training steps."""
    steps = {
        "plain": plain_step(torch.contiguous_format, False),
        "channels_last": plain_step(torch.channels_last, False),
    }
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        steps["channels_last, bfloat16"] = plain_step(torch.channels_last, True)
    times = medians({**steps}, max(1, repeats // 10))
    print("\n| ResNet-50 | images/s | ratio to plain |\n|---|---|---|")
    for name, duration in times.items():
        print(f"| {name} | {32 / duration:.1f} | {times['plain'] / duration:.2f} |")


def whole_step(recipe: Recipe, device: torch.device) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """The step of a run on uint8 images and labels, with Proxy-AN's loss for 100 classes."""
    network = EmbeddingNetwork(recipe).to(device)
    criterion = proxy_an.Loss(100, recipe.dimension, alpha=32.0, margin=0.1).to(device)
    optimiser = build_optimiser(recipe, network, criterion)
    set_trainable(network, recipe, recipe.epochs)

    def step(pixels: torch.Tensor, labels: torch.Tensor) -> None:
        training_step(recipe, network, criterion, optimiser, pixels, labels, device)

    return step


Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


def run_steps(step: Callable[..., None], batches: Batches, steps: int) -> tuple[float, float]:
    """The seconds of some steps, and how many of these seconds were spent waiting for batches."""
    start, waited = time.perf_counter(), 0.0
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(*batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, waited


def loader(repeats: int) -> None:
    """Print how much loading slows training down."""
    papers = Path(__file__).parent.parent / "papers"
    resnet, inception = (read_params(papers / name / "params.yaml").recipes["cub"] for name in ("proxy_an", "proxygml"))
    device = prepare(resnet.model_copy(update={"cpu_threads": torch.get_num_threads()}), "auto")
    on_gpu = device.type == "cuda"
    count = 512 if on_gpu else 64
    with tempfile.TemporaryDirectory() as name:
        sources = (SourceImage(f"{i}.jpg", i % 100, str(i % 100), "", photograph(i)) for i in range(count))
        pack(sources, Path(name) / "packed")
        packed = PackedImages(Path(name) / "packed")

        def batches(recipe: Recipe, size: int, in_memory: bool, workers: int) -> Batches:
            labels = torch.arange(count) % 100
            images = training_images(packed, range(count), labels, 3, recipe, 0)
            assert isinstance(images, CroppedImages)
            images.source = images.source if in_memory else packed
            return iter(training_batches(images, Shuffled(count, size, 0), range(1, 10**6), workers, device))

        if on_gpu:
            print("\n| network | precision | batch | loop, images/s | one resident batch, images/s | share |")
            print("|---" * 6 + "|")
            for recipe in (resnet, inception):
                for precision in ("float32", "tf32", "bfloat16"):
                    chosen, size = recipe.model_copy(update={"precision": precision}), recipe.batch_size
                    step, loaded = whole_step(chosen, device), batches(chosen, size, True, 8)
                    # Only whole batches, because the last batch of an epoch may be smaller.
                    whole = (batch for batch in loaded if len(batch[1]) == size)
                    resident = repeat(tuple(part.to(device) for part in next(whole)))
                    ways: dict[str, Any] = {"loop": whole, "resident": resident}
                    for way in ways.values():
                        run_steps(step, way, 10)
                    rates = {
                        way: statistics.median(size * repeats / run_steps(step, given, repeats)[0] for _ in range(3))
                        for way, given in ways.items()
                    }
                    cells = [recipe.backbone, precision, str(size), *(f"{rate:,.0f}" for rate in rates.values())]
                    print("| " + " | ".join([*cells, f"{rates['loop'] / rates['resident']:.1%}"]) + " |", flush=True)
            return
        print("\n| ResNet-50's images | loader processes | s a step | s waiting | share | images/s |")
        print("|---" * 6 + "|")
        step, steps = whole_step(resnet, device), max(1, repeats // 20)
        for in_memory in (True, False):
            for workers in (0, 2):
                given = batches(resnet, 32, in_memory, workers)
                run_steps(step, given, 1)
                took, waited = (seconds / steps for seconds in run_steps(step, given, steps))
                cells = [
                    "decoded once" if in_memory else "decoded as read",
                    str(workers),
                    f"{took:.2f}",
                    f"{waited:.4f}",
                ]
                print("| " + " | ".join([*cells, f"{waited / took:.2%}", f"{32 / took:.2f}"]) + " |", flush=True)
                del given


PARTS = {"losses": losses, "resnet50": networks, "loader": loader}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"one of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    parser.add_argument(
        "--repeats", type=int, default=100, help="number of turns of each loss and of its floor (default 100)"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; use {', '.join(PARTS)}")
    torch.set_num_threads(arguments.threads)
    torch.set_deterministic_debug_mode("error")  # as in training
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(0)
    # Keep freed memory in the process. Otherwise glibc returns large blocks to the system and asks for them again, or
    # does not, depending on what was freed before. The first use of new pages costs as much as the product itself.
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
        ctypes.CDLL(None).mallopt(option, value)
    for part in arguments.parts or PARTS:
        PARTS[part](arguments.repeats)


if __name__ == "__main__":
    main()
