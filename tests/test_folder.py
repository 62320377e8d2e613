"""Somebody's own folder of images, in and out."""

import contextlib
import errno
import os
import re
import shutil
import socket
from pathlib import Path

import pytest
from PIL import Image

from pipeline import convert, export, split
from pipeline.base.files import BadInputError
from pipeline.data.index import read_index
from pipeline.data.manifests import read_manifest
from pipeline.data.packed import PackedImages, SourceImage, pack
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
        assert "data/raw/folder is a folder that this stage did not make" in done.stderr


def test_names_that_clash_or_hide_are_exported_apart(tmp_path):
    """Two images of a class whose names end alike, a class named `..`, a file that begins with a dot."""
    names = ["WOMEN/1.jpg", "MEN/1.jpg", "MEN/.2.jpg"]
    pack((SourceImage(name, 0, "..", "", picture(place)) for place, name in enumerate(names)), Path("packed"))
    assert export.export(PackedImages(Path("packed")), {"train": [0, 1, 2]}, Path("out")) == 3
    assert sorted(path.name for path in Path("out/train/%2E.").iterdir()) == ["%2E2.jpg", "1.jpg", "MEN%2F1.jpg"]


CLIMBING = [
    "%2E%2E%2Fevil",
    "%2E%2E",
    "%2E",
    "%2Ftmp%2Fevil",
    "%252E%252E%252Fevil",
    "a%2F..%2F..%2Fb",
]


@pytest.mark.parametrize("name", CLIMBING)
def test_export_stays_in_its_folder(tmp_path, monkeypatch, name):
    drawings(Path("data/raw/folder"), {"train": [name, "b"], "test": ["x", "y"]})
    Path("data/raw/folder/train", name, f"{name}.png").write_bytes(picture(1))
    for module in (convert, split):
        run(monkeypatch, module, "folder")
    before = set(tmp_path.rglob("*"))
    run(monkeypatch, export, "folder", "--to", "far/out")
    written = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "far/out") for path in written - {tmp_path / "far"})
    assert len([path for path in written if path.is_file()]) == 9
    # Taken in again, it has the same classes.
    classes = {entry.class_name for entry in read_index(Path("data/packed/folder"))}
    Path("data/raw/folder").rename("before")
    Path("far/out").rename("data/raw/folder")
    run(monkeypatch, convert, "folder")
    assert {entry.class_name for entry in read_index(Path("data/packed/folder"))} == classes


def test_a_name_too_long_to_export_is_named(tmp_path):
    pack([SourceImage("1.jpg", 0, "%" * 100, "", picture(1))], tmp_path / "packed")
    with pytest.raises(
        BadInputError, match=r"%25/1\.jpg: File name too long: export to a file system that accepts such names"
    ):
        export.export(PackedImages(tmp_path / "packed"), {"train": [0]}, tmp_path / "out")


def test_export_before_split_says_what_to_run(monkeypatch):
    with pytest.raises(BadInputError, match="data/splits/cub holds no manifest: run `python -m"):
        run(monkeypatch, export, "cub")


RAW = Path("data/raw/folder")


@pytest.fixture
def raw():
    """A folder of two classes to train on and two to retrieve in."""
    drawings(RAW, {"train": ["a", "b"], "test": ["x", "y"]})
    return RAW


def image(path: Path, seed: int = 7) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(seed))


def converted(monkeypatch, capsys, *arguments: str) -> str:
    """Convert and split the folder; what was printed to stderr."""
    capsys.readouterr()
    run(monkeypatch, convert, "folder", *arguments)
    run(monkeypatch, split, "folder")
    return capsys.readouterr().err


def classes() -> list[str]:
    entries = read_index(Path("data/packed/folder"))
    return [entry.class_name for entry in entries if entry.image == 0 or entries[entry.image - 1].label != entry.label]


@pytest.mark.parametrize(
    ("place", "target", "found"),
    [
        ("train/c", "{tmp}/elsewhere/k", ["a", "b", "c", "x", "y"]),
        ("test/c", "../../../../elsewhere/k", ["a", "b", "c", "x", "y"]),
        ("train/group", "{tmp}/elsewhere", ["a", "b", "group/k", "group/l", "x", "y"]),
        ("train/group/c", "{tmp}/elsewhere/k", ["a", "b", "group/c", "x", "y"]),
        ("train/c/7.png", "{tmp}/elsewhere/k/0.png", ["a", "b", "c", "x", "y"]),
    ],
)
def test_links_are_followed(raw, monkeypatch, capsys, tmp_path, place, target, found):
    for name in ("k/0", "k/1", "l/0", "l/1"):
        image(tmp_path / f"elsewhere/{name}.png", 10 * ord(name[0]) + int(name[2]))
    (raw / place).parent.mkdir(exist_ok=True)
    (raw / place).symlink_to(target.format(tmp=tmp_path))
    assert converted(monkeypatch, capsys) == ""
    assert sorted(classes()) == found


def link(path: Path, target: str) -> None:
    path.symlink_to(target)


def socket_at(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound, contextlib.chdir(path.parent):
        bound.bind(path.name)


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def cut(format: str) -> bytes:
    encoded = picture(4, format=format, size=(80, 60))
    return encoded[: len(encoded) * 2 // 3]


@pytest.mark.parametrize(
    ("spoil", "reasons"),
    [
        (lambda raw: (raw / "test").rename(raw / "val"), ["should hold your images as", "{raw}/train/<class>/<image>"]),
        (lambda raw: image(raw / "query/x/0.png"), ["should hold your images as", "but it has query, test, train"]),
        (
            lambda raw: (raw / "test").rename(raw / "query"),
            ["(or query and gallery in place of test), but it has query, train"],
        ),
        (
            lambda raw: (raw / "train/c").mkdir(),
            ["{raw}/train/c is a class without an image: remove the folder or fill it"],
        ),
        (
            lambda raw: [(raw / "train" / name).mkdir() for name in "cde"],
            ["{raw}/train/c is a class", "{raw}/train/d is a class", "{raw}/train/e is a class", "cannot be used: 3\n"],
        ),
        (
            lambda raw: (shutil.rmtree(raw / "test"), (raw / "test").mkdir()),
            ["{raw}/test holds no class: make a folder in it for each class"],
        ),
        (lambda raw: image(raw / "train/0.png"), ["{raw}/train/0.png lies beside folders of classes: put it into one"]),
        (
            lambda raw: [image(raw / f"train/g/{name}.png") for name in ("0", "1", "c/2")],
            ["{raw}/train/g/0.png lies beside folders", "{raw}/train/g/1.png lies beside folders"],
        ),
        (
            lambda raw: link(raw / "train/up", ".."),
            ["{raw}/train/up is a link to a folder that it lies in: remove the link"],
        ),
        (lambda raw: link(raw / "train/root", "/"), ["{raw}/train/root is a link to a folder that it lies in"]),
        (lambda raw: link(raw / "train/a/self", "."), ["{raw}/train/a/self is a link to a folder that it lies in"]),
        (
            lambda raw: (link(raw / "train/p", "q"), link(raw / "train/q", "p")),
            ["{raw}/train/p is a link to nothing", "{raw}/train/q is a link to nothing"],
        ),
        (lambda raw: link(raw / "train/k", "/nowhere"), ["{raw}/train/k is a link to nothing: remove or correct it"]),
        (
            lambda raw: [link(raw / f"test/x/{name}.png", "/nowhere") for name in "pq"],
            ["  test/x/p.png: a link to nothing", "  test/x/q.png: a link to nothing"],
        ),
        (lambda raw: link(raw / "test/x/p.png", "p.png"), ["  test/x/p.png: Too many levels of symbolic links"]),
        (
            lambda raw: link(raw / "test/x/p.png", "/dev/zero"),
            ["  test/x/p.png: not a file but a pipe, a socket or"],
        ),
        (
            lambda raw: os.mkfifo(raw / "test/x/p.png"),
            ["  test/x/p.png: not a file but a pipe, a socket or a device"],
        ),
        (
            lambda raw: socket_at(raw / "test/x/p.png"),
            ["  test/x/p.png: not a file but a pipe, a socket or a device"],
        ),
        (
            lambda raw: sparse(raw / "test/x/p.png", 3 << 30),
            ["  test/x/p.png: it has 3,221,225,472 bytes, but the limit is 67,108,864"],
        ),
        (lambda raw: sparse(raw / "test/x/p.png", 0), ["  test/x/p.png: not an image"]),
        (
            lambda raw: (raw / "train/a/notes.txt").write_text("?"),
            ["cannot be used, fix or replace them: 1\n  train/a/notes.txt: not an image"],
        ),
        (lambda raw: image(raw / "train/a/a\rb.png"), ["  'train/a/a\\rb.png': its name holds control characters"]),
        (
            lambda raw: image(raw / os.fsdecode(b"train/a/\xff.png")),
            ["  'train/a/\\udcff.png': its name holds control"],
        ),
        (lambda raw: image(raw / os.fsdecode(b"train/caf\xe9/0.png")), ["  'train/caf\\udce9/0.png': its name holds"]),
        (
            lambda raw: [(raw / f"test/x/p.{format}").write_bytes(cut(format)) for format in ("AVIF", "QOI", "DDS")],
            ["  test/x/p.AVIF: ", "  test/x/p.QOI: ", "  test/x/p.DDS: ", "cannot be used, fix or replace them: 3\n"],
        ),
        (
            lambda raw: (os.mkfifo(raw / "train/a/p"), link(raw / "train/b/q", "/x"), sparse(raw / "test/x/r", 9)),
            [
                "  train/a/p: not a file",
                "  train/b/q: a link to nothing",
                "  test/x/r: not an image",
                "replace them: 3\n",
            ],
        ),
    ],
)
def test_what_cannot_be_used_is_named_all_of_it(raw, monkeypatch, spoil, reasons):
    spoil(raw)
    with pytest.raises(BadInputError) as error:
        run(monkeypatch, convert, "folder")
    for reason in reasons:
        assert reason.format(raw=raw) in str(error.value)
    assert all(line.isprintable() for line in str(error.value).split("\n"))
    assert not Path("data/packed/folder").exists()


@pytest.mark.parametrize(
    ("function", "place", "reason"),
    [
        ("read_bytes", "train/a/0.png", "fix or replace them: 1\n  train/a/0.png: Permission denied"),
        ("iterdir", "train/b", "cannot be used: 1\n  data/raw/folder/train/b cannot be read: Permission denied"),
    ],
)
def test_what_may_not_be_read_is_named(raw, monkeypatch, function, place, reason):
    """By a patch: tests may run as root, who may read everything."""
    original = getattr(Path, function)

    def refuse(path):
        if path == raw / place:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(Path, function, refuse)
    with pytest.raises(BadInputError, match=re.escape(reason)):
        run(monkeypatch, convert, "folder")


def test_many_broken_images_are_in_a_file_that_goes_when_they_are_fixed(raw, monkeypatch):
    names = [f"train/a/{number:03}.txt" for number in range(100)]
    for name in names:
        (raw / name).write_text("?")
    with pytest.raises(BadInputError) as error:
        run(monkeypatch, convert, "folder")
    lines = str(error.value).split("\n")
    assert lines[0].endswith(": 100") and len(lines) == 23
    assert lines[-2:] == ["  … and 80 more", "data/packed/folder.broken.txt names them all"]
    listed = Path("data/packed/folder.broken.txt")
    assert listed.read_text().splitlines() == [f"{name}: not an image" for name in names]
    for name in names:
        (raw / name).unlink()
    run(monkeypatch, convert, "folder")
    assert not listed.exists()


def test_what_is_left_out_is_named(raw, monkeypatch, capsys):
    image(raw / "val/z/0.png")
    image(raw / "stray.png")
    image(raw / "train/..a/0.png")
    image(raw / "train/a/@eaDir/0.png")  # which would make a a group, in which images lie astray
    for name in ("Thumbs.db", "._0.png"):
        (raw / "train/a" / name).write_bytes(b"x")
    assert converted(monkeypatch, capsys) == (
        f"{raw}: 3 files and folders of file managers are left out (._*, @eaDir, Thumbs.db)\n"
        f"warning: {raw}: names that begin with a dot are left out:\n  train/..a\n"
        f"warning: {raw}: only train, test are read. These are left out:\n  stray.png\n  val\n"
    )
    assert classes() == ["a", "b", "x", "y"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["50%", "50%25"], ["50%", "50%25"]),
        (["g/b", "g%2Fb"], ["g%2Fb", "g/b"]),
        (["%FE", "%FF"], ["%FE", "%FF"]),
        (["%41", "A"], ["%41", "A"]),
        (["50%25", "60%25"], ["50%", "60%"]),
        (["g%2Fb", "%2Ehidden"], [".hidden", "g/b"]),
    ],
)
def test_two_folders_never_become_one_class(monkeypatch, capsys, names, found):
    drawings(RAW, {"train": names, "test": ["x", "y"]})
    assert converted(monkeypatch, capsys) == ""
    assert sorted(classes()) == [*found, "x", "y"]
    assert [name for name in classes() if name in "xy"] == ["x", "y"]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["b", "B", "c"], ["x"], "'B' and 'b'"),
        (["b", "c"], ["B", "x"], "'B' and 'b'"),
        (["caf\u00e9", "cafe\u0301"], ["x"], r"'cafe\u0301' and 'caf\xe9'"),
        (["STRASSE", "straße"], ["x"], r"'STRASSE' and 'stra\xdfe'"),
        (["g/b", "G/b"], ["x"], "'G/b' and 'g/b'"),
        (["b", "b ", "c"], ["x"], "'b' and 'b '"),
        (["b", "\ufeffb", "c"], ["x"], r"'b' and '\ufeffb'"),
        (["a", "b"], ["x"], ""),
    ],
)
def test_classes_whose_names_are_alike_are_named(monkeypatch, capsys, train, test, message):
    drawings(RAW, {"train": train, "test": test})
    printed = converted(monkeypatch, capsys)
    expected = f"warning: {RAW}: the names of these classes are alike. Are they one class?\n  {message}\n"
    assert printed == (expected if message else "")
    assert len(classes()) == len(train) + len(test)


def test_images_are_turned_where_that_is_asked_for(raw, monkeypatch, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(raw / "train/a/turned.jpg", exif=exif)
    message = "folder: 1 images say in EXIF that they are turned; they are "
    stored = "read as they are stored, as ImageFolder reads them; --upright turns them\n"
    for arguments, size, printed in (([], (30, 20), stored), (["--upright"], (20, 30), "turned upright\n")):
        assert converted(monkeypatch, capsys, *arguments) == message + printed
        entries = read_index(Path("data/packed/folder"))
        assert [(e.width, e.height) for e in entries if e.name == "train/a/turned.jpg"] == [size]
    with pytest.raises(BadInputError, match="--upright is for folders of your own: cub is read as its published"):
        run(monkeypatch, convert, "cub", "--upright")


def test_a_class_in_both_parts_is_a_classification_split(monkeypatch):
    drawings(Path("data/raw/folder"), {"train": ["a", "b"], "test": ["b", "x"]})
    folder.download(Path("data/raw/folder"))
    run(monkeypatch, convert, "folder")
    with pytest.raises(
        BadInputError, match=r"1 classes are both in train .*:\n  b\n.*Put all images of a class into train"
    ):
        run(monkeypatch, split, "folder")
    assert not Path("data/splits/folder").exists()
