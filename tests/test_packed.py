"""The packed store: the same bytes in, the same bytes out, from any process; damage named."""

import csv
import io
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline.base.files import BadInputError
from pipeline.data import packed
from pipeline.data.checksums import write_sums
from pipeline.data.packed import DecodedImages, PackedImages, SourceImage, pack
from tests import swap
from tests.lookalikes import REPOSITORY, picture

PICTURES = {
    "rgb.jpg": picture(1, size=(61, 47)),
    "stray bytes.jpg": picture(8)[:-2] + b"stray\xff\xd9",
    "grey.jpg": picture(2, "L"),
    "cmyk.jpg": picture(3, "CMYK"),
    "palette.png": picture(4, "P", "PNG"),
    "alpha.png": picture(5, "RGBA", "PNG"),
    "line.png": picture(6, "1", "PNG"),
    "palette.gif": picture(7, "P", "GIF"),
}


@pytest.fixture
def store(tmp_path):
    """A packed folder of `PICTURES`."""
    pack((SourceImage(name, 0, "a", "", content) for name, content in PICTURES.items()), tmp_path / "packed")
    return PackedImages(tmp_path / "packed")


def by_pillow(encoded: bytes, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert(mode))


def test_bytes_come_back_unchanged(store):
    assert [store.encoded(image) for image in range(len(store))] == list(PICTURES.values())
    assert [(entry.width, entry.height) for entry in store.entries] == [(61, 47)] + [(40, 30)] * 7


def test_every_kind_of_image_is_rgb_or_grey(store):
    for image, encoded in enumerate(PICTURES.values()):
        pixels = store.decoded(image, 3)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, by_pillow(encoded))
        np.testing.assert_array_equal(store.decoded(image, 1)[..., 0], by_pillow(encoded, "L"))


def total(images: PackedImages | DecodedImages, image: int) -> int:
    """The sum of an image's pixels, for a worker to compute."""
    return int(images.decoded(image, 3).sum(dtype=np.int64))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same(store, method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.starmap(total, [(store, image) for image in range(len(store))] * 3)
    assert found == [total(store, image) for image in range(len(store))] * 3


def test_decoded_images_are_those_of_the_store(store):
    decoded = DecodedImages(store, [5, 0, 2], 3)
    for image in (0, 2, 5):
        np.testing.assert_array_equal(decoded.decoded(image, 3), store.decoded(image, 3))
    with pytest.raises(ValueError, match="decoded with 3 channels, not 1"):
        decoded.decoded(0, 1)


def test_decoded_images_that_do_not_fit_are_refused_before_the_first(store, monkeypatch):
    monkeypatch.setattr(packed, "available_memory", lambda: 8000)
    with pytest.raises(BadInputError, match="2 decoded images take 12,201 bytes, 8,000 are free"):
        DecodedImages(store, [0, 1], 3)


def test_images_are_packed_in_their_order_whatever_order_they_come_in(tmp_path):
    sources = [SourceImage(f"{place}.jpg", 0, "a", "", picture(place), (place // 2,)) for place in range(8)]
    pack(sources, tmp_path / "a")
    # Equal places stay as they come.
    pack([sources[place] for place in (6, 7, 2, 3, 0, 1, 4, 5)], tmp_path / "b")
    for file in ("images.bin", "index.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert [path.name for path in sorted((tmp_path / "b").iterdir())] == ["SHA256SUMS", "images.bin", "index.csv"]


def edited(function):
    """What spoils index.csv by a function of its lines, and writes SHA256SUMS anew: the index alone has to notice."""

    def spoil(folder):
        path = folder / "index.csv"
        path.write_text("".join(function(path.read_text().splitlines(keepends=True))))
        write_sums(folder, [path])

    return spoil


def replaced(line, column, text):
    """Another text in one column of one line, both counted from 0."""

    def edit(lines):
        fields = next(csv.reader([lines[line].rstrip("\n")]))
        fields[column] = text
        return [*lines[:line], ",".join(fields) + "\n", *lines[line + 1 :]]

    return edited(edit)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: (f / "images.bin").write_bytes(b"x"), "images.bin has 1 bytes, its index ends at"),
        (lambda f: (f / "images.bin").unlink(), "images.bin has 0 bytes, its index ends at"),
        (lambda f: (f / "index.csv").unlink(), "index.csv is missing"),
        (
            lambda f: (f / "index.csv").write_text("image,offset\n"),
            "index.csv does not begin with the columns image,offset,length",
        ),
        (lambda f: (f / "index.csv").write_text(""), "index.csv does not begin with the columns"),
        (lambda f: (f / "index.csv").write_bytes(b"image\n\xff"), "index.csv line 2 is not UTF-8 text"),
        (edited(lambda lines: [lines[0], "0,0\n"]), "index.csv line 2 is not an entry"),
        (
            edited(lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]]),
            "line 3 has the number 2, but 1 is expected",
        ),
        (edited(lambda lines: [*lines[:2], *lines[3:]]), "line 3 has the number 2, but 1 is expected"),
        (edited(lambda lines: lines[:-2]), r"images.bin has \d+ bytes, its index ends at"),
        (replaced(3, 0, "-1"), "line 4 has the number -1, but 2 is expected"),
        (replaced(2, 1, "5"), r"line 3 has \d+ bytes from byte 5 on, but the image before it ends at"),
        (replaced(2, 2, "5"), r"line 4 has \d+ bytes from byte \d+ on, but the image before it ends at"),
        (replaced(2, 3, "0"), "line 3 has an impossible size, label or orientation"),
        (replaced(2, 5, "-1"), "line 3 has an impossible size, label or orientation"),
        (replaced(2, 5, "1"), "line 3 gives 'a' the label 1, but an earlier line 0"),
        (replaced(2, 6, "b"), "line 3 gives the label 0 to 'b', but an earlier line to 'a'"),
        (replaced(2, 8, "rgb.jpg"), "line 3 has the name 'rgb.jpg', which an earlier line has"),
        (replaced(2, 9, "x" * 64), f"line 3 has '{'x' * 64}', which is not a SHA-256"),
        (replaced(2, 3, "x"), "line 3 is not an entry"),
        (
            lambda f: swap(f / "index.csv", "grey", "gray"),
            "index.csv has changed since .*SHA256SUMS was written",
        ),
        (lambda f: (f / "SHA256SUMS").unlink(), "SHA256SUMS is missing"),
        (lambda f: (f / "SHA256SUMS").write_text("<html>\n"), "SHA256SUMS line 1 is not a SHA-256"),
        (lambda f: (f / "SHA256SUMS").write_text(""), "SHA256SUMS has no line for index.csv"),
    ],
)
def test_a_broken_store_is_named(store, spoil, reason):
    spoil(store.folder)
    with pytest.raises(BadInputError, match=rf"{store.folder}/.*{reason}.*: run the convert stage"):
        PackedImages(store.folder)


def swapped(content: bytes, entries) -> bytes:
    """The bytes of the first two images in each other's place."""
    first, second = entries[:2]
    assert first.offset == 0 and first.length != second.length
    end = first.length + second.length
    return content[first.length : end] + content[: first.length] + content[end:]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content, _: bytes([content[0] ^ 1]) + content[1:],
        lambda content, entries: content[:100] + bytes([content[100] ^ 128]) + content[101:],
        swapped,
        lambda content, _: bytes(len(content)),
    ],
    ids=["first bit", "another bit", "images swapped", "zeros"],
)
@pytest.mark.parametrize("read", [PackedImages.encoded, lambda images, image: DecodedImages(images, [image], 3)])
def test_an_image_that_changed_is_named_when_it_is_first_read(store, spoil, read):
    path = store.folder / "images.bin"
    path.write_bytes(spoil(path.read_bytes(), store.entries))
    images = PackedImages(store.folder)
    reason = r"images.bin: image 0, rgb.jpg: its bytes are not those that were packed: run the convert stage again"
    with pytest.raises(BadInputError, match=reason):
        read(images, 0)
    if any(path.read_bytes()):
        assert images.encoded(7) == PICTURES["palette.gif"], "the others can be read"


def test_an_image_of_another_size_than_the_index_says_is_named(store):
    replaced(1, 3, "60")(store.folder)
    with pytest.raises(BadInputError, match=r"image 0, rgb.jpg: it has 61 x 47 pixels, the index has 60 x 47"):
        PackedImages(store.folder).decoded(0, 3)


def test_classes_that_contradict_each_other_are_named(tmp_path):
    for place, (label, name) in enumerate([(1, "a"), (0, "b")]):
        sources = [SourceImage("1.jpg", 0, "a", "", picture(1)), SourceImage("2.jpg", label, name, "", picture(2))]
        message = rf"1.jpg has the label 0 and the class a, 2.jpg has the label {label} and the class {name}"
        with pytest.raises(BadInputError, match=f"lists contradict each other: {message}"):
            pack(sources, tmp_path / str(place))


@pytest.mark.parametrize("name", ["a\rb", "a\nb", "a\0b", "a\x1b[2Jb", "a\x7fb", "a\x85b", "caf\udce9"])
def test_names_that_no_list_can_hold_are_named(tmp_path, name):
    sources = [SourceImage(name, 0, "a", "", picture(1)), SourceImage("x.jpg", 0, name, "", picture(1))]
    with pytest.raises(BadInputError) as error:
        pack(sources, tmp_path / "packed")
    lines = str(error.value).split("\n")
    what = "its name holds control characters or is not UTF-8: rename it"
    assert lines[1:] == [f"  {name!r}: {what}", f"  x.jpg: {what}"]
    assert str(error.value).replace("\n", "").isprintable()


@pytest.mark.parametrize("name", ["a,b", 'a"b', "a b", "é", "e\u0301", "\u2028", "日本", "%25", "a'b", " a ", "-"])
def test_other_names_come_back_unchanged(tmp_path, name):
    pack([SourceImage(name, 0, name, name, picture(1))], tmp_path / "packed")
    entry = PackedImages(tmp_path / "packed").entries[0]
    assert (entry.name, entry.class_name, entry.part) == (name, name, name)


def test_many_broken_images_are_a_list_that_can_be_read(tmp_path):
    with pytest.raises(BadInputError) as error:
        pack((SourceImage(f"{place}.jpg", 0, "a", "", b"?") for place in range(1500)), tmp_path / "packed")
    lines = str(error.value).split("\n")
    assert lines[0] == "images that cannot be used, fix or replace them: 1,500"
    assert lines[1:] == [f"  {place}.jpg: not an image" for place in range(20)] + [
        "  … and 1,480 more",
        f"{tmp_path}/packed.broken.txt names them all",
    ]
    every = (tmp_path / "packed.broken.txt").read_text().splitlines()
    assert every == [f"{place}.jpg: not an image" for place in range(1500)]


def test_data_stages_do_without_torch():
    """Importing torchvision takes two seconds."""
    code = "import sys, pipeline.download, pipeline.convert, pipeline.split, pipeline.subsets, pipeline.datasets.glyphs"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print({{'torch', 'torchvision'}} & set(sys.modules))"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "set()\n"
