"""The packed store: a dataset's image files, unchanged, one after another in one file, with an index beside it.

`images.bin` holds the bytes; `index.csv` has one row an image, in the order of the bytes: its number, the byte range,
the size in pixels, the class, the part of the published split it belongs to (empty where the split goes by class), its
original name, and the SHA-256 of its bytes. The same images give the same two files on every machine.
"""

import csv
import hashlib
import io
import mmap
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.files import BadInputError

MODES = {1: "L", 3: "RGB"}


class SourceImage(NamedTuple):
    """One image as a dataset's file yields it: `label` counts from 0 in the dataset's class order."""

    name: str
    label: int
    class_name: str
    part: str
    encoded: bytes


@dataclass(frozen=True)
class Entry:
    """A row of the index. `offset` and `length` are in bytes, `width` and `height` in pixels."""

    image: int
    offset: int
    length: int
    width: int
    height: int
    label: int
    class_name: str
    part: str
    name: str
    sha256: str


COLUMNS = [field.name for field in fields(Entry)]


def pack(images: Iterable[SourceImage], folder: Path) -> int:
    """Write `images.bin` and `index.csv` into `folder`, which must not exist yet, and return the number of images.

    Every image is decoded once to see that it can be; those that cannot are named together in one `BadInputError`, and
    so is a name that comes twice.
    """
    folder.mkdir(parents=True)
    broken, names, offset, count = [], set(), 0, 0
    with (folder / "images.bin").open("wb") as store, (folder / "index.csv").open("w", newline="") as index:
        rows = csv.writer(index, lineterminator="\n")
        rows.writerow(COLUMNS)
        for count, source in enumerate(images, 1):
            if source.name in names:
                broken.append(f"{source.name}: the name comes twice")
            names.add(source.name)
            try:
                with Image.open(io.BytesIO(source.encoded)) as image:
                    image.load()
                    width, height = image.size
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                broken.append(f"{source.name}: {error}")
                continue
            digest = hashlib.sha256(source.encoded).hexdigest()
            length = len(source.encoded)
            row = Entry(
                count - 1,
                offset,
                length,
                width,
                height,
                source.label,
                source.class_name,
                source.part,
                source.name,
                digest,
            )
            rows.writerow(astuple(row))
            store.write(source.encoded)
            offset += length
    if broken:
        raise BadInputError(f"{len(broken)} images cannot be used:\n  " + "\n  ".join(broken))
    return count


def read_index(folder: Path) -> list[Entry]:
    """The rows of `folder`/index.csv, in order. Raises `BadInputError` where the file is missing or cut."""
    path = folder / "index.csv"
    if not path.is_file():
        raise BadInputError(f"{path} is missing: run the convert stage (`dvc repro`)")
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        if next(rows, None) != COLUMNS:
            raise BadInputError(f"{path} does not begin with the columns {','.join(COLUMNS)}: run convert again")
        try:
            return [Entry(int(a), int(b), int(c), int(d), int(e), int(f), *texts) for a, b, c, d, e, f, *texts in rows]
        except (TypeError, ValueError) as error:
            raise BadInputError(f"{path} line {rows.line_num} is not an entry ({error}): run convert again") from None


class PackedImages:
    """Random access to a packed dataset. The file is memory-mapped, so a reader is cheap and may be used in any number
    of processes at once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.entries = read_index(folder)
        with (folder / "images.bin").open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        expected = self.entries[-1].offset + self.entries[-1].length if self.entries else 0
        if len(self._bytes) != expected:
            raise BadInputError(
                f"{folder}/images.bin has {len(self._bytes)} bytes, its index ends at {expected}: run convert again"
            )

    def __len__(self) -> int:
        return len(self.entries)

    def encoded(self, image: int) -> bytes:
        """The original file of image number `image`."""
        entry = self.entries[image]
        return self._bytes[entry.offset : entry.offset + entry.length]

    def decoded(self, image: int, channels: int) -> np.ndarray:
        """Image number `image` as uint8 (height, width, channels); one channel is grey, three are RGB."""
        with Image.open(io.BytesIO(self.encoded(image))) as opened:
            pixels = np.asarray(opened.convert(MODES[channels]))
        return pixels.reshape(*pixels.shape[:2], channels)
