"""The ranks behind the retrieval metrics: for each query, how many irrelevant images come before its relevant ones.

No n x n matrix is ever stored or sorted. `by_halves` is for many small classes that are searched among themselves
(SOP); `by_strips` is for everything. At SOP's size (60,502 x 512, CPU) all ranks take 0.73 of the time of the plain
product.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipeline.metrics.similarities import check_embeddings, full_float32, in_float64, strips

COUNTINGS = ("exact", "strict", "drop_first")
NARROW = 32  # by_halves counts faster if no class has more images than this
SHALLOW = 64  # up to this depth, the largest similarities, which MAP@R needs anyway, replace counting
NEVER = torch.iinfo(torch.int64).max  # the count before the first hit, for a query without a hit

# The scores of each query: the number of irrelevant images ranked above its first hit, (n,) int64, NEVER without a hit;
# average precision at R and R-precision, (n,) float64 each, nan if R = 0. If only the first was asked for, the other
# two have no meaning.
Scores = tuple[Tensor, Tensor, Tensor]

# Float32 has steps of 6e-8 below 1. It can tell the nearest images of a query apart if they differ by this much.
CLEAR = 1e-3
TOLERATED = 1e-4  # if float32 changes the metrics of a sample of queries by more, all queries are searched in float64


def per_query(
    queries: Tensor,
    labels: Tensor,
    gallery: Tensor | None,
    gallery_labels: Tensor | None,
    counting: str,
    first_only: bool = False,
    depth: int | None = None,
) -> Scores:
    """The ranks, by the faster of the two methods. Arguments, `counting` and errors are as in
    `pipeline.metrics.retrieval.retrieval`. With first_only, only the first of the Scores is computed. With `depth`,
    first counts of `depth` or more need not be exact."""
    check_embeddings(queries, gallery)
    if counting not in COUNTINGS:
        raise ValueError(f"counting must be one of {', '.join(COUNTINGS)}, got {counting!r}")
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery and gallery_labels: give both or neither")
    if counting == "drop_first" and gallery is not None:
        raise ValueError("drop_first is for images searched among themselves: a gallery does not hold the query")
    searched = queries if gallery is None else gallery
    searched_labels = labels if gallery_labels is None else gallery_labels
    if labels.shape != queries.shape[:1] or searched_labels.shape != searched.shape[:1]:
        raise ValueError(f"one label per row is needed, got {tuple(labels.shape)} and {tuple(searched_labels.shape)}")
    if not resolved(queries, labels, searched, searched_labels, gallery is None):
        queries = in_float64(queries)
        searched = queries if gallery is None else in_float64(searched)
    widest = int(labels.unique(return_counts=True)[1].max())
    side = 1024 if queries.device.type == "cpu" else 4096  # on a CPU a tile fits in the cache; a GPU needs larger ones
    if gallery is None and counting == "exact" and widest <= (side if first_only else NARROW):
        return by_halves(queries, labels, first_only, side)
    own = torch.arange(len(queries), device=queries.device) if gallery is None else None
    return by_strips(queries, labels, searched, searched_labels, counting, first_only, own, depth)


def resolved(
    queries: Tensor, labels: Tensor, searched: Tensor, searched_labels: Tensor, among_themselves: bool
) -> bool:
    """Whether float32 tells similarities apart well enough. The similarities of embeddings in a narrow cone differ by
    less than the steps of float32. Unequal similarities then become equal, and count as ties against the query.

    128 to 512 of the queries, evenly spaced, are tested. If the similarities of their nearest images are not `CLEAR`,
    these queries are searched in float32 and in float64. The average precision plus the first hit's 1/rank must then
    agree within `TOLERATED`, on average.
    """
    count = min(len(queries), max(128, min(512, len(queries) // 64)))
    places = torch.arange(count, device=queries.device) * len(queries) // count
    with full_float32(queries.device):
        nearest = (queries[places] @ searched.T).topk(min(SHALLOW, len(searched))).values
    # The nearest image may be the query itself.
    if bool((nearest[:, min(1, nearest.shape[1] - 1)] - nearest[:, -1]).min() > CLEAR):
        return True
    found = []
    for exact in (False, True):
        everything = in_float64(searched) if exact else searched
        some = everything if among_themselves else in_float64(queries) if exact else queries
        own = places if among_themselves else None
        sample = by_strips(some[places], labels[places], everything, searched_labels, "exact", False, own)
        found.append(sample[1] + 1 / (sample[0].double() + 1))
    return not bool((found[0] - found[1]).abs().nanmean() > TOLERATED)


def by_strips(
    queries: Tensor,
    labels: Tensor,
    searched: Tensor,
    searched_labels: Tensor,
    counting: str,
    first_only: bool,
    own: Tensor | None,
    depth: int | None = None,
) -> Scores:
    """The ranks of any search, a few queries at a time against all searched images. `own` (n,) int64 are the rows of
    the queries among the searched images, or None if the queries are not among them."""
    members = searched_labels.argsort(stable=True)
    ordered = searched_labels[members]
    start = torch.searchsorted(ordered, labels)  # a query's class: members[start : start + size], ascending
    size = torch.searchsorted(ordered, labels, right=True) - start
    number = size - int(own is not None)
    slots = torch.arange(max(1, int(size.max())), device=labels.device)
    blank = len(searched)  # a column of padding
    shallow = not first_only and counting == "exact" and depth is not None and depth <= max(len(slots), SHALLOW)
    kept = max(len(slots), depth) if shallow and depth is not None else len(slots)
    results = []
    for rows, strip, buffer in strips(queries, searched):
        columns = members[(start[rows, None] + slots).clamp(max=blank - 1)]
        columns = torch.where(slots < size[rows, None], columns, blank)
        dropped_first = _first_hit_after_drop(strip.clone(), columns) if counting == "drop_first" else None
        if own is not None:
            strip.scatter_(1, own[rows, None], -torch.inf)
        relevant = strip.gather(1, columns)
        strip.scatter_(1, columns, -torch.inf)  # from here on the strip holds only irrelevant images
        if not first_only:
            # For each relevant similarity: how many of the R largest irrelevant ones are at least as large.
            largest = _largest(strip, min(kept, strip.shape[1]))
            counts = torch.searchsorted(-largest, -_descending(relevant), right=True)
        if shallow:
            above = counts[:, 0]
        else:
            compare = torch.gt if counting == "strict" else torch.ge
            above = _count(compare, strip, relevant.amax(1, keepdim=True), 1, buffer).long()
        first = torch.where(number[rows] > 0, above, NEVER) if dropped_first is None else dropped_first
        results.append((first, first if first_only else counts))
    first, counts = (torch.cat(parts) for parts in zip(*results, strict=True))
    return (first, first, first) if first_only else (first, *_at_r(counts, number))


def by_halves(embeddings: Tensor, labels: Tensor, first_only: bool, side: int) -> Scores:
    """The ranks of images searched among themselves. Classes have at most `side` images (a multiple of 64); about a
    dozen is best. Similarities are symmetric, so each tile (side, side) on or right of the diagonal is used for its
    rows and for its columns.

    There are two passes. First the images are sorted by class, so that windows along the diagonal hold all similarities
    of relevant images: the thresholds. Then the tiles are computed, and for each threshold the irrelevant similarities
    that reach it are counted, without sorting. Most tiles hold few or none for a query, which their maxima show.
    """
    n, device = len(embeddings), embeddings.device
    _, group, sizes = labels.unique(return_inverse=True, return_counts=True)
    order = group.argsort(stable=True)
    group = group[order]
    size = sizes[group]
    start = torch.searchsorted(group, group)
    blocks = -(-n // side)
    padded = torch.nn.functional.pad(embeddings[order], (0, 0, 0, (blocks + 1) * side - n))
    group = torch.nn.functional.pad(group, (0, blocks * side - n), value=-1)
    slots = torch.arange(int(sizes.max()), device=device)
    width = 1 if first_only else len(slots)
    tile, buffer = embeddings.new_empty(side, side), embeddings.new_empty(side * side)

    # The thresholds of each image, ascending; infinite if there is none.
    thresholds = embeddings.new_full((blocks * side, width), torch.inf)
    end = 0
    with full_float32(device):
        while end < n:
            begin, end = end, n if end + side >= n else int(start[end + side])  # whole classes only
            square = padded[begin : begin + side]
            window = torch.mm(square, square.T, out=tile)[: end - begin]
            window[:, end - begin :] = -torch.inf
            window.fill_diagonal_(-torch.inf)
            rows = slice(begin, end)
            columns = start[rows, None] - begin + slots.minimum(size[rows, None] - 1)
            relevant = window.gather(1, columns).masked_fill_(slots >= size[rows, None], -torch.inf)
            relevant = relevant.topk(width).values
            if not first_only:
                # A relevant image with R images above it in the window is not among the R nearest and is left out. The
                # best one is kept, because Recall@K needs it.
                window.scatter_(1, columns, -torch.inf)
                seen = torch.searchsorted(-_largest(window, width), -relevant, right=True)
                out = seen + slots + 1 >= size[rows, None]
                relevant[:, 1:].masked_fill_(out[:, 1:], torch.inf)
            thresholds[rows] = relevant.masked_fill_(relevant == -torch.inf, torch.inf).sort(1).values

        counts = torch.zeros_like(thresholds)
        for row in range(blocks):
            a = slice(row * side, (row + 1) * side)
            for column in range(row, blocks):
                b = slice(column * side, (column + 1) * side)
                torch.mm(padded[a], padded[b].T, out=tile)
                if column <= row + 1:  # a class is no wider than a tile
                    tile.masked_fill_(group[a, None] == group[b], -torch.inf)
                tile[:, max(0, n - column * side) :] = -torch.inf
                _add_counts(tile, 1, thresholds[a], counts[a], buffer)
                if column > row:
                    _add_counts(tile, 0, thresholds[b], counts[b], buffer)

    # Put the best first again. Thresholds that were left out get a count that keeps them out.
    place = (thresholds < torch.inf).sum(1, keepdim=True) - 1 - slots[:width]
    counts = counts.gather(1, place.clamp(min=0)).masked_fill_(place < 0, n)[:n].long()
    back = order.argsort()
    first = torch.where(size > 1, counts[:, 0], NEVER)[back]
    if first_only:
        return first, first, first
    average_precision, r_precision = _at_r(counts, size - 1)
    return first, average_precision[back], r_precision[back]


def _add_counts(tile: Tensor, dim: int, thresholds: Tensor, counts: Tensor, buffer: Tensor) -> None:
    """Add to counts (side, w), for each row (dim 1) or column (dim 0) of the tile, how many of its entries are at least
    as large as each of its thresholds (side, w), which ascend."""
    reached = (thresholds <= tile.amax(dim)[:, None]).sum(1)
    slots = torch.arange(thresholds.shape[1], device=tile.device)
    some = None
    for slot, many in enumerate((reached[:, None] > slots).sum(0).tolist()):
        if many == 0:
            break
        if many > len(reached) // 2:
            limits = thresholds[:, slot].contiguous().unsqueeze(dim)
            counts[:, slot] += _count(torch.ge, tile, limits, dim, buffer)
            continue
        if some is None:  # only few rows reach this threshold: use only these for it and for the further ones
            active = reached.argsort(descending=True)[:many]
            some, limits = tile.index_select(1 - dim, active), thresholds[active].T.contiguous()
        part = some.narrow(1 - dim, 0, many)
        counts[active[:many], slot] += _count(torch.ge, part, limits[slot, :many].unsqueeze(dim), dim, buffer)


def _count(compare: Callable[..., Tensor], values: Tensor, limits: Tensor, dim: int, buffer: Tensor) -> Tensor:
    """compare(values, limits).sum(dim), as float32 (exact up to 2**24). On a CPU, writing comparisons as floats and
    adding these is five times as fast as with booleans, whose kernels are not vectorised. buffer is flat and has at
    least as many elements as values."""
    return compare(values, limits, out=buffer[: values.numel()].view(values.shape)).sum(dim)


def _largest(strip: Tensor, k: int) -> Tensor:
    """strip.topk(k).values, but faster. The row is divided into groups of 16; its k largest values are in the k groups
    with the largest maxima. strip (rows, a multiple of 64)."""
    folded = strip.view(len(strip), 16, -1)
    if folded.shape[2] > 2 * k:
        groups = folded.amax(1).topk(k, sorted=False).indices
        strip = folded.gather(2, groups[:, None].expand(-1, 16, -1)).flatten(1)
    if not strip.is_cpu:
        return strip.topk(k).values
    # numpy's selection is vectorised and takes a seventh of the time of torch's.
    return _descending(torch.from_numpy(np.partition(strip.numpy(), -k, axis=1)[:, -k:]))


def _descending(values: Tensor) -> Tensor:
    """Each row of values (rows, k), sorted from the largest to the smallest. On a CPU numpy's sort takes a tenth of the
    time of torch's."""
    if not values.is_cpu:
        return values.sort(1, descending=True).values
    return torch.from_numpy(-np.sort(-values.numpy(), axis=1))


def _first_hit_after_drop(strip: Tensor, columns: Tensor) -> Tensor:
    """How many images rank above the first hit, (rows,) int64, NEVER without a hit. All images are ranked, including
    the query; equal similarities are ranked by lower index; the first image is dropped, whatever it is. strip (rows, m)
    is overwritten. columns (rows, w) are those of the query's class, ascending, including the query's own column."""
    strip.scatter_(1, strip.argmax(1, keepdim=True), -torch.inf)
    best, place = strip.gather(1, columns).max(1, keepdim=True)
    strip.scatter_(1, columns, -torch.inf)
    earlier = torch.arange(strip.shape[1], device=strip.device) < columns.gather(1, place)
    above = ((strip > best) | ((strip == best) & earlier)).sum(1)
    return torch.where(best[:, 0] == -torch.inf, NEVER, above)


def _at_r(counts: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """(Average precision at R, R-precision), (n,) float64 each, nan if R = 0.

    counts (n, w) integer: how many irrelevant images are ranked above the 1st, 2nd, ... relevant one. A count of R or
    more need not be exact, because such an image is not among the R nearest. number (n,) is R; w is at least the
    largest R.
    """
    place = torch.arange(1, counts.shape[1] + 1, device=counts.device)
    rank = counts + place
    hits = (rank <= number[:, None]) & (place <= number[:, None])
    return (hits * (place / rank.double())).sum(1) / number, hits.sum(1).double() / number
