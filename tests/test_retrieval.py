from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.metrics.halves import by_halves
from pipeline.metrics.ranks import NEVER, Scores, Search, by_strips
from pipeline.metrics.retrieval import nearest, per_query, recall_at_k, retrieval
from pipeline.metrics.similarities import Rows, decide

GOLDEN = Path(__file__).parent / "golden" / "metrics.npz"
Embedded = tuple[Tensor, Tensor, Tensor, Tensor]
COLLAPSED = torch.nn.functional.normalize(torch.ones(300, 37), dim=1)


@pytest.mark.parametrize("case", ["cub_like", "sop_like", "imbalanced", "inshop_like"])
def test_golden_values(case: str) -> None:
    golden = {key.split("/")[1]: value for key, value in np.load(GOLDEN).items() if key.startswith(case + "/")}
    embeddings, labels = torch.from_numpy(golden["embeddings"]), torch.from_numpy(golden["labels"])
    ks = golden["ks"].tolist()
    search: dict[str, Any] = {}
    if "is_query" in golden:
        query = torch.from_numpy(golden["is_query"])
        search = {"gallery": embeddings[~query], "gallery_labels": labels[~query]}
        embeddings, labels = embeddings[query], labels[query]
    scores = retrieval(embeddings, labels, ks, **search)
    assert [scores[f"recall@{k}"] for k in ks] == golden["recall"].tolist()
    # The golden means were added up in float32.
    assert scores["map@r"] == pytest.approx(float(golden["map_at_r"]), abs=1e-8)
    assert scores["r_precision"] == pytest.approx(float(golden["r_precision"]), abs=1e-7)
    assert recall_at_k(embeddings, labels, ks, **search).items() <= scores.items()
    for counting in ("strict", "drop_first")[: 1 if search else 2]:
        assert retrieval(embeddings, labels, ks, **search, counting=counting) == scores


# Against the definitions, on small integers: their float32 products are exact, ties are real and duplicates abound.


@st.composite
def searches(draw: st.DrawFn, gallery: bool) -> Embedded:
    """(queries, labels, searched, searched labels), the latter two the same objects without a gallery."""
    dimensions, classes, seed = (
        draw(st.integers(1, 4)),
        draw(st.sampled_from([1, 2, 6, 60])),
        draw(st.integers(0, 2**32)),
    )
    generator = torch.Generator().manual_seed(seed)

    def some() -> tuple[Tensor, Tensor]:
        n = draw(st.integers(1, 150))
        values = torch.randint(-2, 3, (n, dimensions), generator=generator).float()
        return values, torch.randint(classes, (n,), generator=generator)

    queries, labels = some()
    return queries, labels, *(some() if gallery else (queries, labels))


def expected(queries: Tensor, labels: Tensor, searched: Tensor, searched_labels: Tensor, counting: str) -> list[Any]:
    """Per query, slowly and in float64: (images above the first hit, average precision at R, R-precision)."""
    result = []
    for i, (query, label) in enumerate(zip(queries.double(), labels.tolist(), strict=True)):
        similarity = (searched.double() @ query).tolist()
        relevant = (searched_labels == label).tolist()
        others = [j for j in range(len(searched)) if searched is not queries or j != i]
        ranked = [relevant[j] for j in sorted(others, key=lambda j: (-similarity[j], relevant[j]))]
        if counting == "drop_first":
            everything = sorted(range(len(searched)), key=lambda j: (-similarity[j], j))
            looked_at = [relevant[j] for j in everything[1:]]
        elif counting == "strict":
            looked_at = [relevant[j] for j in sorted(others, key=lambda j: (-similarity[j], not relevant[j]))]
        else:
            looked_at = ranked
        first = looked_at.index(True) if any(looked_at) else NEVER
        r = sum(ranked)
        precisions = [sum(ranked[:m]) / m for m in range(1, r + 1) if ranked[m - 1]]
        result.append((first, sum(precisions) / r if r else np.nan, len(precisions) / r if r else np.nan))
    return result


def assert_same(scores: Scores, expected: list[Any]) -> None:
    first, average_precision, r_precision = (np.array(values) for values in zip(*expected, strict=True))
    np.testing.assert_array_equal(scores[0], first)
    np.testing.assert_array_equal(scores[2], r_precision)
    # Equal ranks; their sum is added up in another order.
    np.testing.assert_allclose(scores[1], average_precision, rtol=1e-12)


@given(searches(gallery=False))
def test_ranks_equal_the_definition(search: Embedded) -> None:
    queries, labels, _, _ = search
    truth = expected(*search, "exact")
    rows = Rows(queries)
    found = Search(rows, rows, torch.float64, labels=labels, searched_labels=labels)
    assert_same(by_strips(found, "exact", False), truth)
    assert by_strips(found, "exact", True)[0].tolist() == [first for first, _, _ in truth]
    side = 64 if int(labels.bincount().max()) <= 64 else 160
    assert_same(by_halves(found, False, side), truth)
    assert by_halves(found, True, side)[0].tolist() == [first for first, _, _ in truth]
    assert_same(per_query(queries, labels, None, None, "exact"), truth)


@given(searches(gallery=True))
def test_ranks_in_a_gallery_equal_the_definition(search: Embedded) -> None:
    queries, labels, gallery, gallery_labels = search
    for counting in ("exact", "strict"):
        assert_same(per_query(queries, labels, gallery, gallery_labels, counting), expected(*search, counting))
    ranks = [first for first, _, _ in expected(*search, "exact")]
    scores = recall_at_k(queries, labels, [1, 7, 1000], gallery=gallery, gallery_labels=gallery_labels)
    assert scores == {f"recall@{k}": pytest.approx(np.mean([rank < k for rank in ranks])) for k in (1, 7, 1000)}


@given(searches(gallery=False), st.sampled_from(["strict", "drop_first"]))
def test_legacy_ranks_equal_their_definition(search: Embedded, counting: str) -> None:
    queries, labels, _, _ = search
    assert_same(per_query(queries, labels, None, None, counting), expected(*search, counting))


def test_legacy_agrees_unless_images_repeat() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(200, 16, generator=generator), dim=1)
    labels = torch.arange(200) % 20
    exact = retrieval(embeddings, labels, [1, 5])
    assert retrieval(embeddings, labels, [1, 5], counting="strict") == exact
    assert retrieval(embeddings, labels, [1, 5], counting="drop_first") == exact
    # Each image twice, under two labels: nothing of the own class is nearer than the other label's copy.
    twice, labels = torch.cat([embeddings, embeddings]), torch.cat([labels, labels + 20])
    assert retrieval(twice, labels, [1])["recall@1"] == 0
    # The later copy drops the earlier as "itself", then finds itself.
    assert retrieval(twice, labels, [1], counting="drop_first")["recall@1"] == 0.5


def test_agrees_with_pytorch_metric_learning() -> None:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    include = ("precision_at_1", "mean_average_precision_at_r", "r_precision")
    calculator = AccuracyCalculator(include=include, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(70, (900,), generator=generator)
    points = torch.randn(70, 16, generator=generator)[labels] + torch.randn(900, 16, generator=generator)
    embeddings = torch.nn.functional.normalize(points, dim=1)
    theirs = calculator.get_accuracy(embeddings, labels)
    ours = retrieval(embeddings, labels, [1])
    assert 0.2 < ours["recall@1"] < 0.9
    for our, their in zip(ours.values(), [theirs[name] for name in include], strict=True):
        assert our == pytest.approx(their, abs=1e-6)  # they add up in float32
    theirs = calculator.get_accuracy(embeddings[:300], labels[:300], embeddings[300:], labels[300:])
    ours = retrieval(embeddings[:300], labels[:300], [1], gallery=embeddings[300:], gallery_labels=labels[300:])
    for our, their in zip(ours.values(), [theirs[name] for name in include], strict=True):
        assert our == pytest.approx(their, abs=1e-6)


@pytest.mark.parametrize("classes", [3, 40, 150])
@pytest.mark.parametrize("dimensions", [37, 512])
def test_ties_of_rounded_numbers_are_ties_in_any_order(classes: int, dimensions: int) -> None:
    """Every image is there twice, under two labels. So for each relevant image an irrelevant one is equally similar, in
    numbers that are no integers: one difference in rounding and somebody scores."""
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(600, dimensions, generator=generator), dim=1)
    embeddings = images.repeat(2, 1)
    labels = torch.cat([torch.arange(600) % classes, torch.arange(600) % classes + classes])
    for _ in range(3):
        assert retrieval(embeddings, labels, [1])["recall@1"] == 0
        order = torch.randperm(1200, generator=generator)
        embeddings, labels = embeddings[order], labels[order]
        for side in (64, 512, 1024):
            if 600 // classes <= side:
                rows = Rows(embeddings)
                search = Search(rows, rows, labels=labels, searched_labels=labels)
                first, _, _ = decide(search, lambda search, side=side: by_halves(search, False, side))
                # The query's copy, the copy of the first hit, and both copies of whatever is nearer.
                assert bool((first % 2 == 0).all() and (first >= 2).all())


def test_the_order_of_images_and_the_names_of_classes_do_not_matter() -> None:
    golden = np.load(GOLDEN)
    for case in ("cub_like", "sop_like", "imbalanced"):
        embeddings = torch.from_numpy(golden[f"{case}/embeddings"])
        labels = torch.from_numpy(golden[f"{case}/labels"])
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        scores = per_query(embeddings, labels, None, None, "exact")
        shuffled = per_query(embeddings[order], -7 * labels[order], None, None, "exact")
        for values, others in zip(scores, shuffled, strict=True):
            assert torch.equal(values[order], others)


def test_a_collapsed_network_scores_nothing() -> None:
    """But under the papers' counts, which is what they are kept for."""
    labels = torch.arange(300) % 30
    assert set(retrieval(COLLAPSED, labels, [1, 8]).values()) == {0.0}
    assert retrieval(COLLAPSED, labels, [1], counting="strict")["recall@1"] == 1
    assert set(retrieval(COLLAPSED, labels // 10, [1, 8]).values()) == {
        0.0
    }  # few, wide classes: the other way of search
    assert set(retrieval(COLLAPSED, labels, [1], gallery=COLLAPSED, gallery_labels=labels).values()) == {0.0}


def test_one_class_and_lone_images() -> None:
    embeddings = torch.nn.functional.normalize(torch.randn(70, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    assert set(retrieval(embeddings, torch.zeros(70, dtype=torch.int64), [1, 100]).values()) == {1.0}
    alone = retrieval(embeddings, torch.arange(70), [1, 100])
    assert alone["recall@1"] == alone["recall@100"] == 0
    assert np.isnan(alone["map@r"]) and np.isnan(alone["r_precision"])
    assert retrieval(embeddings[:1], torch.zeros(1, dtype=torch.int64), [1])["recall@1"] == 0
    # Lone images are misses for Recall@K and do not count for the others.
    labels = torch.tensor([0] * 35 + list(range(1, 36)))
    scores = retrieval(embeddings, labels, [1000])
    assert scores["recall@1000"] == 0.5 and scores["map@r"] > 0


def cone(n: int, classes: int, spread: float, dimensions: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings of `classes` classes around one axis, float64 of unit length; cosines are 1 - `spread` and more."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, dimensions, generator=generator, dtype=torch.float64)
    points = centres[labels] + torch.randn(n, dimensions, generator=generator, dtype=torch.float64)
    axis = torch.nn.functional.normalize(torch.randn(1, dimensions, generator=generator, dtype=torch.float64))
    apart = torch.nn.functional.normalize(points) * (spread / 2) ** 0.5
    return torch.nn.functional.normalize(axis + apart), labels


SEARCHES = {"wide classes": (600, 8, 0), "narrow classes": (600, 200, 0), "gallery": (700, 20, 100)}


@pytest.mark.parametrize("spread", [1e-4, 1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize("kind", SEARCHES)
def test_embeddings_in_a_narrow_cone_are_told_apart(kind: str, spread: float) -> None:
    n, classes, queries = SEARCHES[kind]
    exact, labels = cone(n, classes, spread)
    rounded = exact.float()
    search: dict[str, Any] = {"labels": labels}
    if queries:
        search = {"gallery": rounded[queries:], "gallery_labels": labels[queries:], "labels": labels[:queries]}
        searched, searched_labels, exact, rounded = (
            exact[queries:],
            labels[queries:],
            exact[:queries],
            rounded[:queries],
        )
    else:
        searched, searched_labels = exact, labels
    truth = expected(exact, search["labels"], searched, searched_labels, "exact")
    scores = retrieval(rounded, ks=[1, 4], **search)
    assert scores["recall@1"] == pytest.approx(np.mean([first < 1 for first, _, _ in truth]), abs=0.01)
    assert scores["map@r"] == pytest.approx(np.nanmean([precision for _, precision, _ in truth]), abs=1e-3)
    assert scores["recall@1"] > 0.3
    assert recall_at_k(rounded, ks=[1, 4], **search).items() <= scores.items()


@pytest.mark.parametrize("kind", SEARCHES)
def test_ties_in_a_narrow_cone_are_ties_in_any_order(kind: str) -> None:
    """Each image is there twice, under two labels: nothing of the own class is nearer than the other label's copy."""
    n, classes, queries = SEARCHES[kind]
    once, labels = cone(n // 2, classes, 1e-7)
    twice, labels = torch.cat([once, once]).float(), torch.cat([labels, labels + classes])
    for seed in range(3):
        order = torch.randperm(len(twice), generator=torch.Generator().manual_seed(seed))
        embeddings, shuffled = twice[order], labels[order]
        search: dict[str, Any] = {"embeddings": embeddings, "labels": shuffled}
        if queries:
            search = {"embeddings": once[:queries].float(), "labels": labels[:queries]}
            search |= {"gallery": embeddings, "gallery_labels": shuffled}
        assert retrieval(ks=[1], **search)["recall@1"] == recall_at_k(ks=[1], **search)["recall@1"] == 0


def test_two_cones_far_apart_are_told_apart_within() -> None:
    exact, labels = cone(600, 10, 1e-7)
    both, labels = torch.cat([exact, -exact.flip(1)]).float(), torch.cat([labels, labels + 10])
    truth = expected(exact, labels[:600], exact, labels[:600], "exact")
    assert retrieval(both, labels, [1])["recall@1"] == pytest.approx(np.mean([f < 1 for f, _, _ in truth]), abs=0.01)


def test_wrong_input_is_named() -> None:
    x, y = torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)
    bad = x.clone()
    bad[2, 1] = torch.nan
    with pytest.raises(ValueError, match="1 rows of embeddings hold nan or infinity, the first is row 2"):
        retrieval(bad, y, [1])
    with pytest.raises(ValueError, match="gallery hold nan"):
        retrieval(x, y, [1], gallery=bad, gallery_labels=y)
    with pytest.raises(ValueError, match="embeddings is empty"):
        recall_at_k(x[:0], y[:0], [1])
    with pytest.raises(ValueError, match="at least 1"):
        retrieval(x, y, [1, 0])
    with pytest.raises(ValueError, match="float32"):
        retrieval(x.double(), y, [1])
    with pytest.raises(ValueError, match="one label per row"):
        retrieval(x, y[:3], [1])
    with pytest.raises(ValueError, match="give both or neither"):
        retrieval(x, y, [1], gallery=x)
    with pytest.raises(ValueError, match="3 dimensions, but the gallery has 2"):
        retrieval(x, y, [1], gallery=x[:, :2], gallery_labels=y)
    with pytest.raises(ValueError, match="counting must be one of"):
        retrieval(x, y, [1], counting="first")
    with pytest.raises(ValueError, match="drop_first is for images searched among themselves"):
        retrieval(x, y, [1], gallery=x, gallery_labels=y, counting="drop_first")
    with pytest.raises(ValueError, match="k must be"):
        nearest(x, torch.tensor([0]), 0)


@given(searches(gallery=True), st.integers(1, 200), st.booleans())
def test_nearest_equals_a_stable_sort(search: Embedded, k: int, among_themselves: bool) -> None:
    embeddings, _, gallery, _ = search
    queries = torch.arange(len(embeddings)).flip(0)[::2]
    searched = embeddings if among_themselves else gallery
    if len(searched) == int(among_themselves):
        return
    indices, similarities = nearest(embeddings, queries, k, gallery=None if among_themselves else gallery)
    for query, found, similarity in zip(queries.tolist(), indices.tolist(), similarities.tolist(), strict=True):
        exact = (searched.double() @ embeddings[query].double()).tolist()
        others = [j for j in range(len(searched)) if not among_themselves or j != query]
        assert found == sorted(others, key=lambda j: -exact[j])[:k]
        assert similarity == [exact[j] for j in found]


def test_precision_of_the_caller_is_neither_used_nor_lost() -> None:
    before = torch.get_float32_matmul_precision()
    golden = np.load(GOLDEN)
    embeddings, labels = (torch.from_numpy(golden[f"sop_like/{name}"]) for name in ("embeddings", "labels"))
    scores = retrieval(embeddings, labels, [1])
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert retrieval(embeddings, labels, [1]) == scores
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
