"""Glyphs: 62 characters, each drawn in 101 FIGlet fonts. This is the embedded default, which needs no extra download.

A class is a character; an instance is that character in one artist's font, and the font is its group. The fonts are
part of the package pyfiglet (MIT licence). Every machine draws the same bytes from them, because only integers are
used. The first 31 characters (0-9, A-U) are for training, the other 31 (V-Z, a-z) for retrieval.
"""

import csv
import functools
import hashlib
import importlib.metadata
import importlib.resources
import string
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyfiglet

from pipeline import datasets
from pipeline.base.files import BadInputError, sha256, whole
from pipeline.data.index import Entry
from pipeline.data.packed import SourceImage
from pipeline.datasets import Expected

PYFIGLET = "1.0.4"
CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
TRAINING_CHARACTERS = 31
SIZE = 32
"""Width and height of an image in pixels."""

CELL_HEIGHT, CELL_WIDTH = 8, 4
"""Height and width of one text cell in pixels. Terminals draw cells about twice as high as wide."""

EXPECTED = {
    "train": Expected(3114, 31),
    "test": Expected(3107, 31),
    "held_out_train": Expected(1509, 15),
    "held_out_test": Expected(1605, 16),
}


@functools.cache
def _cell(character: str) -> np.ndarray:
    """The bitmap of one text cell, uint8 (8, 4), with 255 for ink: how the character looks from a distance."""
    cell = np.zeros((CELL_HEIGHT, CELL_WIDTH), np.uint8)
    rows, columns = np.indices(cell.shape)
    strokes = {
        "|!Il1[]{}()i": (columns == 1) | (columns == 2),
        "-=+~<>": (rows == 3) | (rows == 4),
        "_": rows >= 6,
        "/": columns == 3 - rows // 2,
        "\\": columns == rows // 2,
        ".,": (rows >= 6) & (columns % 3 > 0),
        ":;": (rows % 4 >= 2) & (columns % 3 > 0),
        "'`\"^": (rows < 3) & (columns % 3 > 0),
        "*°": (rows % 7 > 1) & (columns % 3 > 0),
        "▀": rows < 4,
        "▄": rows >= 4,
        "▌": columns < 2,
        "▐": columns >= 2,
        "░": (rows + columns) % 4 == 0,
        "▒": (rows + columns) % 2 == 0,
        "▓": (rows + columns) % 4 > 0,
    }
    ink = next((mask for characters, mask in strokes.items() if character in characters), rows >= 0)
    cell[ink & (not character.isspace())] = 255
    return cell


def _overlaps(source: int, target: int) -> np.ndarray:
    """Weights, int64 (target, source), that shrink or stretch a line of `source` pixels to `target`.

    Entry (i, j) is the overlap of both pixels on a line of source*target units, so every row sums to exactly `source`.
    """
    i, j = np.indices((target, source))
    overlap = np.minimum((i + 1) * source, (j + 1) * target) - np.maximum(i * source, j * target)
    weights: np.ndarray = np.maximum(overlap, 0)
    return weights


def draw(text: str) -> np.ndarray | None:
    """Draw FIGlet text as a grey image, uint8 (32, 32), with bright ink: cropped to the ink, with its aspect ratio,
    centred.

    Returns None if there is no ink. The area averaging uses integers, so the bytes are the same everywhere.
    """
    lines = text.split("\n")
    width = max(map(len, lines))
    cells = np.stack([_cell(character) for line in lines for character in line.ljust(width)])
    cells = cells.reshape(len(lines), width, CELL_HEIGHT, CELL_WIDTH)
    bitmap = cells.transpose(0, 2, 1, 3).reshape(len(lines) * CELL_HEIGHT, width * CELL_WIDTH)
    rows, columns = np.nonzero(bitmap.any(1))[0], np.nonzero(bitmap.any(0))[0]
    if not rows.size:
        return None
    ink = bitmap[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.int64)
    height, width = ink.shape
    longer = max(height, width)
    target_height, target_width = max(1, height * SIZE // longer), max(1, width * SIZE // longer)
    small = _overlaps(height, target_height) @ ink @ _overlaps(width, target_width).T // (height * width)
    image = np.zeros((SIZE, SIZE), np.uint8)
    top, left = (SIZE - target_height) // 2, (SIZE - target_width) // 2
    image[top : top + target_height, left : left + target_width] = small
    return image


def fonts() -> dict[str, str]:
    """Name of each font file -> SHA-256, in the order of the list beside this module."""
    with Path(__file__).with_name("glyphs_fonts.csv").open(newline="") as file:
        return {row["file"]: row["sha256"] for row in csv.DictReader(file)}


def _check_version() -> None:
    """Raise `BadInputError` if another version of pyfiglet is installed, which might draw other images."""
    installed = importlib.metadata.version("pyfiglet")
    if installed != PYFIGLET:
        raise BadInputError(f"pyfiglet {installed} is installed, but glyphs needs {PYFIGLET}: run `make setup`")


def foreign(raw: Path) -> Path | None:
    """The first file in `raw` that is not a font of the list: a `files.Foreign`."""
    known = fonts()
    return next((path for path in sorted(raw.iterdir()) if not _is_font(path, known.get(path.name))), None)


def _is_font(path: Path, expected: str | None) -> bool:
    return expected is not None and path.is_file() and not path.is_symlink() and sha256(path) == expected


def download(raw: Path) -> None:
    """Copy the fonts of the installed pyfiglet to the folder `raw`. Raises `BadInputError` for a font with another
    SHA-256."""
    _check_version()
    source = importlib.resources.files("pyfiglet.fonts")
    with whole(raw, foreign) as folder:
        folder.mkdir()
        for name, expected in fonts().items():
            file = source / name
            content = file.read_bytes() if file.is_file() else b""
            if hashlib.sha256(content).hexdigest() != expected:
                raise BadInputError(
                    f"the font {name} of the installed pyfiglet is missing or altered (SHA-256 {expected} expected): "
                    "remove .venv and run `make setup`"
                )
            (folder / name).write_bytes(content)


def images(raw: Path) -> Iterator[SourceImage]:
    """Draw every character in every font, as PGM files. Identical images of one class are dropped. Raises
    `BadInputError` if `raw` does not hold exactly the fonts."""
    _check_version()
    for name, expected in fonts().items():
        file = raw / name
        if not file.is_file() or sha256(file) != expected:
            raise BadInputError(
                f"the font {file} is missing or altered (SHA-256 {expected} expected): run the download stage again"
            )
    # pyfiglet takes a path without its ending as a font's name, and looks for files with two endings.
    if others := sorted(path.name for path in raw.iterdir() if path.name not in fonts()):
        raise BadInputError(
            f"{raw} holds files that are not fonts of the list ({', '.join(others)}): run the download stage again"
        )
    figlets = {name: pyfiglet.Figlet(str(raw.resolve() / Path(name).stem), width=1000) for name in fonts()}
    for label, character in enumerate(CHARACTERS):
        seen = set()
        for font, figlet in figlets.items():
            image = draw(figlet.renderText(character))
            if image is None or image.tobytes() in seen:
                continue
            seen.add(image.tobytes())
            encoded = b"P5\n%d %d\n255\n" % (SIZE, SIZE) + image.tobytes()
            stem = Path(font).stem
            yield SourceImage(f"{character}/{stem}.pgm", label, character, "", encoded, group=stem)


def split(entries: list[Entry]) -> dict[str, list[int]]:
    """Zero-shot: the first 31 characters are for training, the others for retrieval. No rule is published; this is
    ours."""
    return datasets.by_class(entries, TRAINING_CHARACTERS)
