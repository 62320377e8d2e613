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

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.metrics.ranks import per_query
from pipeline.metrics.similarities import check_embeddings, strips


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
    scores = per_query(embeddings, labels, gallery, gallery_labels, counting, depth=max(ks, default=1))
    first, average_precision, r_precision = scores
    recalls = _recalls(first, ks)
    return recalls | {"map@r": average_precision.nanmean().item(), "r_precision": r_precision.nanmean().item()}


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
    return _recalls(first, ks)


@torch.no_grad()
def nearest(embeddings: Tensor, queries: Tensor, k: int, *, gallery: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k most similar others of some images: (indices (q, k) int64, similarities (q, k) float32), best first.

    embeddings (n, d) float32; queries (q,) int64, rows of embeddings. Neighbours are rows of `gallery` (m, d), or of
    embeddings without a gallery; the query is then left out by its index. Of equal similarities the lower index comes
    first. If there are fewer than k images to find, k is reduced to their number.
    Raises ValueError as `retrieval` does, and IndexError for queries out of range.
    """
    check_embeddings(embeddings, gallery)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    searched = embeddings if gallery is None else gallery
    k = min(k, len(searched) - (gallery is None))
    indices, similarities = [], []
    for rows, strip, _ in strips(embeddings[queries], searched):
        if gallery is None:
            strip.scatter_(1, queries[rows, None], -torch.inf)
        values, order = _largest(strip, k)
        indices.append(order)
        similarities.append(values)
    return torch.cat(indices), torch.cat(similarities)


def _largest(strip: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k < columns largest values of each row and their columns, largest first; of equal values the lower column
    first. `topk` leaves the order of equal values open, but is several times as fast as a sort of whole rows. So only
    the rows are sorted whole in which a value beyond the k equals the last of them."""
    values, order = strip.topk(k + 1, dim=1)
    tied = (values[:, k - 1] == values[:, k]).nonzero()[:, 0]
    order, place = order[:, :k].sort(dim=1)
    values, best = values[:, :k].gather(1, place).sort(dim=1, descending=True, stable=True)
    order = order.gather(1, best)
    if len(tied):
        whole, columns = strip[tied].sort(dim=1, descending=True, stable=True)
        values[tied], order[tied] = whole[:, :k], columns[:, :k]
    return values, order


def _recalls(first: Tensor, ks: Sequence[int]) -> dict[str, float]:
    if any(k < 1 for k in ks):
        raise ValueError(f"every K of Recall@K must be at least 1, got {list(ks)}")
    return {f"recall@{k}": (first < k).double().mean().item() for k in ks}
