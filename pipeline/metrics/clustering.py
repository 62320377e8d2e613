"""Clustering metrics: NMI and pairwise F1 of k-means clusters, where k is the number of classes (the papers'
protocol)."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

import pipeline
from pipeline.base.files import ended_after

ITERATIONS = 20
"""Of faiss's k-means."""

NARROW = 1e-3
"""Points are a narrow cone if their variance is below this share of their mean square."""


LARGEST_SEED = {"faiss": 2**31 - 1, "scikit-learn": 2**32 - 1}
"""The largest seed of each k-means: of a signed number of 32 bits (faiss) and of an unsigned one."""


def clustering(embeddings: Tensor, labels: Tensor, *, seed: int, kmeans: str) -> dict[str, float]:
    """The `clusters` of the embeddings, scored by `clustering_scores`: {"nmi_arithmetic", "nmi_geometric", "f1"}."""
    return clustering_scores(clusters(embeddings, labels, seed=seed, kmeans=kmeans), labels.cpu().numpy())


def clusters(embeddings: Tensor, labels: Tensor, *, seed: int, kmeans: str) -> NDArray[np.integer]:
    """The k-means clusters of the embeddings, (n,).

    embeddings (n, d) float32; labels (n,) int64; k is the number of distinct labels. `kmeans` is "scikit-learn"
    (best of 10 restarts, as the papers do on CUB and Cars) or "faiss" (20 iterations, one start, as on SOP). The same
    seed gives the same result on any number of CPUs: sums are grouped by thread, so both libraries get a fixed number
    of threads.
    For faiss, the mean of embeddings in a narrow cone is subtracted first: faiss's distances are differences of float32
    products, which lose most of their digits there. scikit-learn subtracts the mean itself.
    Raises ValueError for empty input and nan or infinite values.
    """
    points = np.ascontiguousarray(embeddings.detach().cpu().numpy(), dtype=np.float32)
    if points.size == 0 or points.ndim != 2 or labels.shape != points.shape[:1]:
        raise ValueError(f"embeddings must be (n, d) and labels (n,), got {points.shape} and {tuple(labels.shape)}")
    if not np.isfinite(points).all():
        raise ValueError(f"{int((~np.isfinite(points).all(1)).sum())} rows of embeddings hold nan or infinity")
    k = len(np.unique(labels.cpu().numpy()))
    points = _around_mean(points) if kmeans == "faiss" else points
    assign = {"scikit-learn": _scikit_kmeans, "faiss": _faiss_kmeans}[kmeans]
    return assign(points, k, seed)


def clustering_scores(assignments: NDArray[np.integer], labels: NDArray[np.integer]) -> dict[str, float]:
    """Agreement of clusters (n,) and classes (n,), both any integers: {"nmi_arithmetic", "nmi_geometric", "f1"}.

    NMI = mutual information / mean of the two entropies. The mean is arithmetic (Manning, Raghavan, Schuetze 2008,
    section 16.3; scikit-learn since 0.22) or geometric (scikit-learn before). Papers differ, so both are given. NMI is
    1 for a single cluster and a single class. f1 is the harmonic mean of precision and recall over pairs of images
    (Manning et al., section 16.3). A pair is found if it shares a cluster, and correct if it shares a class; f1 is 0 if
    no pair is both. Raises ValueError for empty input, and for input of different lengths.
    """
    if len(labels) == 0 or len(assignments) != len(labels):
        raise ValueError(
            f"there must be as many assignments as labels, and at least one, got {len(assignments)} and {len(labels)}"
        )
    _, rows = np.unique(labels, return_inverse=True)
    _, columns = np.unique(assignments, return_inverse=True)
    width = int(columns.max()) + 1
    cells, counts = np.unique(rows.astype(np.int64) * width + columns, return_counts=True)
    class_sizes, cluster_sizes = np.bincount(rows), np.bincount(columns)

    n = len(labels)
    expected = class_sizes[cells // width] / n * cluster_sizes[cells % width]
    information = float((counts / n * np.log(counts / expected)).sum())
    entropies = [-float((sizes / n * np.log(sizes / n)).sum()) for sizes in (class_sizes, cluster_sizes)]
    arithmetic, geometric = sum(entropies) / 2, float(np.sqrt(entropies[0] * entropies[1]))

    both, found, same = (int((sizes * (sizes - 1) // 2).sum()) for sizes in (counts, cluster_sizes, class_sizes))
    return {
        "nmi_arithmetic": information / arithmetic if arithmetic > 0 else 1.0,
        # If all images are in one cluster, or in one class, there is no information, and the geometric mean is 0.
        "nmi_geometric": information / geometric if geometric > 0 else float(arithmetic == 0),
        "f1": 2 * both / (found + same) if both else 0.0,
    }


def _around_mean(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points (n, d) of a narrow cone, with their mean subtracted and scaled to a mean square length of 1. Other points
    are returned unchanged."""
    exact = points.astype(np.float64)
    exact -= exact.mean(0)
    variance = float((exact**2).sum(1).mean())
    squares = float(np.einsum("nd,nd->n", points, points, dtype=np.float64).mean())
    return (exact / np.sqrt(variance)).astype(np.float32) if 0 < variance < NARROW * squares else points


def _scikit_kmeans(points: NDArray[np.float32], k: int, seed: int) -> NDArray[np.integer]:
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # One thread, because scikit-learn uses at most one for each CPU. Any other number would differ between machines.
    with threadpool_limits(1):
        return np.asarray(KMeans(n_clusters=k, n_init=10, random_state=seed).fit(points).labels_)


def _faiss_kmeans(points: NDArray[np.float32], k: int, seed: int) -> NDArray[np.integer]:
    import faiss
    from threadpoolctl import threadpool_limits

    if pipeline.INSTRUCTIONS == "portable":
        # faiss chooses its kernels by the processor, up to AVX-512, and no environment variable limits it.
        faiss.SIMDConfig.set_level(faiss.SIMDLevel_AVX2)
    kmeans = faiss.Kmeans(
        points.shape[1],
        k,
        niter=ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,  # SOP has 5.3 images per class: no warning
        max_points_per_centroid=len(points),  # never a subsample
    )
    # faiss waits for its threads without an end. On a slow machine it does a billion operations a second.
    operations = 2 * ITERATIONS * points.size * k
    with threadpool_limits(2), ended_after(600 + operations / 1e9):  # faiss's OpenMP and its BLAS
        kmeans.train(points)
        _, nearest = kmeans.index.search(points, 1)
    return nearest[:, 0]
