"""Image files of every kind: what convert accepts, training reads, with the pixels that they should have."""

import io
import random
import re
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pipeline.base.files import BadInputError
from pipeline.data import decoding
from pipeline.data.decoding import check, decode, lost_pixels
from pipeline.data.packed import PackedImages, SourceImage, pack
from tests.lookalikes import picture


def by_pillow(encoded: bytes, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert(mode))


def saved(pixels: np.ndarray, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 255, marker, len(content) + 2) + content


def flat_jpeg(factors, revision=(1, 1), stray=(2, b"")) -> bytes:
    """A grey area of 50 x 41 as JPEG, by hand: components of any horizontal and vertical sampling factors. `stray` are
    bytes to put before a segment. Every code of its tables has one bit, so that a block without content takes two."""
    width, height = 50, 41
    wide, high = (8 * max(side) for side in zip(*factors, strict=True))
    blocks = -(-width // wide) * -(-height // high) * sum(h * v for h, v in factors)
    components = [bytes([number, h << 4 | v, 0]) for number, (h, v) in enumerate(factors, 1)]
    table = bytes([1] + [0] * 15) + b"\0"
    count = bytes([len(factors)])
    parts = [
        b"\xff\xd8",
        segment(0xE0, b"JFIF\0" + bytes(revision) + b"\0\0\1\0\1\0\0"),
        segment(0xDB, b"\0" + b"\x10" * 64),
        segment(0xC0, struct.pack(">BHH", 8, height, width) + count + b"".join(components)),
        segment(0xC4, b"\0" + table),
        segment(0xC4, b"\x10" + table),
        segment(0xDA, count + b"".join(part[:1] + b"\0" for part in components) + b"\0\x3f\0"),
    ]
    parts.insert(*stray)
    return b"".join(parts) + bytes(-(-2 * blocks // 8)) + b"\xff\xd9"


COLOUR = [(2, 2), (1, 1), (1, 1)]
SAMPLINGS = [
    [(h, v), one, other]
    for h in (1, 2, 3, 4)
    for v in (1, 2, 3, 4)
    for one in ((1, 1), (2, 1), (1, 2))
    for other in ((1, 1), (1, 2))
    if h * v + one[0] * one[1] + other[0] * other[1] <= 10
    # Nobody reads files where a component is sampled at two thirds of another.
    and all(max(sides) % side == 0 for sides in zip((h, v), one, other, strict=True) for side in sides)
]


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(
    "files",
    [
        [flat_jpeg(factors) for factors in SAMPLINGS],
        [flat_jpeg(COLOUR, revision) for revision in ((0, 9), (1, 0), (1, 2), (2, 0), (2, 1), (9, 9))],
        [flat_jpeg(COLOUR, stray=(place, b)) for place in range(2, 7) for b in (b"\0", b"\0\0", b"stray")],
        [flat_jpeg([(1, 1)], stray=(2, b"\0\0")), flat_jpeg([(1, 1)], (2, 1)), flat_jpeg([(2, 2)])],
    ],
    ids=["samplings", "revisions of JFIF", "bytes between markers", "grey"],
)
def test_jpeg_files_that_pillow_reads_and_simplejpeg_refuses(files, channels):
    assert len(files) >= 3
    for encoded in files:
        assert check(encoded) == (50, 41, 1, "")
        np.testing.assert_array_equal(decode(encoded, channels), np.full((41, 50, channels), 128))
    refused = 0
    for encoded in files:
        try:
            simplejpeg.decode_jpeg(encoded, "RGB")
        except Exception:
            refused += 1
    assert refused, "simplejpeg reads them all: this test tests nothing"


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("subsampling", [0, 1, 2], ids=["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_simplejpeg_and_pillow_decode_to_the_same_pixels(quality, subsampling, progressive):
    """Measured difference: none. Sizes that no block divides are where decoders part."""
    for seed, size in enumerate([(64, 64), (61, 47), (500, 375), (7, 131)]):
        pixels = by_pillow(picture(seed, format="PNG", size=size))
        noise = np.random.default_rng(seed).integers(-30, 30, pixels.shape)
        noisy = (pixels + noise).clip(0, 255).astype(np.uint8)
        encoded = saved(noisy, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
        np.testing.assert_array_equal(simplejpeg.decode_jpeg(encoded, "RGB"), by_pillow(encoded))
        for channels, mode in ((3, "RGB"), (1, "L")):
            pixels = decode(encoded, channels)
            np.testing.assert_array_equal(pixels.squeeze(), by_pillow(encoded, mode))
            assert pixels.flags.writeable


SIXTEEN = np.random.default_rng(0).integers(0, 1 << 16, (20, 30)).astype(np.uint16)


@pytest.mark.parametrize(
    ("encoded", "values"),
    [
        (saved(SIXTEEN, "PNG"), SIXTEEN),
        (saved(SIXTEEN, "TIFF"), SIXTEEN),
        (saved(SIXTEEN, "TIFF", compression="tiff_lzw"), SIXTEEN),
        (saved(SIXTEEN, "TIFF", tiffinfo={262: 0}), 65535 - SIXTEEN),
        (saved(SIXTEEN, "JPEG2000"), SIXTEEN),
        (b"P5\n30 20\n65535\n" + SIXTEEN.astype(">u2").tobytes(), SIXTEEN),
        (b"P5\n30 20\n4095\n" + (SIXTEEN >> 4).astype(">u2").tobytes(), SIXTEEN),
    ],
    ids=["PNG", "TIFF", "compressed", "TIFF, white is 0", "JPEG 2000", "PGM", "PGM of 12 bits"],
)
def test_grey_of_16_bits_keeps_its_higher_byte(encoded, values):
    grey = decode(encoded, 1)[..., 0].astype(int)
    # A PGM file of 12 bits is first scaled to 16, which rounds.
    assert np.abs(grey - (values >> 8)).max() <= (b"4095" in encoded[:14])
    np.testing.assert_array_equal(decode(encoded, 3), np.repeat(grey[..., None], 3, 2))
    assert check(encoded) == (30, 20, 1, "")


def black_png(side: int) -> bytes:
    """A square of black pixels, one bit each, which takes no time to write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + -(-side // 8)) * side, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


REFUSED = {
    "float": (saved(SIXTEEN.astype(np.float32), "TIFF"), "its pixels are of the kind F: save it as grey or RGB of 8"),
    "32 bits": (saved(SIXTEEN.astype(np.int32), "TIFF"), "its pixels are of the kind I: save it as grey or RGB of 8"),
    "LAB": (
        saved(np.zeros((4, 4, 3), np.uint8), "TIFF").replace(
            b"\x06\x01\x03\0\x01\0\0\0\x02", b"\x06\x01\x03\0\x01\0\0\0\x08"
        ),
        "its pixels are of the kind LAB",
    ),
    "EPS": (
        saved(np.zeros((4, 4, 3), np.uint8), "EPS"),
        "it is an EPS file, which only another program could draw: save it as PNG",
    ),
    "13,000 x 13,000": (black_png(13_000), "it has 13,000 x 13,000 pixels, but the limit is 67,108,864"),
    "15,000 x 15,000": (black_png(15_000), "exceeds limit of"),
    "no image": (b"<html>no image</html>", "not an image"),
    "empty": (b"", "not an image"),
}


@pytest.mark.parametrize(("encoded", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_agreed_pixels_is_refused(encoded, reason):
    for channels in (1, 3):
        with pytest.raises(ValueError, match=reason) as error:
            decode(encoded, channels)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=reason):
        check(encoded)


def test_a_large_jpeg_is_refused_too(monkeypatch):
    monkeypatch.setattr(decoding, "PIXEL_LIMIT", 1000)
    with pytest.raises(ValueError, match="it has 50 x 41 pixels, but the limit is 1,000"):
        decode(flat_jpeg(COLOUR), 3)


FORMATS = [
    "JPEG",
    "MPO",
    "PNG",
    "GIF",
    "BMP",
    "TIFF",
    "WEBP",
    "AVIF",
    "QOI",
    "DDS",
    "PPM",
    "ICO",
    "TGA",
    "JPEG2000",
    "PCX",
]


def damaged(encoded: bytes, number: int) -> bytes:
    """Cut, with flipped bits, with other bytes in its head, or with some bytes gone or more: by `number`."""
    generator, content = random.Random(number), bytearray(encoded)
    place = generator.randrange(len(content))
    if number % 4 == 0:
        return encoded[:place]
    if number % 4 == 1:
        content[place] ^= 1 << generator.randrange(8)
    elif number % 4 == 2:
        for _ in range(3):
            content[generator.randrange(min(len(content), 120))] = generator.randrange(256)
    else:
        content[place : place + generator.randrange(1, 9)] = bytes(generator.randrange(9))
    return bytes(content)


@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_file_is_refused_in_one_line_or_read_by_training(format, tmp_path, capfd):
    pixels = by_pillow(picture(3, format="PNG"))
    refused = 0
    for number in range(60):
        source = SourceImage(f"{number}.jpg", 0, "a", "", damaged(saved(pixels, format), number))
        try:
            pack([source], tmp_path / str(number))
        except BadInputError as error:
            refused += 1
            assert len(str(error).splitlines()) == 2 and str(error).splitlines()[1].startswith(f"  {number}.jpg: ")
        else:
            packed = PackedImages(tmp_path / str(number))
            for channels in (1, 3):
                entry = packed.entries[0]
                assert packed.decoded(0, channels).shape == (entry.height, entry.width, channels)
    assert 5 < refused < 60
    assert capfd.readouterr().err == ""


TURNED = {2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1], 5: lambda p: p.transpose(1, 0, 2)}
TURNED |= {6: lambda p: np.rot90(p, -1), 8: lambda p: np.rot90(p), 7: lambda p: np.rot90(p, 2).transpose(1, 0, 2)}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_images_are_turned_upright_where_that_is_asked_for(orientation, format, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = saved(by_pillow(picture(5)), format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    stored = by_pillow(encoded)
    upright = TURNED.get(orientation, lambda pixels: pixels)(stored)
    for asked, expected in ((False, stored), (True, upright)):
        packed_images = pack([SourceImage("a.jpg", 0, "a", "", encoded)], tmp_path / str(asked), upright=asked)
        assert packed_images == (1, orientation > 1, [], [])
        packed = PackedImages(tmp_path / str(asked))
        assert packed.encoded(0) == encoded, "the bytes stay"
        np.testing.assert_array_equal(packed.decoded(0, 3), expected)
        assert packed.decoded(0, 1).shape == (*expected.shape[:2], 1)
        head = (tmp_path / str(asked) / "index.csv").read_text().splitlines()[0]
        assert head.endswith(",sha256,orientation" if asked else ",sha256"), "turned or not shows in the index"


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x63\0\0", b"Exif\0\0rubbish"])
def test_an_orientation_that_cannot_be_counts_as_none(exif):
    assert check(saved(by_pillow(picture(5)), "JPEG", exif=exif), upright=True) == (40, 30, 1, "")


def photograph(**options):
    """A JPEG file with enough detail for some kilobytes."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    pixels = Image.fromarray(np.kron(noise, np.ones((10, 10, 1), np.uint8)))
    buffer = io.BytesIO()
    pixels.convert(options.pop("mode", "RGB")).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def spoiled(encoded):
    """Files with lost pixels, by what was done to them."""
    half = len(encoded) // 2
    return {
        "zeros": encoded[:half] + bytes(half // 2) + encoded[half + half // 2 :],
        "half, closed": encoded[:half] + b"\xff\xd9",
        "restarts": encoded[:half] + b"\xff\xd3\xff\xd3" + encoded[half + 4 :],
    }


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}], ids=str)
def test_a_jpeg_that_lost_pixels_is_told_from_one_that_is_only_odd(options):
    good = photograph(**options)
    head = good.index(b"\xff\xdb")
    harmless = {
        "as it is": good,
        "stray bytes in the header": good[:head] + b"abc" + good[head:],
        "zeros before the end": good[:-2] + bytes(3) + b"\xff\xd9",
        "something after the end": good + b"abc" * 100,
        "no end": good[:-2],
        "JFIF 2.01": good.replace(b"JFIF\0\x01", b"JFIF\0\x02", 1),
    }
    assert {name: lost_pixels(encoded) for name, encoded in harmless.items()} == dict.fromkeys(harmless, "")
    for name, encoded in spoiled(good).items():
        assert re.search("extraneous bytes|premature end|Huffman|RST", lost_pixels(encoded)), name


def test_images_with_lost_pixels_are_refused_left_out_or_kept_with_names(tmp_path):
    good = photograph()
    sources = [SourceImage("good.jpg", 0, "a", "", good)]
    sources += [SourceImage(f"{name}.jpg", 0, "a", "", encoded) for name, encoded in spoiled(good).items()]
    sources.append(SourceImage("text.jpg", 0, "a", "", b"?"))
    with pytest.raises(BadInputError, match=r"fix or replace them: 4\n  zeros.jpg: pixels are lost .Corrupt JPEG data"):
        pack(sources, tmp_path / "refused")
    left_out = pack(sources, tmp_path / "left", damage="leave out")
    assert left_out.images == 1 and len(left_out.left_out) == 4 and not left_out.damaged
    kept = pack(sources[:-1], tmp_path / "kept", damage="keep")
    assert kept.images == 4 and len(kept.damaged) == 3 and kept.damaged[1].startswith("half, closed.jpg: Corrupt JPEG")
