"""Retrieval metrics, exact: Recall@K, MAP@R, R-Precision and the nearest neighbours themselves.

Similarity is the inner product, so callers pass rows of unit length: it is then the cosine, and gives the same ranks as
the Euclidean distance. For raw pixels: flatten them, scale them to unit length, and pass them. For a query, an image is
RELEVANT if it has the query's label. The query itself is left out by its index, never as "the nearest one".

- Recall@K: a query counts if any of its K nearest others is relevant (Song et al. 2016, arXiv 1511.06452, section 5).
  A query without any relevant image is a miss.
- R-Precision: the fraction of relevant images among the R nearest, where R is the number of relevant images.
- MAP@R: (1/R) * sum over i = 1..R of (relevant among the i nearest / i if the i-th is relevant, else 0)
  (Musgrave, Belongie, Lim 2020, arXiv 2003.08505). MAP@R and R-Precision are means over the queries with R > 0.

Ties never improve a score: an irrelevant image with the same similarity as a relevant one ranks above it. A network
that maps everything to one point therefore scores 0, and the order of the images cannot matter.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.metrics.halves import by_halves
from pipeline.metrics.ranks import Scores, Search, by_strips, largest
from pipeline.metrics.similarities import Products, Rows, check_embeddings, decide

COUNTINGS = ("exact", "strict", "drop_first")
NARROW = 32  # by_halves counts faster if no class has more images than this


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
    row is a query against all others (CUB, Cars, SOP). With `gallery` (m, d) and `gallery_labels` (m,) the embeddings
    are queries, and only the gallery is searched (In-Shop). Returns {"recall@K": for every K, "map@r", "r_precision"};
    the last two are nan if no query has a relevant image.

    `counting` says how Recall@K counts (MAP@R and R-Precision are always exact):
    - "exact": as above, ties rank against the query.
    - "strict": only irrelevant images of strictly greater similarity rank above the best relevant one (the released
      In-Shop code). Ties improve the score, and a collapsed network gets 1.0.
    - "drop_first": rank everything, including the query, ties by lower index; drop the first as "the query itself";
      look for the label in the next K (Proxy-AN's code; ProxyGML's on SOP). If images repeat, another image than the
      query may be dropped, and the query then finds itself. Not for a gallery.

    The three agree if no two images of different classes are equally similar to a query.

    Raises ValueError for empty input, K < 1, nan or infinite values, shapes or types that do not fit.
    """
    scores = per_query(embeddings, labels, gallery, gallery_labels, counting)
    first, average_precision, r_precision = scores
    return recalls(first, ks) | {
        "map@r": average_precision.nanmean().item(),
        "r_precision": r_precision.nanmean().item(),
    }


@torch.no_grad()
def recall_at_k(
    embeddings: Tensor,
    labels: Tensor,
    ks: Sequence[int],
    *,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
) -> dict[str, float]:
    """Only the {"recall@K": ...} of `retrieval`, with exact counting, at a lower cost. Training evaluates with it.
    Arguments and errors are as in `retrieval`."""
    first, _, _ = per_query(embeddings, labels, gallery, gallery_labels, "exact", first_only=True)
    return recalls(first, ks)


@torch.no_grad()
def nearest(
    embeddings: Tensor,
    queries: Tensor,
    k: int,
    *,
    gallery: Tensor | None = None,
    left_out: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The k most similar others of some images: (indices (q, k) int64, similarities (q, k) float32), best first.

    embeddings (n, d) float32; queries (q,) int64, rows of embeddings. Neighbours are rows of `gallery` (m, d), or of
    embeddings without a gallery; the query is then left out by its index. Of equal similarities the lower index comes
    first. If there are fewer than k images to find, k is reduced to their number. `left_out` gives what else is
    left out of the searches of some queries (q,): bool (q, images). A query that then has fewer than k images to find
    gets the index -1 and the similarity -inf in place of the others.
    Raises ValueError as `retrieval` does, and IndexError for queries out of range.
    """
    check_embeddings(embeddings, gallery)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    rows = Rows(embeddings)
    found = Products(rows.take(queries), rows if gallery is None else Rows(gallery))
    k = min(k, len(found.searched) - (gallery is None))

    def compute(products: Products) -> tuple[Tensor, Tensor]:
        parts = []
        for places, strip in products.strips():
            if gallery is None:
                strip.scatter_(1, queries[places, None], -torch.inf)
            if left_out is not None:
                strip[:, : len(products.searched)].masked_fill_(left_out(queries[places]), -torch.inf)
            parts.append(_nearest(products, places, strip, k))
        indices, similarities = zip(*parts, strict=True)
        return torch.cat(indices), torch.cat(similarities)

    return decide(found, compute)


def _nearest(products: Products, rows: Tensor, strip: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`nearest` for the queries `rows`, from their similarities (rows, m + padding)."""
    last = largest(strip, k)[:, -1:]
    candidates = (strip >= last - 2 * products.error) & (strip > -torch.inf)
    if products.dtype == torch.float64:
        # Images as near as the k-th are tied with it. Of a collapsed network that is all, and k of them are enough.
        tied = candidates & (strip <= last + 2 * products.error)
        candidates &= ~tied | (tied.cumsum(1) <= k)
    place, column = candidates.nonzero(as_tuple=True)
    products.check_open(len(place) - k * len(rows), strip.numel())
    values = products.exact(rows[place], column)
    order = values.argsort(descending=True, stable=True)
    order = order[place[order].argsort(stable=True)]
    places, slots = (torch.arange(count, device=rows.device) for count in (len(rows), k))
    begin, end = (torch.searchsorted(place, places, right=right)[:, None] for right in (False, True))
    # The last entry is for queries that have fewer than k images to find.
    column, values = (torch.cat([of, of.new_full((1,), none)]) for of, none in ((column, -1), (values, -torch.inf)))
    order = torch.cat([order, order.new_full((1,), len(order))])
    best = order[torch.where(begin + slots < end, begin + slots, len(order) - 1)]
    return column[best], values[best].float()


@torch.no_grad()
def per_query(
    queries: Tensor,
    labels: Tensor,
    gallery: Tensor | None,
    gallery_labels: Tensor | None,
    counting: str,
    first_only: bool = False,
) -> Scores:
    """The ranks, by the faster of two ways. Arguments, `counting` and errors are as in
    `retrieval`. With first_only, only the first of the Scores is computed."""
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
    rows = Rows(queries)
    search = Search(rows, rows if gallery is None else Rows(gallery), labels=labels, searched_labels=searched_labels)
    widest = int(labels.unique(return_counts=True)[1].max())
    side = 1024 if queries.is_cpu else 4096  # on a CPU a tile fits in the cache; a GPU needs larger ones
    if gallery is None and counting == "exact" and widest <= (side if first_only else NARROW):
        return decide(search, lambda search: by_halves(search, first_only, side))
    return decide(search, lambda search: by_strips(search, counting, first_only))


def recalls(first: Tensor, ks: Sequence[int]) -> dict[str, float]:
    """{"recall@K": ...} from the number of irrelevant images before each query's first hit, (q,) int64."""
    if any(k < 1 for k in ks):
        raise ValueError(f"every K of Recall@K must be at least 1, got {list(ks)}")
    return {f"recall@{k}": (first < k).double().mean().item() for k in ks}
