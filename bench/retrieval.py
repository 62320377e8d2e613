"""Speed and memory of the retrieval metrics at the four datasets' sizes, as ratios to the plain matrix product.

    python -m bench.retrieval [--only SOP] [--peers] [--clustering]

The unit is the product of the queries with the searched embeddings, in tiles of 2048 into one reused buffer (float32,
same threads), by torch in a process without this project's settings: `bench/native.py`, which also runs the peers.
Beside it stands the same product with the portable settings. Embeddings are synthetic: classes in 32 dimensions,
projected to 512, seeded, about as hard as the dataset (Recall@1 and MAP@R are printed). `--collapse` gives every image
the same embedding. Ours and the products take turns, and the best time of each counts.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.native import SIZES, peak, product, search, seconds
from pipeline.base.environment import DEFAULTS, PORTABLE, SET
from pipeline.metrics.clustering import clustering
from pipeline.metrics.retrieval import recall_at_k, retrieval
from pipeline.metrics.similarities import Products


def native(name: str, *options: str) -> dict[str, Any]:
    """What bench/native.py measures, in a process with the environment of any other program."""
    ours = {*PORTABLE, *SET, *DEFAULTS}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("native.py"), name, str(torch.get_num_threads()), *options],
        env={key: value for key, value in os.environ.items() if key not in ours},
        stdout=subprocess.PIPE,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(name: str, repeats: int, peers: bool, collapse: bool) -> str:
    queries, labels, searched, searched_labels = search(name, collapse)
    ks = SIZES[name][-1]
    among = queries is searched
    gallery: dict[str, Any] = {} if among else {"gallery": searched, "gallery_labels": searched_labels}
    scores: dict[str, float] = {}
    options = ("--collapse",) if collapse else ()
    products: list[float] = []
    runs: dict[str, Callable[[], object]] = {
        "portable": lambda: product(queries, searched),
        "all": lambda: scores.update(retrieval(queries, labels, ks, **gallery)),
        "recall": lambda: recall_at_k(queries, labels, ks, **gallery),
    }
    open_pairs = counted(runs["all"])
    _, gigabytes = peak(runs["all"])
    times: dict[str, float] = {}
    for _ in range(repeats):
        products.append(native(name, *options)["product"])
        turn = {key: values[0] for key, values in take_turns(runs, 1).items()}
        times = {key: min(value, times.get(key, value)) for key, value in turn.items()}
    unit = min(products)
    cells = [name, f"{len(queries)}" + ("" if among else f" x {len(searched)}")]
    cells += [f"{scores['recall@1']:.3f}", f"{scores['map@r']:.3f}", f"{unit:.2f}", f"{times['all']:.2f}"]
    cells += [f"{times[key] / unit:.2f}" for key in ("all", "recall", "portable")]
    cells += [f"{gigabytes:.2f}", f"{open_pairs / len(queries):.2f}"]
    if peers:
        found = native(name, "--peers", *options)
        for peer in ("pytorch-metric-learning", "faiss"):
            cells += [f"{found[peer][0] / unit:.2f}", f"{found[peer][1]:.2f}"]
    return "| " + " | ".join(cells) + " |"


def counted(run: Callable[[], object]) -> int:
    """The number of similarities that a call computes exactly, because products leave them open."""
    exact, pairs = Products.exact, 0

    def counting(self: Products, rows: Tensor, columns: Tensor) -> Tensor:
        nonlocal pairs
        pairs += len(rows)
        return exact(self, rows, columns)

    Products.exact = counting  # type: ignore[method-assign]
    run()
    Products.exact = exact  # type: ignore[method-assign]
    return pairs


def take_turns(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(repeats):
        for key, run in runs.items():
            times[key].append(seconds(run))
    return times


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
    titles = ["size", "images", "R@1", "MAP@R", "product, s", "all metrics, s", "ratio", "Recall@K only, ratio"]
    titles += ["portable product, ratio", "GB", "exact pairs a query"]
    titles += ["pytorch-metric-learning, ratio", "GB", "faiss search, ratio", "GB"] if arguments.peers else []
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    for name in arguments.only or SIZES:
        print(measure(name, arguments.repeats, arguments.peers, arguments.collapse), flush=True)
    for name in (arguments.only or ("CUB", "Cars", "SOP")) if arguments.clustering else ():
        embeddings, labels, _, _ = search(name, arguments.collapse)
        kmeans = "faiss" if name == "SOP" else "scikit-learn"
        start = time.perf_counter()
        clustering(embeddings, labels, seed=0, kmeans=kmeans)
        print(f"k-means {name}, k = {len(labels.unique())}, {kmeans}: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
