"""What split refuses since nothing could be trained or retrieved, and what it warns of."""

import re
from pathlib import Path

import pytest

from pipeline import convert, split
from pipeline.base.files import BadInputError
from pipeline.base.lists import listed
from tests.lookalikes import picture


@pytest.fixture
def split_folder(tmp_path, monkeypatch, capsys):
    """Convert and split drawings given as {part/class: "names"}, equal letters for equal bytes; gives the warnings."""
    monkeypatch.chdir(tmp_path)

    def split_folder(**classes: str) -> list[str]:
        for place, names in classes.items():
            folder = Path("data/raw/folder", *place.split("_"))
            folder.mkdir(parents=True)
            for number, name in enumerate(names):
                (folder / f"{number}.png").write_bytes(picture(ord(name), format="PNG"))
        monkeypatch.setattr("sys.argv", ["stage", "folder"])
        convert.main()
        capsys.readouterr()
        split.main()
        return capsys.readouterr().err.splitlines()

    return split_folder


TRAIN = {"train_a": "ab", "train_b": "cd"}


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        (
            TRAIN | {"test_x": "e", "test_y": "f"},
            "none of the 2 images of test has another image of its class among the",
        ),
        (
            TRAIN | {"test_x": "e"},
            "none of the 1 images of test has another image of its class among the others of test",
        ),
        ({"train_a": "ab", "test_x": "ef"}, "folder: train has 1 class: training needs two classes or more"),
        (
            TRAIN | {"query_x": "ef", "query_y": "g", "gallery_z": "h"},
            "none of the 3 images of query has another image of its class in the gallery",
        ),
    ],
    ids=["all single", "one image", "one training class", "no query answered"],
)
def test_a_split_that_cannot_be_evaluated_is_refused(split_folder, classes, reason):
    with pytest.raises(BadInputError, match=reason):
        split_folder(**classes)
    assert not Path("data/splits/folder").exists()


@pytest.mark.parametrize(
    ("classes", "warnings"),
    [
        (TRAIN | {"test_x": "ef", "test_y": "gh"}, []),
        (
            TRAIN | {"test_x": "ef", "test_y": "g", "test_z": "h"},
            ["test: 2 of 4 images have no other of their class, so they never have a hit"],
        ),
        (
            TRAIN | {"query_x": "ef", "query_y": "g", "gallery_y": "h"},
            ["query: 2 of 3 images have no other of their class, so they never have a hit"],
        ),
        (
            {"train_a": "abc", "train_b": "ade", "test_x": "fg"},
            ["train: 2 images have the same bytes as an image of another class"],
        ),
        (
            TRAIN | {"test_x": "efg", "test_y": "fgh"},
            ["test: 4 images have the same bytes as an image of another class"],
        ),
        (
            TRAIN | {"test_x": "eaf", "test_y": "gd"},
            ["test: 2 images have the same bytes as an image of train"],
        ),
        (
            TRAIN | {"test_x": "eef", "test_y": "gh"},
            ["test: 2 images have the same bytes as another of their class, so the two find each other"],
        ),
        (
            TRAIN | {"query_x": "ef", "query_y": "g", "gallery_x": "eh", "gallery_y": "gi"},
            ["gallery: 2 images have the same bytes as an image of query"],
        ),
        (
            TRAIN | {"query_x": "ea", "gallery_x": "fc"},
            [
                "query: 1 images have the same bytes as an image of train",
                "gallery: 1 images have the same bytes as an image of train",
            ],
        ),
    ],
)
def test_what_spoils_or_flatters_a_result_is_counted(split_folder, classes, warnings):
    printed = split_folder(**classes)
    assert [line for line in printed if line[0] != " "] == [f"warning: folder {warning}:" for warning in warnings]
    named = [line for line in printed if line[0] == " "]
    assert len(named) >= len(warnings) and all(re.search(r"^  \w+/\w/\d\.png \(class \w\)", line) for line in named)
    assert Path("data/splits/folder/train.csv").exists()


def test_a_long_list_is_in_a_file(tmp_path):
    lines = [f"line {number}" for number in range(100)]
    message = listed(lines, tmp_path / "all.txt").split("\n")
    assert message[1:21] == [f"  {line}" for line in lines[:20]]
    assert message[21:] == ["  … and 80 more", f"{tmp_path}/all.txt names them all"]
    assert (tmp_path / "all.txt").read_text().splitlines() == lines
    assert listed(lines[:20], tmp_path / "few.txt").count("\n") == 20 and not (tmp_path / "few.txt").exists()
