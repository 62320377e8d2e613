"""The ranks of images in many small classes, from half of their similarities."""

from dataclasses import replace

import torch
from torch import Tensor

from pipeline.metrics.ranks import NEVER, Scores, Search, ascending, at_r, count, largest


def by_halves(search: Search, first_only: bool, side: int) -> Scores:
    """The ranks of images searched among themselves. Classes have at most `side` images (a multiple of 16); about a
    dozen is best. Similarities are symmetric, so each tile (side, side) on or right of the diagonal is used for its
    rows and for its columns.

    There are two passes. First the images are sorted by class, so that windows along the diagonal hold all similarities
    of relevant images: the thresholds. Then the tiles are computed, and for each threshold the irrelevant similarities
    that reach it are counted, without sorting. Most tiles hold few or none for a query, which their maxima show.
    """
    _, group, sizes = search.labels.unique(return_inverse=True, return_counts=True)
    order = group.argsort(stable=True)
    group, size = group[order], sizes[group[order]]
    images = search.queries.take(order)
    search = replace(search, queries=images, searched=images, labels=group, searched_labels=group)
    halves = Halves(search, size, 1 if first_only else int(sizes.max()), side)
    halves.find_thresholds()
    halves.count()

    counts = ascending(halves.counts.masked_fill_(halves.thresholds == torch.inf, NEVER))
    back = order.argsort()
    first = counts[back, 0]
    if first_only:
        return first, first, first
    average_precision, r_precision = at_r(counts, size - 1)
    return first, average_precision[back], r_precision[back]


class Halves:
    """Images that are sorted by class, in a search among themselves, with thresholds and their counts.

    `thresholds` (n, w), ascending, are similarities of relevant images, infinite where there is none; `targets` (n, w)
    are these images; `counts` (n, w) is how many irrelevant ones rank above them."""

    def __init__(self, search: Search, size: Tensor, width: int, side: int):
        self.search, self.size, self.width, self.side = search, size, width, side
        self.start = torch.searchsorted(search.labels, search.labels)
        self.slots = torch.arange(int(size.max()), device=size.device)
        self.tile = torch.empty(side * side, dtype=search.dtype, device=size.device)
        self.thresholds = self.tile.new_full((len(size), width), torch.inf)
        self.targets = torch.zeros_like(self.thresholds, dtype=torch.int64)
        self.counts = torch.zeros_like(self.targets)

    def find_thresholds(self) -> None:
        n, side, margin, size = len(self.size), self.side, 2 * self.search.error, self.size
        end = 0
        while end < n:
            begin, end = end, n if end + side >= n else int(self.start[end + side])  # whole classes only
            rows = slice(begin, end)
            window = self.tile.view(side, side)[: end - begin]
            self.search.fill(rows, rows, window[:, : end - begin])
            window[:, end - begin :] = -torch.inf
            window.fill_diagonal_(-torch.inf)
            absent = self.slots >= size[rows, None]
            columns = self.start[rows, None] - begin + self.slots.minimum(size[rows, None] - 1)
            relevant, place = window.gather(1, columns).masked_fill_(absent, -torch.inf).topk(self.width)
            if self.width > 1:
                # A relevant image with R images surely above it in the window is not among the R nearest and is left
                # out. Those that may be the best one are kept, because Recall@K needs it.
                window.scatter_(1, columns, -torch.inf)
                limit = -self.search.limits(relevant)[1]
                seen = torch.searchsorted(-largest(window, self.width), limit, right=True)
                ahead = torch.searchsorted(-relevant, -(relevant + margin), right=True)
                out = (ahead > 0) & (seen + ahead + 1 >= size[rows, None])
                relevant = relevant.masked_fill(out, torch.inf)
            self.thresholds[rows], order = relevant.masked_fill(relevant == -torch.inf, torch.inf).sort(1)
            self.targets[rows] = begin + columns.gather(1, place).gather(1, order)

    def count(self) -> None:
        n, side, group = len(self.size), self.side, self.search.labels
        blocks = [slice(begin, min(begin + side, n)) for begin in range(0, n, side)]
        for row, a in enumerate(blocks):
            for column, b in enumerate(blocks[row:], row):
                tile = self.tile[: len(group[a]) * len(group[b])].view(len(group[a]), len(group[b]))
                self.search.fill(a, b, tile)
                if column <= row + 1:  # a class is no wider than a tile
                    tile.masked_fill_(group[a, None] == group[b], -torch.inf)
                self.add(tile, 1, a.start, b.start)
                if column > row:
                    self.add(tile, 0, b.start, a.start)

    def add(self, tile: Tensor, dim: int, begin: int, others: int) -> None:
        """Add to the counts of each row (dim 1) or column (dim 0) of the tile, which are the images from `begin` on,
        how many of its entries rank above each of their thresholds. The entries are for the images from `others` on."""
        images = slice(begin, begin + tile.shape[1 - dim])
        lower, upper = self.search.limits(self.thresholds[images])
        reached = (lower <= tile.amax(dim)[:, None]).sum(1)
        slots = torch.arange(self.width, device=tile.device)
        some = None
        for slot, many in enumerate((reached[:, None] > slots).sum(0).tolist()):
            if many == 0:
                break
            if many > len(reached) // 2:
                active, part = torch.arange(len(reached), device=tile.device), tile
            else:
                if some is None:  # only few images reach this threshold: use only these for it and for the further ones
                    sparse = reached.argsort(descending=True)[:many]
                    some = tile.index_select(1 - dim, sparse)
                active, part = sparse[:many], some.narrow(1 - dim, 0, many)
            least, enough = lower[active, slot].unsqueeze(dim), upper[active, slot].unsqueeze(dim)
            sure, perhaps = count(part, enough, dim), count(part, least, dim)
            doubtful = (sure < perhaps).nonzero()[:, 0]
            if len(doubtful):
                rest = part.index_select(1 - dim, doubtful)
                least, enough = least.index_select(1 - dim, doubtful), enough.index_select(1 - dim, doubtful)
                pairs = ((rest >= least) & (rest < enough)).nonzero(as_tuple=True)
                self.search.check_open(len(pairs[0]), tile.numel())
                queries = begin + active[doubtful]
                exactly = self.exact_thresholds(queries, slot)[pairs[1 - dim]]
                above = self.search.above(queries[pairs[1 - dim]], others + pairs[dim], exactly)
                sure[doubtful] += torch.bincount(pairs[1 - dim][above], minlength=len(doubtful))
            self.counts[begin + active, slot] += sure

    def exact_thresholds(self, queries: Tensor, slot: int) -> Tensor:
        """(q,) float64. If only the first hit counts, all relevant images may be the best one."""
        if self.width > 1:
            return self.search.exact(queries, self.targets[queries, slot])
        columns = self.start[queries, None] + self.slots
        relevant = (self.slots < self.size[queries, None]) & (columns != queries[:, None])
        return self.search.best(queries, columns.clamp(max=len(self.size) - 1), relevant)
