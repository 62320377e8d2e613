"""The chance of test classes: would other classes give this, too? A paired bootstrap over the classes of a test set."""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 9999


@dataclass(frozen=True)
class ClassChance:
    """A Recall@1, or a difference of two, with its 95 % interval and standard error over test classes."""

    value: float
    low: float
    high: float
    error: float
    classes: int


def bootstrap(hits: np.ndarray, queries: np.ndarray) -> ClassChance:
    """The bootstrap of sum(hits) / sum(queries), where classes are drawn with replacement and each class keeps its
    queries together.

    `hits` (classes,) is the number of queries of a class that were answered right, as a mean over seeds; for a
    difference of two rows it is the difference, so that both rows are seen on the same drawn classes. `queries`
    (classes,) is their number. The draws are always the same ones. The interval is the percentile interval of
    scipy.stats.bootstrap, because BCa has no value where all classes are equal.
    """
    from scipy.stats import bootstrap as resample  # here, because its import takes a second

    def ratio(some: np.ndarray, of: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(some.sum(axis) / of.sum(axis))

    hits, queries = np.asarray(hits, float), np.asarray(queries, float)
    done = resample(
        (hits, queries),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 2**22 // len(hits)),
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = done.confidence_interval
    return ClassChance(
        float(hits.sum() / queries.sum()), float(low), float(high), float(done.standard_error), len(hits)
    )
