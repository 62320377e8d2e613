"""What the retrieval metrics are compared with, as a user would run it: without this project's settings.

    python bench/native.py SIZE THREADS [--peers] [--collapse]

prints one line of JSON: the seconds of the plain matrix product, and with --peers seconds and GB of
pytorch-metric-learning (Precision@1, MAP@R and R-Precision, by faiss) and of only faiss's search, for the largest K.
`bench.retrieval` starts this as a process of its own: whatever slows our own products cannot slow this one.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

# Queries, gallery (0: searched among themselves), classes, least images of a class, spread within a class, K.
SIZES = {
    "CUB": (5924, 0, 100, 50, 1.1, (1, 2, 4, 8)),
    "Cars": (8131, 0, 98, 70, 0.8, (1, 2, 4, 8)),
    "SOP": (60502, 0, 11316, 2, 0.75, (1, 10, 100, 1000)),
    "In-Shop": (14218, 12612, 3985, 2, 0.7, (1, 10, 20, 30, 40, 50)),
}


def synthetic(n: int, classes: int, least: int, spread: float, collapse: bool = False) -> tuple[Tensor, Tensor]:
    """Unit-length embeddings (n, 512) with class structure and labels (n,). Some images are far harder than others; or
    all embeddings are equal."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat(
        [torch.arange(classes).repeat(least), torch.randint(classes, (n - least * classes,), generator=generator)]
    )
    labels = labels[torch.randperm(n, generator=generator)]
    noise = torch.randn(n, 32, generator=generator) * torch.rand(n, 1, generator=generator) * 2 * spread
    points = torch.randn(classes, 32, generator=generator)[labels] + noise
    embeddings = torch.nn.functional.normalize(points @ torch.randn(32, 512, generator=generator), dim=1)
    return embeddings[:1].repeat(n, 1) if collapse else embeddings, labels


def search(name: str, collapse: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(queries, labels, searched, searched labels), the latter two the same objects without a gallery."""
    n, m, classes, least, spread, _ = SIZES[name]
    embeddings, labels = synthetic(n + m, classes, least, spread, collapse)
    return (embeddings[:n], labels[:n], embeddings[n:], labels[n:]) if m else (embeddings, labels) * 2


def product(queries: Tensor, searched: Tensor) -> None:
    """The product in tiles of 2048 into one reused buffer, by torch."""
    buffer = torch.empty(2048 * 2048)
    for a in queries.split(2048):
        for b in searched.split(2048):
            torch.mm(a, b.T, out=buffer[: len(a) * len(b)].view(len(a), len(b)))


def seconds(run: Callable[[], object]) -> float:
    """The seconds of a call by the wall clock; with one thread the processor time, which other programs on the machine
    disturb less."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    run()
    return clock() - begin


def peak(run: Callable[[], object]) -> tuple[float, float]:
    """(Seconds, GB of resident memory that the call adds at its peak). Only on Linux."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    duration = seconds(run)
    return duration, (resident("VmHWM") - before) / 1e9


def resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peers(
    queries: Tensor, labels: Tensor, searched: Tensor, searched_labels: Tensor, most: int
) -> dict[str, tuple[float, float]]:
    import faiss
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    faiss.omp_set_num_threads(torch.get_num_threads())
    include = ("precision_at_1", "mean_average_precision_at_r", "r_precision")
    # With another k it would rank all images.
    calculator = AccuracyCalculator(include=include, device=torch.device("cpu"), k="max_bin_count")

    def only_search() -> None:
        index = faiss.IndexFlatIP(searched.shape[1])
        index.add(searched.numpy())
        index.search(queries.numpy(), most + 1)

    among = queries is searched
    return {
        "pytorch-metric-learning": peak(
            lambda: calculator.get_accuracy(queries, labels, searched, searched_labels, among)
        ),
        "faiss": peak(only_search),
    }


def main(name: str, threads: str, *options: str) -> None:
    torch.set_num_threads(int(threads))
    queries, labels, searched, searched_labels = search(name, "--collapse" in options)
    product(queries[:2048], searched[:2048])  # the first product starts threads
    found: dict[str, object] = {"product": seconds(lambda: product(queries, searched))}
    if "--peers" in options:
        found |= peers(queries, labels, searched, searched_labels, max(SIZES[name][-1]))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
