"""Retrieval in other groups: the definition, every kernel, and groups from a dataset to the table."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline import convert, split
from pipeline.base.files import BadInputError
from pipeline.data.groups import read_groups
from pipeline.metrics import groups as module
from pipeline.metrics.by_name.other_groups import metric
from pipeline.metrics.found import Found
from pipeline.metrics.groups import Groups, LeftOut, per_query_in_others
from pipeline.metrics.ranks import NEVER
from pipeline.metrics.retrieval import nearest, per_query
from pipeline.runs.grid import grid_runs
from pipeline.runs.key import evaluation_key
from pipeline.runs.run import Run
from tests.test_folder import RAW, drawings, run
from tests.test_ranks import images, kernels
from tests.test_retrieval import assert_same

Case = tuple[Tensor, Tensor | None, Groups]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Small integers, so that ties are real and duplicates abound; half of the cases with a gallery."""
    dimensions, classes, groups = (draw(st.sampled_from(of)) for of in ([1, 2, 4], [1, 2, 6, 60], [1, 2, 5, 40]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def some() -> tuple[Tensor, Tensor, Tensor]:
        n = draw(st.integers(1, 120))
        numbers = [torch.randint(count, (n,), generator=generator) for count in (classes, groups)]
        return torch.randint(-2, 3, (n, dimensions), generator=generator).float(), *numbers

    queries, labels, own = some()
    what: LeftOut = draw(st.sampled_from(["group", "relevant"]))
    if draw(st.booleans()):
        gallery, gallery_labels, gallery_groups = some()
        return queries, gallery, Groups(labels, own, gallery_labels, gallery_groups, what)
    return queries, None, Groups(labels, own, labels, own, what)


def others(case: Case, query: int) -> list[int]:
    """The searched images that are not left out, written out."""
    queries, gallery, of = case
    searched = queries if gallery is None else gallery
    found = []
    for image in range(len(searched)):
        same_group = of.groups[query] == of.searched_groups[image]
        same_class = of.labels[query] == of.searched_labels[image]
        if not (same_group and (of.what == "group" or same_class)):
            found.append(image)
    return found


def expected(case: Case, counting: str) -> list[Any]:
    """For each query, slowly and in float64: (images above the first hit, average precision at R, R-precision)."""
    queries, gallery, of = case
    searched = queries if gallery is None else gallery
    found = []
    for query in range(len(queries)):
        similarity = (searched.double() @ queries[query].double()).tolist()
        relevant = (of.searched_labels == of.labels[query]).tolist()
        left = others(case, query)
        ranked = [relevant[j] for j in sorted(left, key=lambda j: (-similarity[j], relevant[j]))]
        flattered = [relevant[j] for j in sorted(left, key=lambda j: (-similarity[j], not relevant[j]))]
        looked_at = flattered if counting == "strict" else ranked
        r = sum(ranked)
        precisions = [sum(ranked[:m]) / m for m in range(1, r + 1) if ranked[m - 1]]
        first = looked_at.index(True) if r else NEVER
        found.append((first, sum(precisions) / r if r else np.nan, len(precisions) / r if r else np.nan))
    return found


@given(cases())
@settings(deadline=None, max_examples=30)
def test_ranks_in_other_groups_equal_the_definition(case: Case) -> None:
    for counting in ("exact", "strict"):
        assert_same(per_query_in_others(*case, counting), expected(case, counting))


@given(cases(), st.integers(1, 60))
@settings(deadline=None, max_examples=30)
def test_nearest_in_other_groups_equal_a_stable_sort(case: Case, k: int) -> None:
    queries, gallery, of = case
    searched = queries if gallery is None else gallery
    if len(searched) == int(gallery is None):
        return
    indices, similarities = nearest(queries, torch.arange(len(queries)), k, gallery=gallery, left_out=of.left_out)
    for query, (found, values) in enumerate(zip(indices.tolist(), similarities.tolist(), strict=True)):
        exact = (searched.double() @ queries[query].double()).tolist()
        best = sorted(others(case, query), key=lambda j: -exact[j])[: len(found)]
        lacking = len(found) - len(best)
        assert found == best + [-1] * lacking and values == [exact[j] for j in best] + [-np.inf] * lacking


@pytest.mark.parametrize("what", ["group", "relevant"])
def test_every_kernel_gives_the_same_ranks_in_other_groups(what: LeftOut, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = images(400, 20, 64)
    groups = torch.arange(400) % 7
    of = Groups(labels, groups, labels, groups, what)
    found = []
    for _ in kernels(monkeypatch):
        found.append([part.numpy().tobytes() for part in per_query_in_others(embeddings, None, of)])
    assert len(found) == 5 and all(one == found[0] for one in found)


def test_a_group_of_its_own_for_each_image_changes_nothing() -> None:
    embeddings, labels = images(500, 30, 16)
    own = torch.arange(500)
    for counting in ("exact", "strict"):
        alone = per_query_in_others(embeddings, None, Groups(labels, own, labels, own), counting)
        for found, plain in zip(alone, per_query(embeddings, labels, None, None, counting), strict=True):
            assert torch.equal(found, plain)


def test_collapsed_and_narrow_embeddings_are_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    groups, labels = torch.arange(200) % 4, torch.arange(200) % 10
    of = Groups(labels, groups, labels, groups)
    first, precision, _ = per_query_in_others(torch.ones(200, 8) / 8**0.5, None, of)
    irrelevant = [sum(labels[i] != labels[0] for i in others((torch.ones(200, 8), None, of), 0))]
    assert precision.max() == 0 and {*first.tolist()} == {*map(int, irrelevant)}
    generator = torch.Generator().manual_seed(0)
    cone = torch.ones(200, 8) + 1e-4 * torch.randn(200, 8, generator=generator)
    embeddings = torch.nn.functional.normalize(cone)
    seen = []
    whole = module._by_strips
    monkeypatch.setattr(module, "_by_strips", lambda search, *rest: seen.append(search.dtype) or whole(search, *rest))
    first = per_query_in_others(embeddings, None, of)[0]
    assert seen == [torch.float32, torch.float64], "float32 leaves too many pairs open"
    exactly = torch.nn.functional.normalize(embeddings.double())  # a length that float32 rounded counts as 1
    assert first.tolist() == [one[0] for one in expected((exactly, None, of), "exact")]


def test_what_cannot_be_counted_is_refused() -> None:
    embeddings, labels = images(10, 2, 4)
    of = Groups(labels, labels, labels, labels)
    with pytest.raises(ValueError, match="counting must be exact or strict"):
        per_query_in_others(embeddings, None, of, "drop_first")
    with pytest.raises(ValueError, match="one label and one group per row"):
        per_query_in_others(embeddings, embeddings[:3], of)


def test_groups_with_nothing_to_find_are_refused() -> None:
    embeddings, labels = images(10, 2, 4)
    found = Found(embeddings, labels, {"embeddings": embeddings, "labels": labels}, [1], 0, labels)
    with pytest.raises(BadInputError, match="no query has another image of its class in another group"):
        metric(found)


# From the dataset to the key.


def test_glyphs_are_grouped_by_font(project) -> None:
    groups = read_groups(project.folder / "data/packed/glyphs")
    with (project.folder / "data/packed/glyphs/index.csv").open() as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert groups == [Path(name).stem for name in names] and len({*groups}) == 101


def grouped(lines: list[str]) -> None:
    drawings(RAW, {"train": ["a", "b"], "test": ["x", "y"]})
    (RAW / "groups.csv").write_text("\n".join(["image,group", *lines, ""]))


@pytest.fixture
def names() -> list[str]:
    drawings(RAW, {"train": ["a", "b"], "test": ["x", "y"]})
    return sorted(path.relative_to(RAW).as_posix() for path in RAW.rglob("*.png"))


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_folder_says_its_groups(names, monkeypatch, capsys) -> None:
    (RAW / "groups.csv").write_text("image,group\n" + "".join(f"{name},{name[-5]}\n" for name in names))
    run(monkeypatch, convert, "folder")
    run(monkeypatch, split, "folder")
    assert capsys.readouterr().err == ""
    packed = Path("data/packed/folder")
    with (packed / "index.csv").open() as file:
        assert read_groups(packed) == [row["name"][-5] for row in csv.DictReader(file)]
    (packed / "groups.csv").write_text((packed / "groups.csv").read_text().replace(",0\n", ",1\n"))
    with pytest.raises(BadInputError, match=r"groups.csv has changed since .* run the convert stage again"):
        read_groups(packed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[1:], r"must name each image once: 1 do not fit\n  test/x/0.png has no line"),
        (lambda lines: [*lines, "test/x/9.png,a"], "test/x/9.png is named, but there is no such image"),
        (lambda lines: [*lines, "test/x/0.png,other"], "line 10 gives test/x/0.png another group"),
        (lambda lines: [*lines, "test/x/0.png"], "line 10 is not an image and its group"),
        (lambda lines: [*lines, "test/x/0.png,"], "line 10 is not an image and its group"),
    ],
)
def test_groups_that_do_not_fit_are_named(names, change, message) -> None:
    lines = change([f"{name},a" for name in names])
    (RAW / "groups.csv").write_text("\n".join(["image,group", *lines, ""]))
    with pytest.raises(BadInputError, match=message):
        convert.convert("folder", False)
    assert not Path("data/packed/folder").exists()


def test_groups_are_in_the_key_of_evaluation_alone(project, monkeypatch) -> None:
    monkeypatch.chdir(project.folder)
    of: Run = grid_runs("default")[1].run
    key = evaluation_key(of, "cpu")
    assert "data/packed/glyphs/groups.csv" in key.content["data"]
    groups = Path("data/packed/glyphs/groups.csv")
    kept = groups.rename(groups.with_name("kept"))
    try:
        with pytest.raises(BadInputError, match=r"metrics.other_groups: the images of glyphs have no groups"):
            evaluation_key(of, "cpu")
    finally:
        kept.rename(groups)
