"""What a training step costs, part by part, as ratios measured in one run.

    python -m bench.training [losses] [resnet50] [--threads 2] [--repeats 100]

losses: each loss's forward and backward on a batch of its paper's size, at CUB's and SOP's numbers of classes, 512
dimensions, float32, proxies as drawn. The floor is the product that each of them needs, in PyTorch's plain words:
proxies scaled to unit length, their cosines with the batch, and both backward to batch and proxies from a given
gradient. Loss and floor take turns; medians. Expect at most 3 floors at CUB's size, 1.5 at SOP's (docs/losses.md).

resnet50: images a second of training steps (forward, cross-entropy, backward, AdamW) of torchvision's ResNet-50 with
512 outputs on 32 images of 224 x 224, on the CPU: float32 as it comes, in channels_last, and that in bfloat16 autocast
where oneDNN supports it (elsewhere a step takes minutes). They take turns, a tenth of the repeats; medians. Expect two
minutes on 2 cores.
"""

import argparse
import ctypes
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torchvision.models import resnet50

from bench.retrieval import take_turns
from pipeline.losses import proxy_an, proxy_anchor, proxy_gml, proxy_nca

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
DIMENSION = 512
# Dataset: classes, Proxy-AN's batch, ProxyGML's N and lambda (its batch is 32 everywhere).
SIZES = {"CUB": (100, 81, 12, 0.3), "SOP": (11318, 80, 1, 0.0)}


def medians(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, after a first turn that does not count."""
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


def training_step(layout: torch.memory_format, bfloat16: bool) -> Callable[[], None]:
    """A whole step of ResNet-50 on 32 random images in that layout, weights and images float32."""
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
        "plain": training_step(torch.contiguous_format, False),
        "channels_last": training_step(torch.channels_last, False),
    }
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        steps["channels_last, bfloat16"] = training_step(torch.channels_last, True)
    times = medians({**steps}, max(1, repeats // 10))
    print("\n| ResNet-50 | images/s | ratio to plain |\n|---|---|---|")
    for name, duration in times.items():
        print(f"| {name} | {32 / duration:.1f} | {times['plain'] / duration:.2f} |")


PARTS = {"losses": losses, "resnet50": networks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    parser.add_argument("--repeats", type=int, default=100, help="turns of each loss and its floor (default 100)")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; use {', '.join(PARTS)}")
    torch.set_num_threads(arguments.threads)
    torch.set_deterministic_debug_mode("error")  # as training does
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(0)
    # Freed memory stays with the process: glibc hands large blocks back and takes them anew, or does not, depending on
    # what was freed before, and the first touch of new pages costs as much as the product itself.
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
        ctypes.CDLL(None).mallopt(option, value)
    for part in arguments.parts or PARTS:
        PARTS[part](arguments.repeats)


if __name__ == "__main__":
    main()
