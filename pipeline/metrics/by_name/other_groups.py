"""Recall@K and MAP@R in other groups: the images of the query's group are left out of its search (glyphs: those of its
font). A dataset whose images have groups is needed. The file `pipeline/metrics/groups.py` has the definitions."""

from collections.abc import Iterator
from typing import Literal

from pipeline.base.files import BadInputError
from pipeline.metrics.found import Found
from pipeline.metrics.limits import Split
from pipeline.metrics.retrieval import recalls

NAMES = {"recall_other_groups@K": "Recall@K, other groups", "map_other_groups@r": "MAP@R, other groups"}


def metric(
    found: Found,
    *,
    left_out: Literal["group", "relevant"] = "group",
    counting: Literal["exact", "strict", "drop_first"] = "exact",
) -> dict[str, float]:
    """Both metrics, as fractions. `left_out` is the query's whole group, or only the group's images of the query's
    class, as for persons and cameras. Queries without another image of their class in other groups are misses of
    Recall@K, and MAP@R leaves them out; if there are only such queries, `BadInputError` is raised. `counting` is that
    of Recall@K."""
    first, average_precision, _ = found.ranks_in_others(left_out, counting)
    if average_precision.isnan().all():
        raise BadInputError(
            "metrics.other_groups: no query has another image of its class in another group: leave the metric out, or "
            "correct the groups (docs/datasets.md)"
        )
    of_recall = {name.replace("@", "_other_groups@"): value for name, value in recalls(first, found.recall_at).items()}
    return of_recall | {"map_other_groups@r": average_precision.nanmean().item()}


def limits(split: Split, seed: int, left_out: str, counting: str) -> Iterator[str]:
    """Why the search cannot be counted in this way."""
    if counting == "drop_first":
        yield (
            "counting: drop_first takes the first neighbour for the query itself, but here the query is left out with "
            "its group: use exact or strict"
        )
