"""Damage to manifests between the stage that writes them and the run that reads them: named, with line and stage."""

import shutil
from pathlib import Path

import pytest

from pipeline import convert, split, subsets
from pipeline.base.files import BadInputError
from pipeline.data.manifests import read_manifest
from pipeline.training.loading import read_retrieved, read_training
from tests import swap
from tests.lookalikes import picture

CLASSES = {"train": "abcd", "test": "wxyz"}


def run(module, *arguments: str) -> None:
    """Run a stage's `main` with these arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["stage", *arguments])
        module.main()


def add_images(part: str, name: str, numbers: range) -> None:
    folder = Path("data/raw/folder", part, name)
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number}.png").write_bytes(picture(ord(name) * 100 + number, format="PNG"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The dataset `folder` of eight classes, converted and split, with its subsets."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for part, names in CLASSES.items():
            for name in names:
                add_images(part, name, range(3))
        run(convert, "folder")
        run(split, "folder")
        run(subsets, "folder", "--rates", "0.5", "--gammas", "2", "--seeds", "1", "--folds")
    return folder


@pytest.fixture(autouse=True)
def _copy(made, tmp_path, monkeypatch):
    shutil.copytree(made / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)


SPLITS, SUBSETS = Path("data/splits/folder"), Path("data/subsets/folder")
INDEX = Path("data/packed/folder/index.csv")
READERS = {
    SPLITS / "train.csv": lambda: read_training(SPLITS / "train.csv"),
    SPLITS / "held_out_train.csv": lambda: read_training(SPLITS / "held_out_train.csv"),
    SPLITS / "test.csv": lambda: read_retrieved(SPLITS),
    SPLITS / "held_out_test.csv": lambda: read_retrieved(SPLITS, SPLITS / "held_out_test.csv"),
    SUBSETS / "partial_0.5.csv": lambda: read_training(SUBSETS / "partial_0.5.csv"),
    SUBSETS / "imbalanced_2_1.csv": lambda: read_training(SUBSETS / "imbalanced_2_1.csv"),
}


def refused(path: Path) -> str:
    """The message that a run ends with which reads the manifest at `path`."""
    with pytest.raises(BadInputError) as error:
        READERS[path]()
    assert "\n" not in str(error.value)
    return str(error.value)


def relabelled(lines: list[str]) -> list[str]:
    """The labels of the rows moved on by one class."""
    rows = [line.split(",") for line in lines]
    labels = [label for _, label, _ in rows]
    return [f"{row[0]},{label},{row[2]}" for row, label in zip(rows, labels[2:] + labels[:2], strict=True)]


DAMAGES = {
    "half": (lambda rows: rows[: len(rows) // 2], "has changed since"),
    "one row gone": (lambda rows: rows[1:], "has changed since"),
    "negative": (lambda rows: [f"-{row}" for row in rows], "has the image -"),
    "beyond": (lambda rows: [f"9{row}" for row in rows], "the index has 24 images"),
    "labels shuffled": (relabelled, "for the image "),
    "reversed": (lambda rows: rows[::-1], "after the image "),
    "a row twice": (lambda rows: [*rows, rows[-1]], "after the image "),
    "a name": (lambda rows: [row.replace(".png", ".jpg") for row in rows], "for the image "),
    "no number": (lambda rows: [f"x{row}" for row in rows], "is not a row (invalid literal"),
    "four fields": (lambda rows: [row.replace("\n", ",\n") for row in rows], "is not a row (4 fields)"),
    "no row": (lambda rows: [], "has changed since"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("path", READERS, ids=lambda path: path.stem)
def test_a_damaged_manifest_is_named_with_its_line_and_stage(path, damage):
    READERS[path]()
    spoil, reason = DAMAGES[damage]
    head, *rows = path.read_text().splitlines(keepends=True)
    path.write_text(head + "".join(spoil(rows)))
    message = refused(path)
    stage = "subsets" if SUBSETS in path.parents else "split"
    assert reason in message and message.startswith(str(path)) and message.endswith(f": run the {stage} stage again")
    if "changed" not in reason:
        assert f"{path} line " in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "does not begin with the columns image,label,name"),
        (b"<html></html>\n", "does not begin with the columns image,label,name"),
        (b"\xef\xbb\xbfimage,label,name\n", "does not begin with the columns image,label,name, but with a byte order"),
        (b"image,label,name\n\xff\xfe", "line 2 is not UTF-8 text"),
        (
            b'image,label,name\n0,0,"train/a/0.png\n',
            r"line 2 has '0,train/a/0.png\n' for the image 0, but the index has",
        ),
        (b"image,label,name\n0,0," + b"x" * 200_000, "line 2 cannot be read (field larger than"),
    ],
    ids=["empty", "web page", "byte order mark", "binary", "quote", "long field"],
)
def test_what_is_no_manifest_is_named(content, reason):
    path = SPLITS / "test.csv"
    path.write_bytes(content)
    message = refused(path)
    assert message.startswith(f"{path} {reason}") and message.endswith(": run the split stage again")


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (SPLITS / "train.csv", SPLITS / "test.csv"),
        (SPLITS / "test.csv", SPLITS / "train.csv"),
        (SPLITS / "held_out_train.csv", SPLITS / "train.csv"),
        (SUBSETS / "partial_0.5.csv", SUBSETS / "imbalanced_2_1.csv"),
        (SPLITS / "train.csv", SUBSETS / "partial_0.5.csv"),
    ],
    ids=lambda path: path.stem,
)
def test_a_manifest_in_place_of_another_is_named(source, target):
    shutil.copy(source, target)
    assert refused(target).startswith(f"{target} has changed since {target.parent}/SHA256SUMS was written: run the ")


def test_an_index_that_agrees_with_itself_but_is_not_the_one_of_convert_is_named():
    swap(INDEX, "train", "drain")
    for path in READERS:
        message = f"{INDEX} has changed since data/packed/folder/SHA256SUMS was written: run the convert stage again"
        assert refused(path) == message
    with pytest.raises(BadInputError, match=r"index\.csv has changed since"):
        run(split, "folder")


def test_manifests_older_than_the_index_are_named_until_the_stages_that_are_named_ran():
    add_images("test", "~", range(2))
    run(convert, "folder")
    for folder, stage in ((SPLITS, "split"), (SUBSETS, "subsets")):
        message = f"{INDEX} has changed since {folder}/SHA256SUMS was written: run the {stage} stage again"
        assert {refused(path) for path in READERS if path.parent == folder} == {message}
    run(split, "folder")
    READERS[SPLITS / "test.csv"]()
    assert "has changed since data/subsets/folder/SHA256SUMS" in refused(SUBSETS / "partial_0.5.csv")
    run(subsets, "folder", "--rates", "0.5", "--gammas", "2", "--seeds", "1", "--folds")
    for read in READERS.values():
        read()


def test_a_manifest_of_an_older_split_among_newer_ones_is_named():
    older = (SPLITS / "test.csv").read_bytes()
    add_images("test", "~", range(2))
    run(convert, "folder")
    run(split, "folder")
    assert len(read_manifest(SPLITS / "test.csv")) == 14
    (SPLITS / "test.csv").write_bytes(older)
    assert "test.csv has changed since" in refused(SPLITS / "test.csv")


def test_another_edition_than_the_pinned_one_is_named():
    Path("data/checksums").write_text(f"{'0' * 64}  splits/folder/test\n")
    message = refused(SPLITS / "test.csv")
    assert f"data/checksums has {'0' * 64}: this is another edition or another split" in message
    READERS[SPLITS / "train.csv"]()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "is missing"),
        ("", "has no line for "),
        ("<html>\n", "line 1 is not a SHA-256, two spaces and a path"),
    ],
)
@pytest.mark.parametrize("path", [SPLITS / "test.csv", SUBSETS / "partial_0.5.csv"], ids=lambda path: path.stem)
def test_a_damaged_list_of_hashes_is_named(path, content, reason):
    sums = path.with_name("SHA256SUMS")
    sums.unlink() if content is None else sums.write_text(content)
    message = refused(path)
    assert message.startswith(f"{sums} {reason}") and message.endswith("stage again")


def test_the_lists_of_hashes_are_those_of_sha256sum():
    for folder, names in {
        INDEX.parent: ["images.bin", "index.csv"],
        SPLITS: [*sorted(path.name for path in SPLITS.glob("*.csv")), "../../packed/folder/index.csv"],
        SUBSETS: [
            "imbalanced_2_1.csv",
            "partial_0.5.csv",
            "../../splits/folder/train.csv",
            "../../packed/folder/index.csv",
        ],
    }.items():
        assert [line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()] == names


def test_one_class_cannot_be_trained_and_single_images_cannot_be_retrieved():
    for path in (SPLITS, Path("data/packed/folder"), Path("data/raw/folder")):
        shutil.rmtree(path)
    for part, names in {"train": "abc", "test": "xx"}.items():
        for name in names:
            add_images(part, name, range(3 if part == "test" else 1))
    run(convert, "folder")
    run(split, "folder")
    assert refused(SPLITS / "held_out_train.csv").endswith("has one class, 0: training needs two classes or more")
    assert "no image has another of its class besides, so no metric" in refused(SPLITS / "held_out_test.csv")
