"""A map of test embeddings in two dimensions, by t-SNE."""

from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from pipeline.data.packed import PackedImages, shown
from pipeline.reports.figures import scatter
from pipeline.reports.galleries import read_queries

MAPPED = 1500
"""The most images on a map, because t-SNE's time grows faster than their number, and more dots would hide each
other."""
ITERATIONS = 500


def spread(labels: np.ndarray, most: int) -> np.ndarray:
    """The rows, in order, of at most `most` images, evenly from every class. `labels` are int (images,)."""
    if len(labels) <= most:
        return np.arange(len(labels))
    # The first image of every class, then the second of each, and so on.
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    turn = np.empty(len(labels), int)
    turn[order] = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return np.sort(np.argsort(turn, kind="stable")[:most])


def embedding_map(path: Path, packed: PackedImages) -> tuple[str, int] | None:
    """The map of the embeddings in a queries.npz, as a data address, and the number of its images; None if there are no
    embeddings, or too few for a map."""
    found = read_queries(path)
    if "embeddings" not in found:
        return None
    labels = np.array([packed.entries[image].label for image in found["embedded"].tolist()])
    rows = spread(labels, MAPPED)
    if len(rows) < 10:
        return None
    # Imported here, because the import takes a second.
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(rows) - 1) / 3)
    with threadpool_limits(1):
        method = TSNE(random_state=0, init="pca", perplexity=perplexity, max_iter=ITERATIONS, n_jobs=1)
        points = method.fit_transform(found["embeddings"][rows].astype(np.float32))
    names = {entry.label: shown(entry.class_name) for entry in packed.entries}
    return scatter(points, labels[rows], names), len(rows)
