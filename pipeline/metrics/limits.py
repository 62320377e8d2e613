"""Checks, made before any training, that the metrics can be computed and have a meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.base.files import BadInputError, submodule

if TYPE_CHECKING:
    from pipeline.base.config import Recipe

MOST_SEARCHED = 2**24
"""The number of searched images must be below this. Images above a hit are counted in float32, which represents every
whole number up to here."""


class Split(NamedTuple):
    """What is searched: the number of queries, of images that a query can find, and whether there is a gallery."""

    queries: int
    others: int
    gallery: bool


def evaluation_problems(
    recipe: Recipe, seed: int, labels: NDArray[np.int64], gallery_labels: NDArray[np.int64] | None = None
) -> list[str]:
    """Reasons why an evaluation would be refused, or would give meaningless numbers: one line each, beginning with its
    key.

    `labels` (n,) int64 are the labels of the queries. They are searched for in a gallery with `gallery_labels` (m,)
    int64, or among one another if there is no gallery.
    """
    apart = gallery_labels is not None
    searched = labels if gallery_labels is None else gallery_labels
    together = np.concatenate([labels, searched]) if apart else labels
    others = len(searched) - (not apart)
    found = []
    for name, settings in recipe.metrics_by_name():
        limits = getattr(submodule("metrics.by_name", name), "limits", None)
        if limits is not None:
            problems = limits(Split(len(labels), others, apart), seed, **settings)
            found += [f"metrics.{name}.{problem}" for problem in problems]
    if len(labels) < 1 or others < 1:
        counted = f"{len(labels)} queries and {others} images to search" if apart else f"{len(labels)} images"
        found.append(f"the split: {counted} are too few: there must be a query, and an image that it can find")
        return found
    if max(recipe.recall_at) > others:
        found.append(
            f"recall_at: {max(recipe.recall_at)} is more than the {others} images that are searched, so Recall@K would "
            "say nothing: use a smaller K"
        )
    if others >= MOST_SEARCHED:
        found.append(f"the split: {others} images are searched, but at most {MOST_SEARCHED - 1} can be")
    sizes = dict(zip(*np.unique(searched, return_counts=True), strict=True))
    if not any(sizes.get(label, 0) > (not apart) for label in np.unique(labels)):
        found.append("the split: no query has another image of its class to find")
    if len(np.unique(together)) < 2:
        found.append("the split: all images that are searched are of one class, so there is nothing to tell apart")
    return found


def check_evaluation(source: str, recipe: Recipe, seed: int, labels: NDArray[np.int64], queries: int | None) -> None:
    """Raise `BadInputError` with all `evaluation_problems` of the images to be retrieved, which have `labels` (n,)
    int64. The first `queries` images are searched for among the rest; if `queries` is None, all are searched for among
    one another. `source` names the recipe."""
    apart = None if queries is None else labels[queries:]
    if problems := evaluation_problems(recipe, seed, labels[:queries], apart):
        raise BadInputError("\n  ".join([f"{source}: its runs cannot be evaluated:", *problems]))
