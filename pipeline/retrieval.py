"""Retrieval metrics, exact: Recall@K, MAP@R, R-Precision and the nearest neighbours themselves.

Similarity is the inner product, so callers pass rows of unit length (then it is the cosine, and ranks equally with the
Euclidean distance). Raw pixels go the same way: flatten, scale to unit length, pass. For a query, an image is RELEVANT
if it has the query's label; the query itself is left out by its index, never as "the nearest one".

- Recall@K: a query counts if any of its K nearest others is relevant (Song et al. 2016, arXiv 1511.06452, section 5).
  A query without any relevant image is a miss.
- R-Precision: the fraction of relevant images among the R nearest, R being the number of relevant images.
- MAP@R: (1/R) * sum over i = 1..R of (relevant among the i nearest / i where the i-th is relevant, else 0)
  (Musgrave, Belongie, Lim 2020, arXiv 2003.08505). Both are means over the queries with R > 0.

Ties never flatter: an irrelevant image whose similarity equals that of a relevant one ranks above it. So a network that
maps everything to one point scores 0, and the order of the images cannot matter.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

COUNTINGS = ("exact", "strict", "drop_first")
NEVER = torch.iinfo(torch.int64).max  # the count before the first hit of a query that has none


@torch.no_grad()
def retrieval(
    embeddings: Tensor,
    labels: Tensor,
    ks: Sequence[int],
    *,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    counting: str = "exact",
) -> dict[str, float]:
    """All retrieval metrics of one set of embeddings, as fractions.

    embeddings (n, d) float32, rows of unit length; labels (n,) int64; both on the same device. Without `gallery` every
    row is a query against all others (CUB, Cars, SOP); with `gallery` (m, d) and `gallery_labels` (m,) the embeddings
    are queries and only the gallery is searched (In-Shop). Returns {"recall@K": for every K, "map@r", "r_precision"},
    the last two nan if no query has a relevant image.

    `counting` names how Recall@K counts (MAP@R and R-Precision are always exact):
    - "exact": as above, ties rank against the query.
    - "strict": only irrelevant images of strictly greater similarity rank above the best relevant one (the released
      In-Shop code): ties flatter, a collapsed network gets 1.0.
    - "drop_first": rank everything, the query included, ties by lower index; drop the first as "the query itself"; look
      for the label in the next K (Proxy-AN's code; ProxyGML's on SOP). Where images repeat, the one dropped may be
      another, and the query then finds itself. Not for a gallery.
    Where no two images of different classes are equally similar to a query the three agree.

    Raises ValueError for empty input, K < 1, nan or infinite values, shapes or types that do not fit.
    """
    first, average_precision, r_precision = _per_query(embeddings, labels, gallery, gallery_labels, counting)
    scores = _recalls(first, ks)
    return scores | {"map@r": average_precision.nanmean().item(), "r_precision": r_precision.nanmean().item()}


@torch.no_grad()
def recall_at_k(
    embeddings: Tensor,
    labels: Tensor,
    ks: Sequence[int],
    *,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
) -> dict[str, float]:
    """`retrieval`'s {"recall@K": ...} alone, cheaper: what training looks at after every epoch."""
    first, _, _ = _per_query(embeddings, labels, gallery, gallery_labels, "exact", first_only=True)
    return _recalls(first, ks)


@torch.no_grad()
def nearest(embeddings: Tensor, queries: Tensor, k: int, *, gallery: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k most similar others of some images: (indices (q, k) int64, similarities (q, k) float32), best first.

    embeddings (n, d) float32; queries (q,) int64, rows of embeddings; neighbours are rows of `gallery` (m, d) or,
    without one, of embeddings, the query left out by its index. Equal similarities: lower index first. k shrinks to
    what there is.
    Raises ValueError as `retrieval` does, and IndexError for queries out of range.
    """
    _check(embeddings, gallery)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    searched = embeddings if gallery is None else gallery
    k = min(k, len(searched) - (gallery is None))
    indices, similarities = [], []
    for rows, strip in _strips(embeddings[queries], searched):
        if gallery is None:
            strip.scatter_(1, queries[rows, None], -torch.inf)
        values, order = strip.sort(dim=1, descending=True, stable=True)
        indices.append(order[:, :k])
        similarities.append(values[:, :k].clone())
    return torch.cat(indices), torch.cat(similarities)


def _recalls(first: Tensor, ks: Sequence[int]) -> dict[str, float]:
    if any(k < 1 for k in ks):
        raise ValueError(f"every K of Recall@K must be at least 1, got {list(ks)}")
    return {f"recall@{k}": (first < k).double().mean().item() for k in ks}


def _per_query(
    queries: Tensor,
    labels: Tensor,
    gallery: Tensor | None,
    gallery_labels: Tensor | None,
    counting: str,
    first_only: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """What each query scores: (irrelevant images ranked above the first hit (n,) int64, NEVER where there is no hit;
    average precision at R (n,) float64; R-precision (n,) float64; the latter two nan where R = 0 or if first_only)."""
    _check(queries, gallery)
    if counting not in COUNTINGS:
        raise ValueError(f"counting must be one of {', '.join(COUNTINGS)}, got {counting!r}")
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery and gallery_labels go together")
    if counting == "drop_first" and gallery is not None:
        raise ValueError("drop_first is for images searched among themselves: a gallery does not hold the query")
    searched, searched_labels = (
        (queries, labels) if gallery is None or gallery_labels is None else (gallery, gallery_labels)
    )
    if labels.shape != queries.shape[:1] or searched_labels.shape != searched.shape[:1]:
        raise ValueError("one label per row is needed")

    # A class's rows: members[start : start + size], in ascending order.
    members = searched_labels.argsort(stable=True)
    ordered = searched_labels[members]
    start = torch.searchsorted(ordered, labels)
    size = torch.searchsorted(ordered, labels, right=True) - start
    slots = torch.arange(max(1, int(size.max())), device=labels.device)
    n, blank = len(queries), len(searched)  # the column `blank` is padding: always -inf
    first = torch.empty(n, dtype=torch.int64, device=labels.device)
    average_precision = torch.full((n,), torch.nan, dtype=torch.float64, device=labels.device)
    r_precision = average_precision.clone()
    for rows, strip in _strips(queries, searched):
        columns = members[(start[rows, None] + slots).clamp(max=blank - 1)]
        columns = torch.where(slots < size[rows, None], columns, blank)
        if counting == "drop_first":
            dropped_first = _first_hit_after_drop(strip.clone(), columns)
        if gallery is None:
            strip.scatter_(1, torch.arange(rows.start, rows.stop, device=labels.device)[:, None], -torch.inf)
        relevant = strip.gather(1, columns)
        strip.scatter_(1, columns, -torch.inf)  # from here on the strip holds irrelevant images only
        if counting == "drop_first":
            first[rows] = dropped_first
        else:
            best = relevant.amax(1, keepdim=True)
            above = strip > best if counting == "strict" else strip >= best
            first[rows] = torch.where(best[:, 0] == -torch.inf, NEVER, above.sum(1))
        if not first_only:
            relevant = relevant.sort(1, descending=True).values
            others = strip.topk(min(len(slots), strip.shape[1]), dim=1).values
            # Of the R largest irrelevant similarities, how many are at least as large as each relevant one.
            counts = torch.searchsorted(-others, -relevant, right=True)
            average_precision[rows], r_precision[rows] = _at_r(counts, size[rows] - int(gallery is None))
    return first, average_precision, r_precision


def _first_hit_after_drop(strip: Tensor, columns: Tensor) -> Tensor:
    """How many images rank above the first hit (rows,) int64, NEVER without one, if all are ranked, the query too,
    equal similarities by lower index, and the first is dropped whatever it is. Overwrites strip (rows, m); columns
    (rows, w): those of the query's class, ascending, the query's own included."""
    strip.scatter_(1, strip.argmax(1, keepdim=True), -torch.inf)
    best, place = strip.gather(1, columns).max(1, keepdim=True)
    strip.scatter_(1, columns, -torch.inf)
    earlier = torch.arange(strip.shape[1], device=strip.device) < columns.gather(1, place)
    above = ((strip > best) | ((strip == best) & earlier)).sum(1)
    return torch.where(best[:, 0] == -torch.inf, NEVER, above)


def _at_r(counts: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """(Average precision at R, R-precision), (n,) float64 each, nan where R = 0.

    counts (n, w) integer: irrelevant images ranked above the 1st, 2nd, ... relevant one (a count of R or more need not
    be exact: such an image is not among the R nearest); number (n,): R, of which w is at least the largest.
    """
    place = torch.arange(1, counts.shape[1] + 1, device=counts.device)
    rank = counts + place
    hits = (rank <= number[:, None]) & (place <= number[:, None])
    return (hits * (place / rank.double())).sum(1) / number, hits.sum(1).double() / number


def _strips(queries: Tensor, searched: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Similarities of a few queries at a time to everything searched: (rows, (rows, m + padding) float32), the columns
    of padding -inf. The buffer is reused: done with before the next is asked for.

    Two equal pairs of vectors must get equal bits wherever they stand, or a tie would be decided by rounding and the
    order of the images. A matrix product adds up each entry in an order of k that depends on the shapes only, but for
    remainders at the edges and for a single row: so every product here has one shape, in multiples of 64.
    """
    columns = len(searched) + 64 - len(searched) % 64
    height = max(64, min(512, 2**24 // columns) // 64 * 64)
    padded = torch.nn.functional.pad(searched, (0, 0, 0, columns - len(searched))).T
    product = queries.new_empty(height, columns)
    with _full_float32(queries.device):
        for begin in range(0, len(queries), height):
            block = queries[begin : begin + height]
            torch.mm(torch.nn.functional.pad(block, (0, 0, 0, height - len(block))), padded, out=product)
            strip = product[: len(block)]
            strip[:, len(searched) :] = -torch.inf
            yield slice(begin, begin + len(block)), strip


@contextmanager
def _full_float32(device: torch.device) -> Iterator[None]:
    """Products in float32 whatever the caller has set for training: no TF32 (10 bits of mantissa: similarities off by
    up to 1e-3, so neighbours closer than that swap, and ties appear), no autocast."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _check(queries: Tensor, gallery: Tensor | None) -> None:
    for name, values in (("embeddings", queries), ("gallery", gallery)):
        if values is None:
            continue
        if values.ndim != 2 or values.dtype != torch.float32:
            raise ValueError(f"{name} must be (rows, dimensions) float32, got {tuple(values.shape)} {values.dtype}")
        if values.numel() == 0:
            raise ValueError(f"{name} is empty: {tuple(values.shape)}")
        bad = ~torch.isfinite(values).all(1)
        if bad.any():
            raise ValueError(
                f"{int(bad.sum())} rows of {name} hold nan or infinity, the first is {int(bad.int().argmax())}"
            )
    if gallery is not None and gallery.shape[1] != queries.shape[1]:
        raise ValueError(f"embeddings have {queries.shape[1]} dimensions, the gallery {gallery.shape[1]}")
