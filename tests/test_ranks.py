"""Ranks are those of exact arithmetic, whatever a product's kernel rounds within its error bound."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.metrics import retrieval as ways
from pipeline.metrics.ranks import NEVER
from pipeline.metrics.retrieval import nearest, per_query
from pipeline.metrics.similarities import Products, Rows, decide

NARROW_LIMITS = (0, 32)  # few images a class: by strips, and by halves


def images(n: int, classes: int, dimensions: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings of unit length, of which many are copies of others, or of copies that differ by 1e-7 to 1e-5."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, dimensions, generator=generator)
    points[n // 2 :] = points[: n - n // 2].clone()
    apart = 10 ** -(5 + 2 * torch.rand(n, 1, generator=generator)) * torch.randn(n, dimensions, generator=generator)
    points[3 * n // 4 :] += apart[3 * n // 4 :]
    return normalize(points), torch.randint(classes, (n,), generator=generator)


def truth(queries: Tensor, labels: Tensor, searched: Tensor, searched_labels: Tensor) -> Tensor:
    """Images above the first hit, in float64; similarities are ties if they differ by less than 1e-13."""
    exact = [normalize(rows.double(), eps=1e-300) for rows in (queries, searched)]
    similarity = exact[0] @ exact[1].T
    relevant = labels[:, None] == searched_labels
    if queries is searched:
        similarity.fill_diagonal_(-torch.inf)
        relevant.fill_diagonal_(False)
    best = similarity.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)
    above = ((similarity >= best - 1e-13) & ~relevant).sum(1)
    return torch.where(relevant.any(1), above, NEVER)


def kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets one kernel of products after the other: those of OpenBLAS and of MKL, and some that nobody wrote."""
    fill = Products.fill

    def by_torch(self: Products, rows: Any, columns: slice, out: Tensor) -> Tensor:
        return out.copy_(self.queries.part(rows, self.dtype) @ self.searched.part(columns, self.dtype).T)

    def rounded(self: Products, rows: Any, columns: slice, out: Tensor) -> Tensor:
        """As wrong as the bound allows, in a direction that changes from pair to pair and from call to call."""
        exact = replace(self, dtype=torch.float64)
        products = fill(exact, rows, columns, torch.empty(out.shape, dtype=torch.float64))
        signs = torch.randint(0, 2, out.shape, generator=generator) * 2.0 - 1
        width = self.queries.values.shape[1]  # the 8 further roundings of the bound are made elsewhere
        return out.copy_(products + self.error * width / (width + 8) * signs)

    def in_float64(products: Products, compute: Any) -> Any:
        return compute(replace(products, dtype=torch.float64))

    generator = torch.Generator().manual_seed(0)
    yield "OpenBLAS"
    for name, kernel in (("MKL", by_torch), ("rounded", rounded), ("rounded again", rounded)):
        with monkeypatch.context() as patch:
            patch.setattr(Products, "fill", kernel)
            yield name
    with monkeypatch.context() as patch:
        patch.setattr(ways, "decide", in_float64)
        yield "float64"


@pytest.mark.parametrize(("classes", "dimensions"), [(4, 3), (60, 3), (4, 64), (60, 512)])
def test_every_kernel_gives_the_same_ranks(classes: int, dimensions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = images(400, classes, dimensions)
    gallery, gallery_labels = images(300, classes, dimensions, seed=1)
    gallery[:100] = embeddings[:100]
    searches: list[tuple[Any, ...]] = [
        (*where, counting) for where in ((None, None), (gallery, gallery_labels)) for counting in ("exact", "strict")
    ]
    found: dict[Any, list[list[bytes]]] = {}
    for _ in kernels(monkeypatch):
        for search in searches:
            for limit in NARROW_LIMITS:
                with monkeypatch.context() as patch:
                    patch.setattr(ways, "NARROW", limit)
                    scores = per_query(embeddings, labels, *search)
                first = per_query(embeddings, labels, *search, first_only=True)[0]
                parts = [scores[0], first, *scores[1:]]
                found.setdefault(search[1:], []).append([part.numpy().tobytes() for part in parts])
    for results in found.values():
        assert len(results) == 10
        assert all(result == results[0] for result in results)
    firsts = per_query(embeddings, labels, None, None, "exact")[0]
    assert firsts.tolist() == truth(embeddings, labels, embeddings, labels).tolist()
    firsts = per_query(embeddings, labels, gallery, gallery_labels, "exact")[0]
    assert firsts.tolist() == truth(embeddings, labels, gallery, gallery_labels).tolist()


def test_every_kernel_drops_the_same_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float64 products decide this legacy count's ties. So these images are copies, or clearly different."""
    embeddings, labels = images(400, 30, 64)
    embeddings[300:] = embeddings[:100]
    results = [per_query(embeddings, labels, None, None, "drop_first")[0].tolist() for _ in kernels(monkeypatch)]
    assert all(result == results[0] for result in results)


def test_every_kernel_gives_the_same_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, _ = images(400, 4, 64)
    results = [nearest(embeddings, torch.arange(400), 8) for _ in kernels(monkeypatch)]
    for indices, similarities in results:
        assert torch.equal(indices, results[0][0]) and torch.equal(similarities, results[0][1])


@given(st.integers(0, 2**32), st.integers(2, 120), st.sampled_from([1, 2, 7, 40]), st.sampled_from([2, 5, 64]))
def test_the_order_of_dimensions_does_not_matter(seed: int, n: int, classes: int, dimensions: int) -> None:
    embeddings, labels = images(n, classes, dimensions, seed)
    order = torch.randperm(dimensions, generator=torch.Generator().manual_seed(seed))
    scores = per_query(embeddings, labels, None, None, "exact")
    for values, others in zip(scores, per_query(embeddings[:, order], labels, None, None, "exact"), strict=True):
        assert values.numpy().tobytes() == others.numpy().tobytes()


@pytest.mark.parametrize("gap", [1e-6, 1e-9, 1e-11, 1e-12, 1e-15, 0.0, -1e-15, -1e-12, -1e-11, -1e-9])
def test_near_ties_are_decided(gap: float) -> None:
    """One relevant and one irrelevant image, which is nearer to the query by `gap`: float32 products are equal. Closer
    than 1e-13 is a tie, which counts against the query."""
    query = torch.tensor([[1.0, 2.0**-30, 0, 0]])
    pair = torch.tensor([[0.5, 0, 0.5, 0], [0.5, gap * 2.0**30, 0.5, 0]])
    others = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) - torch.tensor([9.0, 0, 0, 0])
    gallery, labels = torch.cat([pair, others]), torch.tensor([0, 1] + [2] * 200)
    scores = per_query(query, labels[:1], gallery, labels, "exact")
    assert scores[0].tolist() == [int(gap > -1e-13)]
    assert per_query(query, labels[:1], gallery, labels, "strict")[0].tolist() == [int(gap > 1e-13)]


@pytest.mark.parametrize("dimensions", [1, 5, 64, 512, 6000])
def test_products_are_within_the_bound(dimensions: int) -> None:
    generator = torch.Generator().manual_seed(0)
    equal = torch.full((1, dimensions), dimensions**-0.5)  # all roundings may go the same way
    rows = Rows(torch.cat([equal, -equal, normalize(torch.rand(60, dimensions, generator=generator))]))
    for dtype in (torch.float32, torch.float64):
        products = Products(rows, rows, dtype)
        found = products.fill(slice(None), slice(None), torch.empty(62, 62, dtype=dtype))
        pairs = torch.cartesian_prod(torch.arange(62), torch.arange(62)).T
        wrong = (found.double().flatten() - products.exact(*pairs)).abs().max()
        assert wrong <= products.error < (2e-7 * (dimensions + 12) if dtype == torch.float32 else products.tie)


def test_exact_similarities_do_not_depend_on_place() -> None:
    rows = Rows(images(300, 2, 37)[0])
    products = Products(rows, rows)
    pairs = torch.randint(300, (2, 5000), generator=torch.Generator().manual_seed(0))
    found = products.exact(*pairs)
    assert torch.equal(found, products.exact(*pairs.flip(0)))
    assert torch.equal(found.flip(0), products.exact(*pairs.flip(1)))
    assert torch.equal(found[::7], products.exact(*pairs[:, ::7]))
    assert torch.equal(products.exact(pairs[0], pairs[0]) > 1 - 1e-15, torch.ones(5000, dtype=torch.bool))


@pytest.mark.parametrize("exponent", [-120, -75, -40, 20, 60, 110])
def test_lengths_far_from_1_change_nothing(exponent: int) -> None:
    """Similarities that float32 cannot hold, too."""
    values = torch.randint(-2, 3, (200, 3), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.arange(200) % 9
    for counting in ways.COUNTINGS:
        scores = per_query(values, labels, None, None, counting)
        for one, other in zip(scores, per_query(values * 2.0**exponent, labels, None, None, counting), strict=True):
            assert torch.equal(one, other)


def test_zero_vectors_change_nothing_for_the_others() -> None:
    embeddings, labels = images(300, 40, 16)
    scores = per_query(embeddings, labels, None, None, "exact")
    zeros = torch.cat([embeddings, torch.zeros(9, 16)])
    more = per_query(zeros, torch.cat([labels, torch.arange(100, 109)]), None, None, "exact")
    hits = scores[0] < 20
    assert hits.sum() > 30
    assert torch.equal(scores[0][hits], more[0][:300][hits])
    alone = per_query(torch.zeros(9, 16), torch.arange(9) // 3, None, None, "exact")
    assert alone[0].tolist() == [6] * 9  # all similarities are 0: ties


def test_a_cone_is_searched_in_float64_and_others_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 40
    for spread, expected in ((1.0, [torch.float32]), (1e-6, [torch.float32, torch.float64])):
        centres = torch.randn(40, 64, generator=generator)[labels]
        points = torch.ones(2000, 64) + spread**0.5 * (centres + torch.randn(2000, 64, generator=generator))
        rows, used = Rows(normalize(points)), []

        def compute(search: Any, used: list[torch.dtype] = used) -> Any:
            used.append(search.dtype)
            return ways.by_strips(search, "exact", False)

        decide(ways.Search(rows, rows, labels=labels, searched_labels=labels), compute)
        assert used == expected


def test_nearest_of_collapsed_images_are_the_first() -> None:
    indices, similarities = nearest(normalize(torch.ones(500, 20)), torch.tensor([0, 2, 499]), 3)
    assert indices.tolist() == [[1, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert np.allclose(similarities, 1)
