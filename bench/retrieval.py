"""Speed and memory of the retrieval metrics at the four datasets' sizes, as ratios to the plain matrix product.

    python -m bench.retrieval [--only SOP] [--peers] [--clustering]

Times are compared with the product of the queries with the searched embeddings, in tiles of 2048 into one reused buffer
(float32, same threads, same run). Embeddings are synthetic: classes in 32 dimensions, projected to 512, seeded, about
as hard as the dataset (Recall@1 and MAP@R are printed). `--collapse` gives every image the same embedding. Ours and the
product take turns, and the best time of each counts.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.metrics.clustering import clustering
from pipeline.metrics.retrieval import recall_at_k, retrieval

# Queries, gallery (0: searched among themselves), classes, least images of a class, spread within a class, K.
SIZES = {
    "CUB": (5924, 0, 100, 50, 1.1, (1, 2, 4, 8)),
    "Cars": (8131, 0, 98, 70, 0.8, (1, 2, 4, 8)),
    "SOP": (60502, 0, 11316, 2, 0.75, (1, 10, 100, 1000)),
    "In-Shop": (14218, 12612, 3985, 2, 0.7, (1, 10, 20, 30, 40, 50)),
}


def synthetic(n: int, classes: int, least: int, spread: float) -> tuple[Tensor, Tensor]:
    """Unit-length embeddings (n, 512) with class structure and labels (n,). Some images are far harder than others."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat(
        [torch.arange(classes).repeat(least), torch.randint(classes, (n - least * classes,), generator=generator)]
    )
    labels = labels[torch.randperm(n, generator=generator)]
    noise = torch.randn(n, 32, generator=generator) * torch.rand(n, 1, generator=generator) * 2 * spread
    points = torch.randn(classes, 32, generator=generator)[labels] + noise
    return torch.nn.functional.normalize(points @ torch.randn(32, 512, generator=generator), dim=1), labels


def product(queries: Tensor, searched: Tensor) -> None:
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


def measure(name: str, repeats: int, peers: bool, collapse: bool) -> str:
    n, m, classes, least, spread, ks = SIZES[name]
    embeddings, labels = synthetic(n + m, classes, least, spread)
    if collapse:
        embeddings[:] = embeddings[0].clone()
    queries, searched = (embeddings, embeddings) if m == 0 else (embeddings[:n], embeddings[n:])
    among: dict[str, Any] = {} if m == 0 else {"gallery": searched, "gallery_labels": labels[n:]}
    scores: dict[str, float] = {}
    runs: dict[str, Callable[[], object]] = {
        "product": lambda: product(queries, searched),
        "all": lambda: scores.update(retrieval(queries, labels[:n], ks, **among)),
        "recall": lambda: recall_at_k(queries, labels[:n], ks, **among),
    }
    _, gigabytes = peak(runs["all"])
    times = {key: min(values) for key, values in take_turns(runs, repeats).items()}
    cells = [name, f"{n}" + (f" x {m}" if m else ""), f"{scores['recall@1']:.3f}", f"{scores['map@r']:.3f}"]
    cells += [f"{times['product']:.2f}", f"{times['all']:.2f}", f"{times['all'] / times['product']:.2f}"]
    cells += [f"{times['recall'] / times['product']:.2f}", f"{gigabytes:.2f}"]
    for run in peer_runs(queries, labels[:n], searched, labels[n:] if m else labels, m == 0, ks) if peers else ():
        duration, gigabytes = peak(run)
        cells += [f"{duration / times['product']:.2f}", f"{gigabytes:.2f}"]
    return "| " + " | ".join(cells) + " |"


def take_turns(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(repeats):
        for key, run in runs.items():
            times[key].append(seconds(run))
    return times


def peer_runs(
    queries: Tensor,
    labels: Tensor,
    searched: Tensor,
    searched_labels: Tensor,
    among_themselves: bool,
    ks: Sequence[int],
) -> Iterator[Callable[[], object]]:
    """Calls of pytorch-metric-learning (Precision@1, MAP@R and R-Precision, by faiss), and of only faiss's search, for
    the largest K."""
    import faiss
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    faiss.omp_set_num_threads(torch.get_num_threads())
    include = ("precision_at_1", "mean_average_precision_at_r", "r_precision")
    calculator = AccuracyCalculator(
        include=include, device=torch.device("cpu"), k="max_bin_count"
    )  # with another k all images would be ranked

    def search() -> None:
        index = faiss.IndexFlatIP(searched.shape[1])
        index.add(searched.numpy())
        index.search(queries.numpy(), max(ks) + 1)

    yield lambda: calculator.get_accuracy(queries, labels, searched, searched_labels, among_themselves)
    yield search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", choices=SIZES, action="append", help="measure only this size; may be repeated (default: all)"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of each library (default 2)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="number of turns of our code and of the product (default 3)"
    )
    parser.add_argument(
        "--peers", action="store_true", help="also measure pytorch-metric-learning and faiss (15 GB at SOP)"
    )
    parser.add_argument("--clustering", action="store_true", help="also measure k-means (takes minutes at SOP)")
    parser.add_argument("--collapse", action="store_true", help="make all embeddings equal, which is the worst case")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    titles = ["size", "images", "R@1", "MAP@R", "product, s", "all metrics, s", "ratio", "Recall@K only, ratio", "GB"]
    titles += ["pytorch-metric-learning, ratio", "GB", "faiss search, ratio", "GB"] if arguments.peers else []
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    for name in arguments.only or SIZES:
        print(measure(name, arguments.repeats, arguments.peers, arguments.collapse), flush=True)
    for name in (arguments.only or ("CUB", "Cars", "SOP")) if arguments.clustering else ():
        n, m, classes, least, spread, _ = SIZES[name]
        embeddings, labels = synthetic(n + m, classes, least, spread)
        kmeans = "faiss" if name == "SOP" else "scikit-learn"
        start = time.perf_counter()
        clustering(embeddings, labels, seed=0, kmeans=kmeans)
        print(f"k-means {name}, k = {classes}, {kmeans}: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
