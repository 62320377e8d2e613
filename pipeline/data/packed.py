"""The packed store: a dataset's image files, unchanged, one after another in one file, with an index beside it.

`images.bin` holds the bytes; `index.csv` has one row an image, in the order of the bytes: its number, the byte range,
the size in pixels, the class, the part of the published split it belongs to (empty where the split goes by class), its
original name, and the SHA-256 of its bytes. The same images give the same two files on every machine.

JPEG files in colour or grey are decoded to RGB by simplejpeg (libjpeg-turbo), a quarter faster than by Pillow and, in
the versions pinned here, equal in every pixel (tests/test_packed.py holds them to that); CMYK, which they turn to RGB
with differences of 1 in 255, and everything that is no JPEG is left to Pillow.
"""

import csv
import hashlib
import io
import mmap
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from pipeline.base.files import BadInputError

MODES = {1: "L", 3: "RGB"}


class SourceImage(NamedTuple):
    """One image as a dataset's file yields it: `label` counts from 0 in the dataset's class order.

    Images are packed in the order of `order`; equal ones stay as they come.
    """

    name: str
    label: int
    class_name: str
    part: str
    encoded: bytes
    order: tuple[Any, ...] = ()


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


def _size(encoded: bytes) -> tuple[int, int]:
    """Decode an image to see that it can be; return its width and height. Raises `ValueError` where it cannot."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            return image.size
    except UnidentifiedImageError:
        raise ValueError("not an image") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None


def pack(images: Iterable[SourceImage], folder: Path) -> int:
    """Write `images.bin` and `index.csv` into `folder`, which must not exist yet, and return the number of images.

    Every image is decoded once to see that it can be; those that cannot are named together in one `BadInputError`, and
    so is a name that comes twice. Memory holds one image and the index, whatever the number of images.
    """
    folder.mkdir(parents=True)
    broken: list[str] = []
    names: set[str] = set()
    rows: list[tuple[tuple[Any, ...], Entry]] = []
    offset = 0
    arrived = folder / "images.bin"
    with arrived.open("wb") as store:
        for source in tqdm(images, unit=" images", desc="pack", disable=None):
            if source.name in names:
                broken.append(f"{source.name}: the name comes twice")
            names.add(source.name)
            try:
                width, height = _size(source.encoded)
            except ValueError as error:
                broken.append(f"{source.name}: {error}")
                continue
            texts = (source.class_name, source.part, source.name, hashlib.sha256(source.encoded).hexdigest())
            length = len(source.encoded)
            rows.append((source.order, Entry(len(rows), offset, length, width, height, source.label, *texts)))
            store.write(source.encoded)
            offset += length
    if broken:
        raise BadInputError(
            f"images that cannot be used, mend or replace them: {len(broken)}\n  " + "\n  ".join(broken)
        )
    if not rows:
        raise BadInputError(f"{folder}: there is not one image to pack")
    ordered = [entry for _, entry in sorted(rows, key=lambda row: row[0])]
    if ordered != [entry for _, entry in rows]:
        ordered = _reorder(arrived, ordered)
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as index:
        writer = csv.writer(index, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(astuple(entry) for entry in ordered)
    return len(rows)


def _reorder(store: Path, ordered: list[Entry]) -> list[Entry]:
    """Put the images of `store` into the order of `ordered`; return the entries with their new numbers and offsets."""
    sorted_store = store.with_suffix(".sorted")
    entries, offset = [], 0
    # Read, not mapped: mapped pages would count as this process's memory.
    with store.open("rb") as source, sorted_store.open("wb") as target:
        for image, entry in enumerate(ordered):
            source.seek(entry.offset)
            target.write(source.read(entry.length))
            entries.append(replace(entry, image=image, offset=offset))
            offset += entry.length
    sorted_store.replace(store)
    return entries


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
    of processes at once, forked or sent to them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.entries = read_index(folder)
        store = folder / "images.bin"
        expected = self.entries[-1].offset + self.entries[-1].length if self.entries else 0
        found = store.stat().st_size if store.exists() else 0
        if not found or found != expected:
            raise BadInputError(f"{store} has {found} bytes, its index ends at {expected}: run convert again")
        with store.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self.entries)

    def __reduce__(self) -> tuple[type["PackedImages"], tuple[Path]]:
        # A map cannot be sent to another process; the folder's name can.
        return PackedImages, (self.folder,)

    def encoded(self, image: int) -> bytes:
        """The original file of image number `image`."""
        entry = self.entries[image]
        return self._bytes[entry.offset : entry.offset + entry.length]

    def decoded(self, image: int, channels: int) -> np.ndarray:
        """Image number `image` as uint8 (height, width, channels); one channel is grey, three are RGB."""
        encoded = self.encoded(image)
        jpeg = channels == 3 and encoded.startswith(b"\xff\xd8\xff")
        if jpeg and simplejpeg.decode_jpeg_header(encoded)[2] in ("YCbCr", "Gray"):
            # Strict, it would refuse what Pillow takes: stray bytes between markers, which some cameras leave.
            return simplejpeg.decode_jpeg(encoded, "RGB", strict=False)
        with Image.open(io.BytesIO(encoded)) as opened:
            pixels = np.array(opened.convert(MODES[channels]))  # a copy: PyTorch wants to be able to write
        return pixels.reshape(*pixels.shape[:2], channels)


class DecodedImages:
    """The chosen images of a packed dataset, decoded once and kept in memory as uint8: 6.6 GB for CUB-200-2011.

    `decoded(image, channels)` is as in `PackedImages` and gives views. Processes forked from this one share the memory.
    """

    def __init__(self, packed: PackedImages, images: Iterable[int], channels: int):
        """`images` are numbers of images. Raises `BadInputError` where they would not fit into the memory at hand."""
        entries = [packed.entries[image] for image in images]
        self.channels = channels
        needed = sum(entry.width * entry.height for entry in entries) * channels
        free = available_memory()
        if needed > free:
            raise BadInputError(
                f"{packed.folder}: {len(entries)} decoded images take {needed:,} bytes, {free:,} are free: "
                "decode them as they are read instead"
            )
        store = np.empty(needed, np.uint8)
        self._images: dict[int, np.ndarray] = {}
        offset = 0
        for entry in tqdm(entries, unit=" images", desc="decode", disable=None):
            pixels = store[offset : offset + entry.width * entry.height * channels]
            self._images[entry.image] = pixels.reshape(entry.height, entry.width, channels)
            self._images[entry.image][:] = packed.decoded(entry.image, channels)
            offset += pixels.size

    def decoded(self, image: int, channels: int) -> np.ndarray:
        """Image number `image` as uint8 (height, width, channels)."""
        if channels != self.channels:
            raise ValueError(f"decoded with {self.channels} channels, {channels} asked for")
        return self._images[image]


def available_memory() -> int:
    """Bytes that may still be used: the system's free memory, or what is left of the container's limit if less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (limit := (group / "memory.max").read_text().strip()) != "max":
        free = min(free, int(limit) - int((group / "memory.current").read_text()))
    return free
