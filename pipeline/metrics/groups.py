"""Retrieval in other groups: the images of a query's group are left out of its search.

A group is what else images may share than their class: the font of a character, the camera of a person. A network may
find an image by its group, so that the search among all images measures both. The ranks are those of exact arithmetic,
as in `pipeline.metrics.ranks`.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pipeline.metrics.ranks import NEVER, Scores, Search, Strip, at_r
from pipeline.metrics.similarities import Rows, check_embeddings, decide

LeftOut = Literal["group", "relevant"]
"""What is left out of a query's search: its whole group, or only the group's images of the query's class, as for
persons and cameras (Zheng et al. 2015, Scalable Person Re-identification: A Benchmark, section 3)."""


@dataclass(frozen=True)
class Groups:
    """The labels and groups of the queries, int64 (n,) each, and of what is searched, int64 (m,) each. Without a
    gallery the two are the same. The query itself is in its group."""

    labels: Tensor
    groups: Tensor
    searched_labels: Tensor
    searched_groups: Tensor
    what: LeftOut = "group"

    def left_out(self, rows: Tensor) -> Tensor:
        """What is left out of the searches of some queries (k,) int64: bool (k, m)."""
        same = self.groups[rows, None] == self.searched_groups
        return same if self.what == "group" else same & (self.labels[rows, None] == self.searched_labels)


@torch.no_grad()
def per_query_in_others(queries: Tensor, gallery: Tensor | None, of: Groups, counting: str = "exact") -> Scores:
    """The ranks of each query's relevant images that are not left out, among the images that are not left out.

    queries (n, d) and gallery (m, d) float32, rows of unit length; without a gallery the queries are searched among
    themselves. R is the number of relevant images that are not left out. `counting` is exact or strict, as in
    `retrieval.retrieval`. Raises ValueError for other countings, and as `retrieval` does.
    """
    check_embeddings(queries, gallery)
    if counting not in ("exact", "strict"):
        raise ValueError(f"counting must be exact or strict in other groups, got {counting!r}")
    searched = queries if gallery is None else gallery
    shapes = {of.labels.shape, of.groups.shape}, {of.searched_labels.shape, of.searched_groups.shape}
    if shapes != ({queries.shape[:1]}, {searched.shape[:1]}):
        raise ValueError("one label and one group per row are needed")
    rows = Rows(queries)
    others = rows if gallery is None else Rows(gallery)
    search = Search(rows, others, labels=of.labels, searched_labels=of.searched_labels)
    return decide(search, lambda search: _by_strips(search, of, counting))


def _by_strips(search: Search, of: Groups, counting: str) -> Scores:
    members = search.searched_labels.argsort(stable=True)
    ordered = search.searched_labels[members]
    start = torch.searchsorted(ordered, search.labels)  # a query's class: members[start : start + size]
    size = torch.searchsorted(ordered, search.labels, right=True) - start
    blank = len(search.searched)  # a column of padding
    slots = torch.arange(max(1, int(size.max())), device=size.device)
    results = []
    for rows, similarities in search.strips():
        similarities[:, :blank].masked_fill_(of.left_out(rows), -torch.inf)
        columns = members[(start[rows, None] + slots).clamp(max=blank - 1)]
        columns = torch.where(slots < size[rows, None], columns, blank)
        relevant = similarities.gather(1, columns)
        number = (relevant > -torch.inf).sum(1)
        similarities.scatter_(1, columns, -torch.inf)  # from here on the strip holds only irrelevant images
        strip = Strip(search, rows, similarities, columns, relevant)
        counts = strip.counts(number)
        if counting == "strict":
            strip = replace(strip, search=replace(search, strict=True))
            first = strip.first(torch.arange(len(rows), device=rows.device))
        else:
            first = counts.amin(1)
            far = (first >= number).nonzero()[:, 0]  # beyond the R nearest, where `counts` stops
            first[far] = strip.first(far)
        results.append((torch.where(number > 0, first, NEVER), *at_r(counts, number)))
    first, average_precision, r_precision = (torch.cat(parts) for parts in zip(*results, strict=True))
    return first, average_precision, r_precision
