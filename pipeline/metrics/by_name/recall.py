"""Recall@K: the share of queries with a relevant image among their K nearest others (Song et al. 2016, arXiv
1511.06452, section 5). The file `pipeline/metrics/retrieval.py` has the definition."""

from collections.abc import Iterator
from typing import Literal

from pipeline.metrics.found import Found
from pipeline.metrics.limits import Split
from pipeline.metrics.retrieval import recalls

NAMES = {"recall@K": "Recall@K"}


def metric(found: Found, *, counting: Literal["exact", "strict", "drop_first"] = "exact") -> dict[str, float]:
    """Recall@K for every K of `recall_at`. How `counting` counts: see `pipeline.metrics.retrieval.retrieval`. Epochs
    are always chosen by the exact count."""
    return recalls(found.ranks(counting)[0], found.recall_at)


def limits(split: Split, seed: int, counting: str) -> Iterator[str]:
    """Why the search cannot be counted in this way."""
    if split.gallery and counting == "drop_first":
        yield (
            "counting: drop_first takes the first neighbour for the query itself, but a gallery does not hold the "
            "query: use exact or strict"
        )
