"""The packed store: a dataset's image files, unchanged, one after another in one file, with an index beside it.

`images.bin` holds the bytes, `index.csv` (pipeline/data/index.py) says which image they belong to, and `SHA256SUMS` has
the hashes of both. The same images give the same files on every machine. Each image's bytes are checked against the
index when a process first reads them.
"""

import hashlib
import mmap
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from pipeline.base.files import BadInputError
from pipeline.base.lists import listed
from pipeline.data import decoding
from pipeline.data.checksums import write_sums
from pipeline.data.groups import FILE as GROUPS
from pipeline.data.groups import write_groups
from pipeline.data.index import FILE as INDEX
from pipeline.data.index import Entry, read_index, write_index

ORIGINALS = "originals.csv"
"""The file with lines `name,original`, for a dataset whose images have other names here than in the archives."""

FORM = "form.txt"
"""The file that says from which form of the published archives the images came (`data/mirrors.py`)."""

LIST = ".broken.txt"
"""The end of the name of the file beside the packed folder that names all images that are broken, if they are many."""


class SourceImage(NamedTuple):
    """One image as the module of a dataset yields it. `label` counts from 0 in the dataset's class order.

    Images are sorted by `order`; images with equal `order` keep the order in which they are yielded. `problem` says why
    the bytes could not be read; the image is then listed together with those that cannot be decoded. `original` is the
    file's name in the published archive, if it differs from `name`. `group` is what the image shares with others apart
    from its class (pipeline/data/groups.py); all images have one, or none.
    """

    name: str
    label: int
    class_name: str
    part: str
    encoded: bytes
    order: tuple[Any, ...] = ()
    problem: str = ""
    original: str = ""
    group: str = ""


class Packed(NamedTuple):
    """The number of packed images, and the number of those that should be turned by their EXIF orientation. `damaged`
    and `left_out` have a line for each image that was packed though pixels of it are lost, or not packed."""

    images: int
    turned: int
    damaged: list[str]
    left_out: list[str]


Damage = Literal["refuse", "leave out", "keep"]
"""What is done with images that are damaged. keep: those whose pixels are partly lost are packed, others refused."""


def pack(
    images: Iterable[SourceImage],
    folder: Path,
    upright: bool = False,
    damage: Damage = "refuse",
    broken_list: Path | None = None,
    form: str = "",
) -> Packed:
    """Write `images.bin` and `index.csv` into `folder`, which must not exist yet.

    Every image is decoded once, by the function that training decodes with. One `BadInputError` lists all images that
    cannot be decoded, that are damaged, whose name appears twice, or whose name a list cannot hold, in `broken_list` if
    they are many; `damage` says what is done with damaged ones instead. Raises `BadInputError` also if there is no
    image, or if labels and classes contradict each other. Memory holds one image and the index, whatever the
    number of images. With `upright`, images are turned by their EXIF orientation when they are used; their bytes do not
    change. `form` is kept in the file of that name, if it is not empty.
    """
    folder.mkdir(parents=True)
    broken: list[str] = []
    damaged: list[str] = []
    names: set[str] = set()
    rows: list[tuple[tuple[Any, ...], Entry]] = []
    originals: dict[str, str] = {}
    groups: dict[str, str] = {}
    offset, turned = 0, 0
    arrived = folder / "images.bin"
    with arrived.open("wb") as store:
        for source in tqdm(images, unit=" images", desc="pack", disable=None):
            try:
                _check_names(source, names)
                width, height, orientation, lost = decoding.check(source.encoded, upright)
                if lost and damage != "keep":
                    raise ValueError(f"pixels are lost ({lost})")
            except ValueError as error:
                broken.append(f"{shown(source.name)}: {error}")
                continue
            if lost:
                damaged.append(f"{shown(source.name)}: {lost}")
            texts = (source.class_name, source.part, source.name, hashlib.sha256(source.encoded).hexdigest())
            numbers = (len(rows), offset, len(source.encoded), width, height, source.label)
            rows.append((source.order, Entry(*numbers, *texts, orientation if upright else 1)))
            store.write(source.encoded)
            offset += len(source.encoded)
            turned += orientation != 1
            if source.original:
                originals[source.name] = source.original
            if source.group:
                groups[source.name] = source.group
    if broken and damage != "leave out":
        names_them = listed(broken, broken_list or folder.with_name(f"{folder.name}{LIST}"))
        raise BadInputError(f"images that cannot be used, fix or replace them: {len(broken):,}{names_them}")
    if not rows:
        raise BadInputError(f"{folder}: there is no image to pack")
    _check_classes([entry for _, entry in rows])
    ordered = [entry for _, entry in sorted(rows, key=lambda row: row[0])]
    if ordered != [entry for _, entry in rows]:
        ordered = _reorder(arrived, ordered)
    write_index(folder, ordered, upright)
    written = [arrived, folder / INDEX]
    if originals:
        # Not in the index, because the index is the same for every layout of the archives.
        lines = "".join(f"{entry.name},{originals[entry.name]}\n" for entry in ordered)
        (folder / ORIGINALS).write_text(lines, encoding="utf-8", newline="")
        written.append(folder / ORIGINALS)
    if groups:
        if lacking := [shown(entry.name) for entry in ordered if entry.name not in groups]:
            raise BadInputError(f"{len(lacking):,} images have no group, though others have one: {lacking[0]} is one")
        write_groups(folder, [groups[entry.name] for entry in ordered])
        written.append(folder / GROUPS)
    if form:
        (folder / FORM).write_text(form, encoding="utf-8", newline="")
        written.append(folder / FORM)
    write_sums(folder, written)
    return Packed(len(rows), turned, damaged, broken)


def shown(name: str) -> str:
    """A name as messages show it: with quotes and escapes if it has characters that cannot be printed."""
    return name if name.isprintable() else repr(name)


def _check_names(source: SourceImage, names: set[str]) -> None:
    """Raise `ValueError` if an image could not be read, appears twice, or has a name that a list cannot hold."""
    if source.problem:
        raise ValueError(source.problem)
    if source.name in names:
        raise ValueError("the name comes twice")
    names.add(source.name)
    for name in (source.name, source.class_name):
        if not name:
            raise ValueError(f"its {'class' if source.name else 'file'} has no name")
        # Cc are control characters, including line ends. Python turns bytes that are not UTF-8 into Cs.
        if {unicodedata.category(character) for character in name} & {"Cc", "Cs"}:
            raise ValueError("its name holds control characters or is not UTF-8: rename it")


def _check_classes(entries: list[Entry]) -> None:
    """Raise `BadInputError` if a class has two labels, a label two classes, or a number below that of the first."""
    by_label: dict[int, Entry] = {}
    by_class: dict[str, Entry] = {}
    for entry in entries:
        if entry.label < 0:
            raise BadInputError(f"{shown(entry.name)} has the class number {entry.label + 1}: the first class is 1")
        firsts = by_label.setdefault(entry.label, entry), by_class.setdefault(entry.class_name, entry)
        for first in firsts:
            if (first.label, first.class_name) != (entry.label, entry.class_name):
                facts = (f"{of.name} has the label {of.label} and the class {of.class_name}" for of in (first, entry))
                raise BadInputError(f"the dataset's lists contradict each other: {', '.join(facts)}")


def _reorder(store: Path, ordered: list[Entry]) -> list[Entry]:
    """Put the images of `store` into the order of `ordered`; return the entries with their new numbers and offsets."""
    sorted_store = store.with_suffix(".sorted")
    entries, offset = [], 0
    # Read, not memory-mapped, because mapped pages would count as memory of this process.
    with store.open("rb") as source, sorted_store.open("wb") as target:
        for image, entry in enumerate(ordered):
            source.seek(entry.offset)
            target.write(source.read(entry.length))
            entries.append(replace(entry, image=image, offset=offset))
            offset += entry.length
    sorted_store.replace(store)
    return entries


def read_originals(folder: Path) -> dict[str, str]:
    """The names here -> the names in the published archives; empty if they are the same."""
    path = folder / ORIGINALS
    if not path.is_file():
        return {}
    return dict(line.rsplit(",", 1) for line in path.read_text(encoding="utf-8").splitlines())


class PackedImages:
    """Random access to a packed dataset. The file is memory-mapped, so a reader is cheap. Any number of processes may
    use it at the same time, by a fork or by a copy sent to them. Raises `BadInputError` if the files are missing or
    damaged."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.entries = read_index(folder)
        store = folder / "images.bin"
        expected = self.entries[-1].offset + self.entries[-1].length if self.entries else 0
        found = store.stat().st_size if store.exists() else 0
        if not found or found != expected:
            raise BadInputError(f"{store} has {found} bytes, its index ends at {expected}: run the convert stage again")
        with store.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._checked = bytearray(len(self.entries))

    def __len__(self) -> int:
        return len(self.entries)

    def __reduce__(self) -> tuple[type["PackedImages"], tuple[Path]]:
        # A memory map cannot be sent to another process, but the folder's name can.
        return PackedImages, (self.folder,)

    def encoded(self, image: int) -> bytes:
        """The bytes of the original file of image number `image`. Raises `BadInputError` if they have changed since
        they were packed."""
        entry = self.entries[image]
        encoded = self._bytes[entry.offset : entry.offset + entry.length]
        if not self._checked[image]:
            if hashlib.sha256(encoded).hexdigest() != entry.sha256:
                raise self._damaged(entry, "its bytes are not those that were packed")
            self._checked[image] = True
        return encoded

    def decoded(self, image: int, channels: int) -> np.ndarray:
        """Image number `image` as uint8 (height, width, channels); one channel is grey, three are RGB.

        Raises `BadInputError`, which names the image, if it is damaged or cannot be decoded.
        """
        entry = self.entries[image]
        try:
            pixels = decoding.decode(self.encoded(image), channels, entry.orientation)
        except ValueError as error:
            raise self._damaged(entry, str(error)) from None
        if pixels.shape[:2] != (entry.height, entry.width):
            found = f"{pixels.shape[1]} x {pixels.shape[0]} pixels, the index has {entry.width} x {entry.height}"
            raise self._damaged(entry, f"it has {found}")
        return pixels

    def _damaged(self, entry: Entry, problem: str) -> BadInputError:
        place = f"{self.folder / 'images.bin'}: image {entry.image}, {entry.name}"
        return BadInputError(f"{place}: {problem}: run the convert stage again")


class DecodedImages:
    """The chosen images of a packed dataset, decoded once and kept in memory as uint8: 6.6 GB for CUB-200-2011.

    `decoded(image, channels)` works as in `PackedImages`, but gives views. Processes forked from this one share the
    memory.
    """

    def __init__(self, packed: PackedImages, images: Iterable[int], channels: int):
        """`images` are numbers of images. Raises `BadInputError` if they do not fit into the free memory."""
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
        """Image number `image` as uint8 (height, width, channels). Raises `ValueError` for another number of
        channels."""
        if channels != self.channels:
            raise ValueError(f"the images were decoded with {self.channels} channels, not {channels}")
        return self._images[image]


def available_memory() -> int:
    """Bytes of memory that are still free: of the system, or of the container's limit if that is less."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (limit := (group / "memory.max").read_text().strip()) != "max":
        free = min(free, int(limit) - int((group / "memory.current").read_text()))
    return free
