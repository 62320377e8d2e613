"""Somebody's own folder of images, in and out."""

from pathlib import Path

import pytest

from pipeline import convert, export, split
from pipeline.base.files import BadInputError
from pipeline.data.manifests import read_manifest
from pipeline.data.packed import PackedImages, SourceImage, pack, read_index
from pipeline.datasets import folder
from tests import lookalikes
from tests.lookalikes import picture, project, stage


@pytest.fixture(autouse=True)
def _workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(monkeypatch, module, *arguments: str) -> None:
    """Run a stage's `main` with these arguments."""
    monkeypatch.setattr("sys.argv", ["stage", *arguments])
    module.main()


def drawings(root: Path, parts: dict[str, list[str]], each: int = 2) -> None:
    """Write small drawings to `root`/<part>/<class>/."""
    for part, classes in parts.items():
        for place, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for number in range(each):
                content = picture(100 * place + number + (50 if part == "train" else 0), "1", "PNG")
                (root / part / name / f"{number}.png").write_bytes(content)


def test_train_on_some_alphabets_and_retrieve_in_others(monkeypatch):
    classes = {"train": ["Greek/alpha", "Greek/beta", "Latin/alpha"], "test": ["Korean/ga", "Korean/na"]}
    drawings(Path("mine"), classes)
    Path("mine/train/Greek/.DS_Store").write_bytes(b"x")
    Path("mine/train/Greek/beta/._0.png").write_bytes(b"x")
    Path("data/raw").mkdir(parents=True)
    Path("data/raw/folder").symlink_to("../../mine")
    run(monkeypatch, convert, "folder")
    run(monkeypatch, split, "folder")
    entries = read_index(Path("data/packed/folder"))
    assert {entry.class_name: entry.label for entry in entries} == {
        name: label for label, name in enumerate(classes["train"] + classes["test"])
    }
    assert [row.label for row in read_manifest(Path("data/splits/folder/test.csv"))] == [3, 3, 4, 4]
    assert [row.label for row in read_manifest(Path("data/splits/folder/held_out_train.csv"))] == [0, 0]


def test_exported_and_taken_in_again_it_is_the_same_dataset(tmp_path, monkeypatch):
    """Cars, for its class with a slash; query and gallery, for In-Shop."""
    for name, build in (("cars", lookalikes.cars_combined), ("inshop", lookalikes.inshop)):
        place = project(tmp_path / name, {name: getattr(lookalikes, f"{name.upper()}_COUNTS")})
        build(place / "data/raw" / name)
        for step in ("convert", "split"):
            assert stage(place, f"pipeline.{step}", name).returncode == 0
        assert stage(place, "pipeline.export", name, "--to", "data/raw/folder").returncode == 0
        for step in ("download", "convert", "split"):
            assert stage(place, f"pipeline.{step}", "folder").returncode == 0
        before, after = (
            {e.sha256: e.class_name for e in read_index(place / "data/packed" / n)} for n in (name, "folder")
        )
        assert before == after
        for path in (place / "data/splits" / name).glob("*.csv"):
            others = read_manifest(place / "data/splits/folder" / path.name)
            assert len(read_manifest(path)) == len(others)
        done = stage(place, "pipeline.export", name, "--to", "data/raw/folder")
        assert done.returncode == 2
        assert "data/raw/folder exists: remove it, or name another folder with --to" in done.stderr


def test_names_that_clash_or_hide_are_exported_apart(tmp_path):
    """Two images of a class whose names end alike, a class named `..`, a file that begins with a dot."""
    names = ["WOMEN/1.jpg", "MEN/1.jpg", "MEN/.2.jpg"]
    pack((SourceImage(name, 0, "..", "", picture(place)) for place, name in enumerate(names)), Path("packed"))
    assert export.export(PackedImages(Path("packed")), {"train": [0, 1, 2]}, Path("out")) == 3
    assert sorted(path.name for path in Path("out/train/%2E.").iterdir()) == ["%2E2.jpg", "1.jpg", "MEN%2F1.jpg"]


def test_export_before_split_says_what_to_run(monkeypatch):
    with pytest.raises(BadInputError, match="data/splits/cub holds no manifest: run `python -m"):
        run(monkeypatch, export, "cub")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda raw: (raw / "test").rename(raw / "val"), "should hold your images as .*/train/<class>/<image>"),
        (lambda raw: (raw / "train/c").mkdir(), "train/c is a class without an image: remove the folder or fill it"),
        (lambda raw: (raw / "train/0.png").write_bytes(b""), "train/0.png lies beside folders of classes"),
        (
            lambda raw: (raw / "train/a/notes.txt").write_text("?"),
            r"images that cannot be used, fix or replace them: 1\n  train/a/notes.txt: not an image",
        ),
    ],
    ids=["no test", "empty class", "stray image", "no image"],
)
def test_folders_that_cannot_be_used(monkeypatch, spoil, reason):
    raw = Path("data/raw/folder")
    drawings(raw, {"train": ["a", "b"], "test": ["x"]})
    spoil(raw)
    with pytest.raises(BadInputError, match=reason):
        run(monkeypatch, convert, "folder")
    assert not Path("data/packed/folder").exists()


def test_a_class_in_both_parts_is_a_classification_split(monkeypatch):
    drawings(Path("data/raw/folder"), {"train": ["a", "b"], "test": ["b", "x"]})
    folder.download(Path("data/raw/folder"))
    run(monkeypatch, convert, "folder")
    with pytest.raises(BadInputError, match=r"folder: 1 classes are both in train .* the classification split"):
        run(monkeypatch, split, "folder")
    assert not Path("data/splits/folder").exists()
