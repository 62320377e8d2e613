"""Image files to pixels: one function decides which images the convert stage accepts and which pixels training reads.

simplejpeg (libjpeg-turbo) decodes JPEG files in colour or grey. It is a quarter faster than Pillow and, in the versions
pinned here, gives the same pixels (tests/test_decoding.py checks this). If simplejpeg reports any problem, Pillow
decides: it reads files that simplejpeg refuses (JFIF 2.01, stray bytes between markers, rare samplings) and refuses
files that are cut. Pillow also reads all other formats, and CMYK, which the two convert to RGB with differences of 1 in
255. If a file holds several images, the first is read. Transparency is left out.

Grey of 16 bits keeps the higher byte (`value >> 8`), as Pillow does for colour of 16 bits. Grey of 32 bits and floating
point are refused, because nothing says which of their numbers is white.
"""

import io
import logging
import re
import warnings

import numpy as np
import simplejpeg
from PIL import Image

PIXEL_LIMIT = 1 << 26
"""The most pixels of an image, 8192 x 8192. The largest in the benchmark datasets has 42 million."""

BYTE_LIMIT = 64 << 20
"""The most bytes of an image file. The largest in the benchmark datasets has 15 million."""

MODES = {1: "L", 3: "RGB"}

EIGHT_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
"""Pillow's modes whose pixels have at most 8 bits for each channel, and can become RGB and grey."""

# Pillow prints its log messages about damaged files without the file's name. The errors of these files say enough.
logging.getLogger("PIL").addHandler(logging.NullHandler())

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the operation that makes the image upright; 1 is upright already."""


def decode(encoded: bytes, channels: int, orientation: int = 1, least: int = 0) -> np.ndarray:
    """The image as uint8 (height, width, channels), a copy; one channel is grey, three are RGB.

    It is turned upright by the given EXIF orientation; the file's own orientation is not read. With `least`, JPEG files
    that simplejpeg reads are decoded at a smaller scale, with no side shorter than `least` pixels; this changes the
    pixels. Raises `ValueError` with a reason of one line if the image cannot be decoded.
    """
    try:
        pixels = _by_simplejpeg(encoded, least)
        if pixels is None:
            pixels = _by_pillow(encoded, MODES[channels])
        elif channels == 1:
            pixels = np.array(Image.fromarray(pixels).convert("L"))
        if orientation != 1:
            pixels = np.array(Image.fromarray(pixels).transpose(TURNS[orientation]))
    # Damaged files lead to many kinds of errors in the readers.
    except Exception as error:
        raise ValueError(_reason(error)) from None
    return pixels.reshape(*pixels.shape[:2], channels)


def check(encoded: bytes, upright: bool = False) -> tuple[int, int, int, str]:
    """Decode an image as training will, in colour and in grey; return its width, height and EXIF orientation, and what
    the decoder says if pixels are lost (see `lost_pixels`).

    With `upright`, width and height are those of the turned image, in pixels. Raises `ValueError` as `decode` does.
    """
    orientation = _orientation(encoded)
    pixels, lost = None if upright else _by_simplejpeg(encoded, 0), ""
    if pixels is None:
        pixels = decode(encoded, 3, orientation if upright else 1)
        lost = lost_pixels(encoded)
    if not _is_jpeg(encoded):
        decode(encoded, 1)  # A JPEG file needs no second check, because its grey is made from its RGB.
    return pixels.shape[1], pixels.shape[0], orientation, lost


STRAY = 16
"""The most bytes between the pixels and the end of a JPEG file that are taken for padding. If pixels are damaged, many
more are left over: the decoder reads on at a wrong place, and has all pixels too early."""

LOST = re.compile(
    "extraneous bytes before marker|premature end of data segment|Premature end of JPEG file|bad Huffman code|"
    "found marker .* instead of RST|Inconsistent progression sequence"
)
"""What libjpeg says if it made up pixels, or shifted them. Its other warnings are harmless."""


def lost_pixels(encoded: bytes) -> str:
    """What libjpeg says of a JPEG file that it reads, but not all pixels of it; empty for other files.

    Three kinds of damage are harmless, because every pixel is there: stray bytes between the segments of the header, up
    to `STRAY` of them before the end, and a lacking mark of the end. A file is harmless if it decodes without a warning
    after they are corrected. Damage after which the decoder finds the right number of pixels by chance is not noticed.
    """
    said = _warning(encoded)
    said = _warning(_corrected(encoded)) if said else ""
    at_end = re.search("([0-9]+) extraneous bytes before marker 0xd9", said)
    return "" if at_end and int(at_end[1]) <= STRAY else said


def _warning(encoded: bytes) -> str:
    """libjpeg's warning on a JPEG file, if it means that pixels are lost; otherwise empty."""
    if not _is_jpeg(encoded):
        return ""
    try:
        colours = simplejpeg.decode_jpeg_header(encoded)[2]
        simplejpeg.decode_jpeg(encoded, "CMYK" if colours in ("CMYK", "YCCK") else "GRAY")
    # This includes KeyError, for samplings without a name; what cannot be decoded at all is an error elsewhere.
    except Exception as error:
        return _reason(error) if LOST.search(str(error)) else ""
    return ""


def _corrected(encoded: bytes) -> bytes:
    """A JPEG file without stray bytes between the segments before its first scan, and with a mark of its end."""
    segments, place = [encoded[:2]], 2
    while 0 <= (place := encoded.find(b"\xff", place)) < len(encoded) - 4:
        marker = encoded[place + 1]
        if marker == 0xDA:
            break
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:  # no segment with a length
            place += 1
            continue
        end = place + 2 + int.from_bytes(encoded[place + 2 : place + 4])
        segments.append(encoded[place:end])
        place = end
    ended = encoded.rstrip(b"\0").endswith(b"\xff\xd9")
    return b"".join([*segments, encoded[max(place, 0) :], b"" if ended else b"\xff\xd9"])


def _is_jpeg(encoded: bytes) -> bool:
    return encoded.startswith(b"\xff\xd8\xff")


def _by_simplejpeg(encoded: bytes, least: int) -> np.ndarray | None:
    """A JPEG file as RGB, uint8 (height, width, 3), with no side shorter than `least` unless that is 0. None for other
    files and if anything is unusual."""
    if not _is_jpeg(encoded):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        if colours not in ("YCbCr", "Gray") or height * width > PIXEL_LIMIT:
            return None
        # A scale is chosen only if a least size is given, and not for small images. Otherwise the call has no options.
        scaled = {"min_height": least, "min_width": least} if 0 < least < min(height, width) else {}
        decoded: np.ndarray = simplejpeg.decode_jpeg(encoded, "RGB", **scaled)
        return decoded
    # This includes KeyError, which simplejpeg raises for samplings that it has no name for.
    except Exception:
        return None


def _by_pillow(encoded: bytes, mode: str) -> np.ndarray:
    """An image file read by Pillow, as uint8 in the mode RGB or L. Raises many kinds of errors."""
    # Pillow's warnings either become errors later or do not concern pixels.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(encoded)) as image:
            width, height = image.size
            if not 0 < width * height <= PIXEL_LIMIT:
                raise ValueError(f"it has {width:,} x {height:,} pixels, but the limit is {PIXEL_LIMIT:,}")
            if image.format == "EPS":
                raise ValueError("it is an EPS file, which only another program could draw: save it as PNG")
            image.load()
            # Pillow reads PGM files of 16 bits, and in older releases PNG files of 16 bits, as numbers of 32 bits.
            if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
                pixels = np.asarray(image)
                if image.format == "TIFF" and image.tag_v2.get(262) == 0:  # type: ignore[attr-defined]
                    pixels = 65535 - pixels  # In these files 0 is white. With 8 bits Pillow inverts them itself.
                return np.array(Image.fromarray((pixels >> 8).astype(np.uint8)).convert(mode))
            if image.mode not in EIGHT_BITS:
                raise ValueError(f"its pixels are of the kind {image.mode}: save it as grey or RGB of 8 bits")
            # A copy, because PyTorch needs an array that it may write to.
            return np.array(image if image.mode == mode else image.convert(mode))


def _orientation(encoded: bytes) -> int:
    """The EXIF orientation of an image file, 1 to 8; 1 if the file has none that can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(encoded)) as image:
                # Pillow itself turns TIFF files when it reads them.
                orientation = image.getexif().get(0x0112, 1) if image.format != "TIFF" else 1
    except Exception:
        return 1
    return orientation if orientation in TURNS else 1


def _reason(error: Exception) -> str:
    """An error in one line."""
    words = " ".join(str(error).split()) or type(error).__name__
    if "cannot identify image file" in words:
        return "not an image"
    return words if len(words) <= 200 else f"{words[:200]}…"
