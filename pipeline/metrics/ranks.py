"""The ranks behind the retrieval metrics: for each query, how many irrelevant images come before its relevant ones.

No n x n matrix is ever stored or sorted. `by_halves` is for many small classes that are searched among themselves
(SOP); `by_strips` is for everything.

The ranks are those of exact arithmetic, on every kernel, number of threads and device. A fast float32 product counts
what is surely above a relevant image and lists the images that its error bound leaves open. These are decided one by
one in float64 (`Products.exact`). If too many are open, because the embeddings lie in a narrow cone, the product is
made again in float64.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pipeline.metrics.similarities import Products

NEVER = torch.iinfo(torch.int64).max  # the count before the first hit, for a query without a hit

# The scores of each query: the number of irrelevant images ranked above its first hit, (n,) int64, NEVER without a hit;
# average precision at R and R-precision, (n,) float64 each, nan if R = 0. If only the first was asked for, the other
# two have no meaning.
Scores = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Search(Products):
    """Queries with labels (n,) int64, and what is searched for them, with labels (m,) int64. They may be the same
    `Rows`: then a query does not find itself.

    An irrelevant image ranks above a relevant one if its exact similarity is larger, or smaller by no more than `tie`.
    If the search is `strict`, its similarity must be larger by at least `tie`."""

    labels: Tensor
    searched_labels: Tensor
    strict: bool = False

    @property
    def among(self) -> bool:
        return self.queries is self.searched

    @property
    def distance(self) -> float:
        return self.tie if self.strict else -self.tie

    def limits(self, relevant: Tensor) -> tuple[Tensor, Tensor]:
        """Similarities from products below the first limit rank surely below the relevant ones, those that reach the
        second surely above."""
        return relevant + (self.distance - 2 * self.error), relevant + (self.distance + 2 * self.error)

    def above(self, queries: Tensor, others: Tensor, thresholds: Tensor) -> Tensor:
        """Whether images rank above relevant ones, exactly: (pairs,) bool. queries and others (pairs,) int64;
        thresholds (pairs,) float64, the exact similarities of the relevant images."""
        return self.exact(queries, others) - thresholds >= self.distance

    def best(self, queries: Tensor, columns: Tensor, relevant: Tensor) -> Tensor:
        """The exact similarities of the best relevant images: (q,) float64, -inf if there is none. columns (q, w) int64
        are searched images, of which those count where relevant (q, w) bool is true."""
        place, slot = relevant.nonzero(as_tuple=True)
        values = self.exact(queries[place], columns[place, slot])
        return values.new_full((len(queries),), -torch.inf).scatter_reduce_(0, place, values, "amax")


def by_strips(search: Search, counting: str, first_only: bool) -> Scores:
    """The ranks of any search, a few queries at a time against all searched images."""
    members = search.searched_labels.argsort(stable=True)
    ordered = search.searched_labels[members]
    start = torch.searchsorted(ordered, search.labels)  # a query's class: members[start : start + size], ascending
    size = torch.searchsorted(ordered, search.labels, right=True) - start
    number = size - int(search.among)
    slots = torch.arange(max(1, int(size.max())), device=size.device)
    blank = len(search.searched)  # a column of padding
    results = []
    for rows, similarities in search.strips():
        columns = members[(start[rows, None] + slots).clamp(max=blank - 1)]
        columns = torch.where(slots < size[rows, None], columns, blank)
        own = similarities.gather(1, rows[:, None] if search.among else columns[:, :1])[:, 0]
        if search.among:
            similarities.scatter_(1, rows[:, None], -torch.inf)
        # Another image may be as near to the query as the query itself: only `drop_first` looks at this.
        rival = similarities.amax(1) >= own - search.tie - 2 * search.error if counting == "drop_first" else None
        relevant = similarities.gather(1, columns)
        similarities.scatter_(1, columns, -torch.inf)  # from here on the strip holds only irrelevant images
        strip = Strip(search, rows, similarities, columns, relevant)
        counts = relevant if first_only else strip.counts(number[rows])
        if rival is not None:
            first = strip.first_after_drop(rival)
        elif first_only or counting == "strict":
            strip = replace(strip, search=replace(search, strict=counting == "strict"))
            first = strip.first(torch.arange(len(rows), device=rows.device))
        else:
            first = counts.amin(1)
            far = (first >= number[rows]).nonzero()[:, 0]  # beyond the R nearest, where `counts` stops
            first[far] = strip.first(far)
        alone = NEVER if rival is None else first
        results.append((torch.where(number[rows] > 0, first, alone), counts))
    first, counts = (torch.cat(parts) for parts in zip(*results, strict=True))
    return (first, first, first) if first_only else (first, *at_r(counts, number))


@dataclass(frozen=True)
class Strip:
    """Similarities (q, m + padding) of the queries `rows` (q,) to irrelevant images; the others are -inf. `columns` (q,
    w) are the images of the query's class, and `relevant` (q, w) their similarities: -inf for padding and the query."""

    search: Search
    rows: Tensor
    similarities: Tensor
    columns: Tensor
    relevant: Tensor

    @cached_property
    def maxima(self) -> Tensor:
        """The largest similarity of each group (q, groups): see `fold`."""
        return fold(self.similarities).amax(1)

    def counts(self, number: Tensor) -> Tensor:
        """How many irrelevant images rank above each relevant one, (q, w) int64, in ascending order. Counts of `number`
        (q,) or more need not be exact."""
        lower, upper = self.search.limits(self.relevant)
        nearest = -largest(self.similarities, min(self.relevant.shape[1], self.similarities.shape[1]), self.maxima)
        sure, perhaps = (torch.searchsorted(nearest, -limit, right=True) for limit in (upper, lower))
        # What is -inf has as many images above it as `nearest` holds.
        local, slot = ((sure < perhaps) & (sure < number[:, None])).nonzero(as_tuple=True)
        if len(local):
            exactly = self.search.exact(self.rows[local], self.columns[local, slot])
            sure[local, slot] += self.settle(local, lower[local, slot], upper[local, slot], exactly)
        return ascending(sure)

    def first(self, local: Tensor) -> Tensor:
        """How many irrelevant images rank above the best relevant one, (k,) int64, for some of the strip's queries."""
        best = self.relevant[local].amax(1)
        lower, upper = self.search.limits(best)
        part = self.similarities if len(local) == len(self.rows) else self.similarities[local]
        sure, perhaps = (count(part, limit[:, None], 1) for limit in (upper, lower))
        doubtful = ((sure < perhaps) & (best > -torch.inf)).nonzero()[:, 0]
        if len(doubtful):
            some = local[doubtful]
            near = self.relevant[some] >= best[doubtful, None] - 2 * self.search.error
            exactly = self.search.best(self.rows[some], self.columns[some], near)
            sure[doubtful] += self.settle(some, lower[doubtful], upper[doubtful], exactly)
        return sure

    def settle(self, local: Tensor, lower: Tensor, upper: Tensor, thresholds: Tensor) -> Tensor:
        """How many of the images from lower to below upper (k,) rank above the thresholds (k,): (k,) int64. `local`
        (k,) are rows of the strip. Only groups of images whose maximum reaches `lower` are looked at."""
        self.search.check_open(len(local) * len(self.search.searched) / 1024, self.similarities.numel())
        folded, maxima = fold(self.similarities), self.maxima
        settled = torch.zeros_like(local)
        for some in torch.arange(len(local), device=local.device).split(128):
            which, group = (maxima[local[some]] >= lower[some, None]).nonzero(as_tuple=True)
            which = some[which]
            values = folded[local[which], :, group]
            inside, member = ((values >= lower[which, None]) & (values < upper[which, None])).nonzero(as_tuple=True)
            self.search.check_open(len(inside), len(some) * self.similarities.shape[1])
            place = which[inside]
            column = member * folded.shape[2] + group[inside]
            above = self.search.above(self.rows[local[place]], column, thresholds[place])
            settled += torch.bincount(place[above], minlength=len(local))
        return settled

    def first_after_drop(self, rival: Tensor) -> Tensor:
        """`first`, if the nearest image is dropped as the query itself, and equal similarities rank by index. If there
        is no `rival` (q,) of the query, and no image as similar as the best relevant one, that changes nothing. The
        other queries are searched in float64, which leaves similarities open that differ by one half to three halves of
        `tie`."""
        best = self.relevant.amax(1)
        sure = count(self.similarities, replace(self.search, strict=True).limits(best)[1][:, None], 1)
        perhaps = count(self.similarities, self.search.limits(best)[0][:, None], 1)
        doubtful = (rival | ((sure < perhaps) & (best > -torch.inf))).nonzero()[:, 0]
        first = torch.where(best > -torch.inf, sure, NEVER)
        exactly = replace(self.search, dtype=torch.float64)
        for some in doubtful.split(64):
            whole = self.similarities.new_empty(len(some), self.similarities.shape[1], dtype=torch.float64)
            exactly.strip(self.rows[some], whole)
            first[some] = _first_hit_after_drop(whole, self.columns[some], exactly.tie)
        return first


def count(values: Tensor, limits: Tensor, dim: int) -> Tensor:
    """(values >= limits).sum(dim). On a CPU, writing comparisons as float32 (exact up to 2**24) and adding these takes
    a fifth of the time of booleans, whose kernels are not vectorised."""
    return torch.ge(values, limits, out=torch.empty(values.shape, device=values.device)).sum(dim).long()


def fold(strip: Tensor) -> Tensor:
    """A strip (rows, a multiple of 16) as groups of 16, (rows, 16, groups): group g has columns g, g + groups, …"""
    return strip.view(len(strip), 16, -1)


def largest(strip: Tensor, k: int, maxima: Tensor | None = None) -> Tensor:
    """strip.topk(k).values, but faster: the k largest values of a row are in the k groups with the largest maxima.
    strip (rows, a multiple of 16); maxima (rows, groups) are those of its groups, if they are known."""
    folded = fold(strip)
    if folded.shape[2] > 2 * k:
        groups = (folded.amax(1) if maxima is None else maxima).topk(k, sorted=False).indices
        strip = folded.gather(2, groups[:, None].expand(-1, 16, -1)).flatten(1)
    if not strip.is_cpu:
        return strip.topk(k).values
    # numpy's selection and sort are vectorised and take a seventh of the time of torch's.
    return torch.from_numpy(-np.sort(-np.partition(strip.numpy(), -k, axis=1)[:, -k:]))


def ascending(counts: Tensor) -> Tensor:
    """Each row of counts (rows, k), sorted. On a CPU numpy's sort takes a tenth of the time of torch's."""
    return torch.from_numpy(np.sort(counts.numpy())) if counts.is_cpu else counts.sort(1).values


def _first_hit_after_drop(strip: Tensor, columns: Tensor, tie: float) -> Tensor:
    """How many images rank above the first hit, (rows,) int64, NEVER without a hit. All images are ranked, including
    the query; equal similarities are ranked by lower index; the first image is dropped, whatever it is. strip (rows, m)
    is overwritten. columns (rows, w) are those of the query's class, ascending, including the query's own column."""
    nearest = strip >= strip.amax(1, keepdim=True) - tie
    strip.scatter_(1, nearest.byte().argmax(1, keepdim=True), -torch.inf)
    relevant = strip.gather(1, columns)
    best = relevant.amax(1, keepdim=True)
    place = columns.gather(1, (relevant >= best - tie).byte().argmax(1, keepdim=True))
    strip.scatter_(1, columns, -torch.inf)
    earlier = torch.arange(strip.shape[1], device=strip.device) < place
    above = ((strip > best + tie) | ((strip >= best - tie) & earlier)).sum(1)
    return torch.where(best[:, 0] == -torch.inf, NEVER, above)


def at_r(counts: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """(Average precision at R, R-precision), (n,) float64 each, nan if R = 0.

    counts (n, w) integer, ascending: how many irrelevant images are ranked above the 1st, 2nd, ... relevant one. A
    count of R or more need not be exact, because such an image is not among the R nearest. number (n,) is R; w is at
    least the largest R.
    """
    place = torch.arange(1, counts.shape[1] + 1, device=counts.device)
    hits = (counts <= number[:, None] - place) & (place <= number[:, None])
    rank = torch.where(hits, counts, 0) + place
    return (hits * (place / rank.double())).sum(1) / number, hits.sum(1).double() / number
