"""The packed store: the same bytes in, the same bytes out, from any process; decoders that agree."""

import io
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pipeline.base.files import BadInputError
from pipeline.data import packed
from pipeline.data.index import COLUMNS
from pipeline.data.packed import DecodedImages, PackedImages, SourceImage, pack
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


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("subsampling", [0, 1, 2], ids=["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_simplejpeg_and_pillow_decode_to_the_same_pixels(quality, subsampling, progressive):
    """Measured difference: none. Sizes that no block divides are where decoders part."""
    for seed, size in enumerate([(64, 64), (61, 47), (500, 375), (7, 131)]):
        buffer = io.BytesIO()
        pixels = by_pillow(picture(seed, format="PNG", size=size))
        noise = np.random.default_rng(seed).integers(-30, 30, pixels.shape)
        noisy = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
        noisy.save(buffer, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
        np.testing.assert_array_equal(simplejpeg.decode_jpeg(buffer.getvalue(), "RGB"), by_pillow(buffer.getvalue()))


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
    with pytest.raises(ValueError, match="decoded with 3 channels, 1 asked for"):
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


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: (f / "images.bin").write_bytes(b"x"), "has 1 bytes, its index ends at"),
        (lambda f: (f / "images.bin").unlink(), "has 0 bytes, its index ends at"),
        (lambda f: (f / "index.csv").unlink(), "index.csv is missing: run the convert stage"),
        (
            lambda f: (f / "index.csv").write_text("image,offset\n"),
            "does not begin with the columns image,offset,length",
        ),
        (lambda f: (f / "index.csv").write_text(",".join(COLUMNS) + "\n0,0\n"), "line 2 is not an entry"),
    ],
    ids=["cut", "no images", "no index", "other columns", "cut row"],
)
def test_a_broken_store_is_named(store, spoil, reason):
    spoil(store.folder)
    with pytest.raises(BadInputError, match=reason):
        PackedImages(store.folder)


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
