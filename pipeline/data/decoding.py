"""Image files to pixels: the one function that decides which images convert accepts and what training reads.

JPEG files in colour or grey are decoded by simplejpeg (libjpeg-turbo), a quarter faster than by Pillow and, in the
versions pinned here, equal in every pixel (tests/test_decoding.py holds them to that). Where simplejpeg has the
slightest complaint, Pillow decides: it reads files that simplejpeg refuses (JFIF 2.01, stray bytes between markers,
rare samplings) and refuses those that are cut. CMYK, which the two turn to RGB with differences of 1 in 255, and all
other formats are Pillow's, too. Of a file that holds several images the first is read; transparency is left out.

Grey of 16 bits keeps the higher byte (`value >> 8`), as Pillow does it for colour of 16 bits. Grey of 32 bits and
floating point are refused: nothing says which of their numbers is white.
"""

import io
import logging
import warnings

import numpy as np
import simplejpeg
from PIL import Image

PIXEL_LIMIT = 1 << 26
"""Pixels that an image may have, as 8192 x 8192; the largest in the benchmark datasets has 42 million."""

BYTE_LIMIT = 64 << 20
"""Bytes that an image file may have; the largest in the benchmark datasets has 15 million."""

MODES = {1: "L", 3: "RGB"}

EIGHT_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
"""Pillow's modes whose pixels have 8 bits a channel, or fewer, and become RGB and grey."""

# Pillow prints what it logs of damaged files, without a file's name: their errors say enough.
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
"""What makes an image upright, by its EXIF orientation; 1 is upright."""


def decode(encoded: bytes, channels: int, orientation: int = 1, least: int = 0) -> np.ndarray:
    """The image as uint8 (height, width, channels), a copy; one channel is grey, three are RGB.

    It is turned upright by the EXIF orientation that is given; the file's own is not looked at. With `least`, JPEG
    files that simplejpeg reads are decoded at a smaller scale, no side shorter than that, to other pixels. Raises
    `ValueError` with a reason of one line for whatever cannot be decoded.
    """
    try:
        pixels = _by_simplejpeg(encoded, least)
        if pixels is None:
            pixels = _by_pillow(encoded, MODES[channels])
        elif channels == 1:
            pixels = np.array(Image.fromarray(pixels).convert("L"))
        if orientation != 1:
            pixels = np.array(Image.fromarray(pixels).transpose(TURNS[orientation]))
    # Readers of damaged files run into many kinds of errors.
    except Exception as error:
        raise ValueError(_reason(error)) from None
    return pixels.reshape(*pixels.shape[:2], channels)


def check(encoded: bytes, upright: bool = False) -> tuple[int, int, int]:
    """Decode an image as training will, in colour and in grey; return its width and height and its EXIF orientation.

    Width and height are those of the turned image where `upright` asks for that. Raises `ValueError` as `decode` does.
    """
    orientation = _orientation(encoded)
    pixels = decode(encoded, 3, orientation if upright else 1)
    if not _is_jpeg(encoded):
        decode(encoded, 1)  # of a JPEG file, grey is made from the RGB
    return pixels.shape[1], pixels.shape[0], orientation


def _is_jpeg(encoded: bytes) -> bool:
    return encoded.startswith(b"\xff\xd8\xff")


def _by_simplejpeg(encoded: bytes, least: int) -> np.ndarray | None:
    """A JPEG file as RGB, uint8 (height, width, 3), no side shorter than `least` unless that is 0; None for other files
    and where anything at all is odd."""
    if not _is_jpeg(encoded):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        if colours not in ("YCbCr", "Gray") or height * width > PIXEL_LIMIT:
            return None
        # Without a least size exactly as ever: a scale is chosen where one is given, and not for small images.
        scaled = {"min_height": least, "min_width": least} if 0 < least < min(height, width) else {}
        decoded: np.ndarray = simplejpeg.decode_jpeg(encoded, "RGB", **scaled)
        return decoded
    # A KeyError, too, for samplings that it has no name for.
    except Exception:
        return None


def _by_pillow(encoded: bytes, mode: str) -> np.ndarray:
    """An image file by Pillow, as uint8 in the mode RGB or L. Raises many kinds of errors."""
    # What it warns of is either an error later on or does not concern pixels.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(encoded)) as image:
            width, height = image.size
            if not 0 < width * height <= PIXEL_LIMIT:
                raise ValueError(f"it has {width:,} x {height:,} pixels, {PIXEL_LIMIT:,} is the limit")
            if image.format == "EPS":
                raise ValueError("EPS, which only another program could draw: save it as PNG")
            image.load()
            # Pillow gives PGM files of 16 bits, and in older releases such PNG files, as numbers of 32 bits.
            if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
                pixels = np.asarray(image)
                if image.format == "TIFF" and image.tag_v2.get(262) == 0:  # type: ignore[attr-defined]
                    pixels = 65535 - pixels  # in these files 0 is white; of 8 bits Pillow turns them round itself
                return np.array(Image.fromarray((pixels >> 8).astype(np.uint8)).convert(mode))
            if image.mode not in EIGHT_BITS:
                raise ValueError(f"its pixels are of the kind {image.mode}: save it as grey or RGB of 8 bits")
            # A copy: PyTorch wants to be able to write.
            return np.array(image if image.mode == mode else image.convert(mode))


def _orientation(encoded: bytes) -> int:
    """How an image file says, in EXIF, that it is to be turned: 1 to 8, 1 where it says nothing that can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(encoded)) as image:
                # TIFF files are turned by Pillow when it reads them, with or without us.
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
