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
    """`retrieval`'s {"recall@K": ...} alone, cheaper: what training looks at after every epoch."""
    first, _, _ = per_query(embeddings, labels, gallery, gallery_labels, "exact", first_only=True)
    return _recalls(first, ks)


@torch.no_grad()
def nearest(embeddings: Tensor, queries: Tensor, k: int, *, gallery: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k most similar others of some images: (indices (q, k) int64, similarities (q, k) float32), best first.

    embeddings (n, d) float32; queries (q,) int64, rows of embeddings; neighbours are rows of `gallery` (m, d) or,
    without one, of embeddings, the query left out by its index. Equal similarities: lower index first. k shrinks to
    what there is.
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
        values, order = strip.sort(dim=1, descending=True, stable=True)
        indices.append(order[:, :k])
        similarities.append(values[:, :k].clone())
    return torch.cat(indices), torch.cat(similarities)


def _recalls(first: Tensor, ks: Sequence[int]) -> dict[str, float]:
    if any(k < 1 for k in ks):
        raise ValueError(f"every K of Recall@K must be at least 1, got {list(ks)}")
    return {f"recall@{k}": (first < k).double().mean().item() for k in ks}
