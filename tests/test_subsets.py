"""Partial and imbalanced subsets: the published rules, kept sizes counted by hand."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import subsets
from pipeline.base.files import BadInputError
from pipeline.data.manifests import Row, read_manifest
from pipeline.subsets import folds, partial
from pipeline.subsets import imbalanced as imbalanced_by_name
from tests import lookalikes


def rows_of(sizes: list[int]) -> list[Row]:
    """A manifest of classes of these sizes, image by image in turn, so that classes are mixed."""
    turns = [(place, label) for label, size in enumerate(sizes) for place in range(size)]
    return [Row(image, label, f"{label}/{place:02}.jpg") for image, (place, label) in enumerate(sorted(turns))]


NAMES = {label: f"{label:03}" for label in range(20)}


def imbalanced(rows: list[Row], gamma: float, seed: int) -> list[Row]:
    """Of classes whose names are in the order of their labels."""
    return imbalanced_by_name(rows, gamma, seed, NAMES)


def sizes_of(rows: list[Row]) -> list[int]:
    return [count for _, count in sorted(Counter(row.label for row in rows).items())]


@pytest.mark.parametrize(
    ("rate", "kept"), [(0.1, [6, 5, 4, 9]), (0.3, [18, 17, 12, 27]), (0.7, [42, 41, 28, 62]), (1.0, [60, 59, 41, 90])]
)
def test_partial_keeps_the_first_of_each_class(rate, kept):
    """0.7 of 90 is 62 in binary fractions, as in the authors' code."""
    rows = rows_of([60, 59, 41, 90])
    chosen = partial(rows, rate)
    assert sizes_of(chosen) == kept
    assert chosen == [row for row in rows if int(row.name.split("/")[1][:-4]) < kept[row.label]]


def test_the_first_images_are_those_of_the_first_file_names():
    """As torchvision's ImageFolder sorts them: by the whole name, whatever the order of the index."""
    rows = [Row(place, 0, f"0/{name}.jpg") for place, name in enumerate(["10", "9", "b", "B", "2", "a"])]
    rows += [Row(6, 1, "1/b.jpg"), Row(7, 1, "1/a.jpg")]
    assert {row.name for row in partial(rows, 0.5)} == {"0/10.jpg", "0/2.jpg", "0/9.jpg", "1/a.jpg"}
    originals = {row.name: f"cars/{9 - row.image}.jpg" for row in rows}
    assert [row.image for row in partial(rows, 0.5, originals)] == [3, 4, 5, 7]


def test_the_classes_of_a_tail_are_ranked_by_name():
    rows = rows_of([40, 40, 40])
    names = {0: "Volvo", 1: "AM General", 2: "Dodge"}
    assert sizes_of(imbalanced_by_name(rows, 100, 2024, names)) == [1, 40, 4]
    # Their folders are Audi_TTS_Coupe, Audi_TT_Hatchback and Audi_TT_RS.
    names = {0: "Audi TT Hatchback", 1: "Audi TT RS", 2: "Audi TTS Coupe"}
    assert sizes_of(imbalanced_by_name(rows, 100, 2024, names)) == [4, 1, 40]


@pytest.mark.parametrize(
    ("gamma", "kept"),
    [(10, [41, 19, 8, 4]), (20, [41, 15, 5, 2]), (50, [41, 11, 3, 1]), (100, [41, 8, 1, 1]), (150, [41, 7, 1, 1])],
)
def test_imbalanced_keeps_a_tail_by_label(gamma, kept):
    """41 * 10 ** (-1/3) = 19.03, 41 * 10 ** (-2/3) = 8.8, 41 / 10 = 4.1, and so on; never fewer than one."""
    rows = rows_of([60, 59, 41, 90])
    assert sizes_of(imbalanced(rows, gamma, 2024)) == kept


def test_imbalanced_shuffles_by_seed_and_label_alone():
    rows = rows_of([60, 59, 41, 90])
    one, again, other = imbalanced(rows, 20, 1), imbalanced(rows, 20, 1), imbalanced(rows, 20, 2)
    assert one == again == sorted(one)
    assert one != other
    # The same words for class 3 whatever the other classes are, so the smaller subset is inside the larger.
    assert set(imbalanced(rows, 150, 1)) < set(one)
    # These never change, whatever the release of numpy.
    assert [row.name for row in imbalanced(rows_of([9, 9]), 3, 2025) if row.label == 1] == KNOWN


KNOWN = ["1/01.jpg", "1/03.jpg", "1/04.jpg"]


def test_the_seed_2024_gives_the_images_of_the_authors():
    """As their code draws them: folders in the order of their names, with one generator that shuffles the sorted files
    of each. Labels, the order of the index and our own names must not matter."""
    rows = rows_of([9, 12, 10])
    folders = {0: "Volvo C30", 1: "AM General", 2: "Dodge"}
    originals = {row.name: f"car_ims/{(7 * row.image) % 31:06}.jpg" for row in rows}
    generator, theirs = np.random.RandomState(2024), []
    for label, kept in ((1, 9), (2, 4), (0, 1)):  # 9 / 5 ** (1/2) = 4.02, 9 / 5 = 1.8
        files = sorted(originals[row.name] for row in rows if row.label == label)
        generator.shuffle(files)
        theirs += files[:kept]
    chosen = imbalanced_by_name(rows, 5, 2024, folders, originals)
    assert chosen == sorted(chosen)
    assert {originals[row.name] for row in chosen} == set(theirs)
    # numpy has frozen this generator: these never change.
    known = ["1/06.jpg", "1/07.jpg", "1/08.jpg"]
    assert [row.name for row in imbalanced(rows_of([9, 9]), 3, 2024) if row.label == 1] == known


def test_every_image_is_as_likely_to_be_kept():
    counts = Counter(
        row.name for seed in range(600) for row in imbalanced(rows_of([10, 10]), 5, seed) if row.label == 1
    )
    assert len(counts) == 10
    # 600 draws of 2 in 10: mean 120, standard deviation 9.8
    assert all(70 < count < 170 for count in counts.values())


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.sampled_from(subsets.GAMMAS), st.integers(0, 2**64 - 1))
def test_imbalanced_never_grows_and_never_empties_a_class(sizes, gamma, seed):
    rows = rows_of(sizes)
    chosen = imbalanced(rows, gamma, seed)
    kept = sizes_of(chosen)
    assert len(kept) == len(sizes)
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == min(sizes)
    assert set(chosen) <= set(rows)


@pytest.mark.parametrize(
    ("function", "arguments", "reason"),
    [
        (partial, (0.0,), "above 0 and at most 1, not 0.0"),
        (partial, (1.1,), "above 0 and at most 1, not 1.1"),
        (partial, (0.1,), r"at the rate 0.1 the classes with the labels \[1\] keep no image"),
        (imbalanced, (0, 1), "gamma is at least 1"),
        (imbalanced, (10**400, 1), "gamma is at least 1 and at most"),
        (imbalanced, (float("nan"), 1), "gamma is at least 1 and at most"),
        (partial, (float("nan"),), "above 0 and at most 1, not nan"),
        (imbalanced, (10, -1), "a seed is from 0"),
        (folds, (3,), "at most as many as the 2 training classes: 3"),
        (folds, (1,), "folds are at least 2"),
    ],
)
def test_impossible_subsets_are_refused(function, arguments, reason):
    with pytest.raises(BadInputError, match=reason):
        function(rows_of([20, 9]), *arguments)


def test_the_stage_writes_every_subset(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = rows_of([30, 20, 25])
    lookalikes.manifests(tmp_path, "cub", train=rows)
    monkeypatch.setattr("sys.argv", ["subsets", "cub", "--seeds", "1", "2", "--folds", "2", "3"])
    subsets.main()
    files = sorted(path.name for path in (tmp_path / "data/subsets/cub").iterdir())
    assert files == sorted(
        [f"partial_{rate / 10}.csv" for rate in range(1, 11)]
        + [f"imbalanced_{gamma}_{seed}.csv" for gamma in (10, 20, 50, 100, 150) for seed in (1, 2)]
        + [f"fold_{k}of{n}_{part}.csv" for n in (2, 3) for k in range(1, n + 1) for part in ("train", "test")]
        + ["SHA256SUMS"]
    )
    assert read_manifest(tmp_path / "data/subsets/cub/partial_1.0.csv") == rows
    assert read_manifest(tmp_path / "data/subsets/cub/imbalanced_50_2.csv") == imbalanced(rows, 50, 2)
    by_fold = [
        [sizes_of(read_manifest(tmp_path / f"data/subsets/cub/fold_{k}of3_{part}.csv")) for k in (1, 2, 3)]
        for part in ("train", "test")
    ]
    assert by_fold == [[[20, 25], [30, 25], [30, 20]], [[30], [20], [25]]]
    assert capsys.readouterr().out == "cub: 30 subsets of 75 images\n"
    monkeypatch.setattr("sys.argv", ["subsets", "cub"])
    subsets.main()  # three classes make no four folds
    assert not list((tmp_path / "data/subsets/cub").glob("fold*"))


def test_broken_manifests_are_named(tmp_path):
    path = tmp_path / "train.csv"
    with pytest.raises(BadInputError, match=r"train\.csv is missing: run the split stage"):
        read_manifest(path)
    path.write_text("name,label\n")
    with pytest.raises(BadInputError, match="does not begin with the columns image,label,name"):
        read_manifest(path)
    path.write_text("image,label,name\n0,0,a.jpg\n1,x,b.jpg\n")
    with pytest.raises(BadInputError, match="line 3 is not a row"):
        read_manifest(path)
