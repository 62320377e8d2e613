"""Manifests: CSV lists of images by number, label and name, in the order of the packed index.

`read_manifest` is the only way to read a manifest. It compares the rows with the index, the SHA256SUMS beside them and
the fingerprints pinned in data/checksums. A run therefore uses exactly what the stages wrote, or stops.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from pipeline.base.files import BadInputError
from pipeline.data.checksums import CHECKSUMS, check_sum, pins, read_sums, write_sums
from pipeline.data.index import FILE as INDEX
from pipeline.data.index import Entry, read_index, read_rows

Labelled = TypeVar("Labelled", "Row", Entry)

COLUMNS = ["image", "label", "name"]


class Row(NamedTuple):
    """One line of a manifest: the image's number in the packed index, its label and its name."""

    image: int
    label: int
    name: str


def fingerprint(rows: Iterable[Row] | Iterable[Entry]) -> str:
    """SHA-256 of the lines "label,name" of `rows`. It is equal for the same images with the same labels in the same
    order."""
    return hashlib.sha256("".join(f"{row.label},{row.name}\n" for row in rows).encode()).hexdigest()


def without_relevant(queries: Sequence[Labelled], gallery: Sequence[Labelled] | None) -> list[Labelled]:
    """The queries that have no other image of their class where they are searched for: in the gallery, or
    among all other queries if there is no gallery."""
    count = Counter(row.label for row in (queries if gallery is None else gallery))
    return [row for row in queries if count[row.label] < (2 if gallery is None else 1)]


def write_manifests(folder: Path, manifests: Mapping[str, Sequence[Row]], sources: Sequence[Path]) -> None:
    """Write each of `manifests` as `folder`/<name>.csv, and a SHA256SUMS with their hashes and those of `sources`.
    `folder` must not exist yet."""
    folder.mkdir()
    for name, rows in manifests.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(rows)
    write_sums(folder, [*sorted(folder.glob("*.csv")), *sources])


def read_manifest(path: Path) -> list[Row]:
    """The rows of a manifest, data/splits/<dataset>/<part>.csv or one under data/subsets.

    Raises `BadInputError`, which names the line and the stage to run, if the manifest is missing or damaged, does not
    agree with the dataset's index, or has changed since its stage wrote it.
    """
    kind, dataset = path.parent.parent.name, path.parent.name
    stage = "subsets" if kind == "subsets" else "split"
    again = f"run the {stage} stage again"
    if not path.is_file():
        raise BadInputError(f"{path} is missing: run the {stage} stage (`dvc repro`)")
    rows: list[Row] = []
    for line, (image, label, name) in _fields(path, again):
        try:
            rows.append(Row(int(image), int(label), name))
        except ValueError as error:
            raise BadInputError(f"{path} line {line} is not a row ({error}): {again}") from None
    entries = read_index(path.parent.parent.parent / "packed" / dataset)
    sums = read_sums(path.parent, again)
    sources = [name for name in sums if name.startswith("..")]
    for source in sources or [INDEX]:
        check_sum(path.parent, source, sums, again)
    _check_rows(path, rows, entries, again)
    check_sum(path.parent, path.name, sums, again)
    pinned = pins().get(f"{kind}/{dataset}/{path.stem}")
    if pinned and pinned != fingerprint(rows):
        raise BadInputError(
            f"{path} has the fingerprint {fingerprint(rows)}, but {CHECKSUMS} has {pinned}: this is another "
            f"edition or another split of the dataset: {again}"
        )
    return rows


def _fields(path: Path, again: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and the three fields of each row."""
    for line, row in read_rows(path, [COLUMNS], again):
        if len(row) != len(COLUMNS):
            raise BadInputError(f"{path} line {line} is not a row ({len(row)} fields): {again}")
        yield line, row


def _check_rows(path: Path, rows: list[Row], entries: list[Entry], again: str) -> None:
    """Raise `BadInputError` if a row is not in the index, or if the rows are not in the order of the index."""
    before = -1
    for line, row in enumerate(rows, 2):
        problem = ""
        if not 0 <= row.image < len(entries):
            problem = f"has the image {row.image}, but the index has {len(entries)} images"
        elif (row.label, row.name) != ((entry := entries[row.image]).label, entry.name):
            found, due = (f"{of.label},{of.name}" for of in (row, entry))
            problem = f"has {found!r} for the image {row.image}, but the index has {due!r}"
        elif row.image <= before:
            problem = f"has the image {row.image} after the image {before}"
        if problem:
            raise BadInputError(f"{path} line {line} {problem}: {again}")
        before = row.image
