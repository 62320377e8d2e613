"""NMI and pairwise F1 of k-means clusters, as many as there are classes. The file `pipeline/metrics/clustering.py` has
the definitions."""

from collections.abc import Iterator
from typing import Literal

from pipeline.metrics.clustering import LARGEST_SEED, clustering_scores
from pipeline.metrics.found import Found
from pipeline.metrics.limits import Split

NAMES = {"nmi_arithmetic": "NMI", "nmi_geometric": "NMI, geometric", "f1": "F1"}


def metric(found: Found, *, kmeans: Literal["scikit-learn", "faiss"] = "faiss") -> dict[str, float]:
    """The three metrics, as fractions. `kmeans` is the library: see `pipeline.metrics.clustering.clusters`."""
    return clustering_scores(found.clusters(kmeans), found.labels.cpu().numpy())


def limits(split: Split, seed: int, kmeans: str) -> Iterator[str]:
    """Why the library cannot make the clusters."""
    if not 0 <= seed <= LARGEST_SEED[kmeans]:
        yield f"kmeans: {kmeans} takes seeds from 0 to {LARGEST_SEED[kmeans]}, not {seed}"
