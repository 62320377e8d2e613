"""The index of a packed dataset: `index.csv`, one row for each image, in the order of the bytes in `images.bin`.

A row holds the image's number, its byte range, its size in pixels, its class, the part of the published split that it
belongs to (empty if the split is by class), its original name, and the SHA-256 of its bytes. The SHA-256 of index.csv
therefore covers all bytes of images.bin as well: each image is checked against its row when it is first read. The index
itself is checked against the SHA256SUMS beside it, and for contradictions, whenever it is read.

If images are turned upright by their EXIF data, a last column says how each image is turned.
"""

import csv
import functools
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from pipeline.base.files import BadInputError
from pipeline.data.checksums import check_sum, read_sums

FILE = "index.csv"
AGAIN = "run the convert stage again"


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the index. `offset` and `length` are in bytes, `width` and `height` in pixels of the turned image.
    `orientation` is the EXIF number of how the image is turned for use; 1 means not turned."""

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
    orientation: int = 1


COLUMNS = [field.name for field in fields(Entry)]


def write_index(folder: Path, entries: Sequence[Entry], upright: bool) -> None:
    """Write `entries` as `folder`/index.csv, with the column `orientation` if `upright` is true."""
    count = len(COLUMNS) - (not upright)
    with (folder / FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS[:count])
        writer.writerows(astuple(entry)[:count] for entry in entries)


def read_index(folder: Path) -> list[Entry]:
    """The rows of `folder`/index.csv, in order. Raises `BadInputError` if the file is missing or has changed, or if a
    line is damaged or contradicts the lines before it."""
    path = folder / FILE
    if not path.is_file():
        raise BadInputError(f"{path} is missing: run the convert stage (`dvc repro`)")
    status = path.stat()
    entries = _read_once(path, status.st_mtime_ns, status.st_size, status.st_ino)
    check_sum(folder, FILE, read_sums(folder, AGAIN), AGAIN)
    return list(entries)


@functools.lru_cache(maxsize=2)
def _read_once(path: Path, changed: int, size: int, inode: int) -> list[Entry]:
    """The rows of an index. The file is read and checked only once while it does not change, because a run needs the
    rows for each of its manifests."""
    entries: list[Entry] = []
    for line, row in read_rows(path, (COLUMNS, COLUMNS[:-1]), AGAIN):
        try:
            a, b, c, d, e, f, class_name, part, name, sha256, *turn = row
            numbers = (int(a), int(b), int(c), int(d), int(e), int(f))
            entries.append(Entry(*numbers, class_name, part, name, sha256, *map(int, turn)))
        except (TypeError, ValueError) as error:
            raise BadInputError(f"{path} line {line} is not an entry ({error}): {AGAIN}") from None
    place, problem = _misfit(entries)
    if problem:
        raise BadInputError(f"{path} line {place + 2} {problem}: {AGAIN}")
    return entries


def read_rows(path: Path, headers: Sequence[list[str]], again: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each row below the header of a CSV file. Raises `BadInputError` if the file begins with
    none of `headers` or cannot be read; `again` says in the message what to do."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadInputError(f"{path} line {line} is not UTF-8 text: {again}") from None
    lines = csv.reader(io.StringIO(text, newline=""))
    try:
        if next(lines, None) not in headers:
            raise BadInputError(
                f"{path} does not begin with the columns {','.join(headers[-1])}"
                f"{', but with a byte order mark, as Excel writes it' * text.startswith(chr(0xFEFF))}: {again}"
            )
        for row in lines:
            yield lines.line_num, row
    except csv.Error as error:
        raise BadInputError(f"{path} line {lines.line_num} cannot be read ({error}): {again}") from None


def _misfit(entries: list[Entry]) -> tuple[int, str]:
    """The place of the first entry that contradicts itself or another entry, and the contradiction, which is empty if
    there is none."""
    end = 0
    names: set[str] = set()
    class_of: dict[int, str] = {}
    label_of: dict[str, int] = {}
    for place, entry in enumerate(entries):
        problem = ""
        if entry.image != place:
            problem = f"has the number {entry.image}, but {place} is expected"
        elif entry.offset != end or entry.length < 1:
            problem = (
                f"has {entry.length} bytes from byte {entry.offset} on, but the image before it ends at byte {end}"
            )
        elif min(entry.width, entry.height) < 1 or entry.label < 0 or not 1 <= entry.orientation <= 8:
            problem = "has an impossible size, label or orientation"
        elif not re.fullmatch("[0-9a-f]{64}", entry.sha256):
            problem = f"has {entry.sha256!r}, which is not a SHA-256"
        elif entry.name in names:
            problem = f"has the name {entry.name!r}, which an earlier line has"
        elif class_of.setdefault(entry.label, entry.class_name) != entry.class_name:
            problem = (
                f"gives the label {entry.label} to {entry.class_name!r}, but an earlier line to "
                f"{class_of[entry.label]!r}"
            )
        elif label_of.setdefault(entry.class_name, entry.label) != entry.label:
            problem = (
                f"gives {entry.class_name!r} the label {entry.label}, but an earlier line {label_of[entry.class_name]}"
            )
        if problem:
            return place, problem
        names.add(entry.name)
        end += entry.length
    return 0, ""
