"""Manifests: CSV lists of images by number, label and name, in the order of the packed index.

A folder of manifests holds a file SHA256SUMS besides, with the hashes of its manifests and of the files that they were
made from: `cd data/splits/cub && sha256sum --check SHA256SUMS`. `read_manifest` is the one way to a manifest's rows: it
holds them against the index, that list, and the fingerprints pinned in data/checksums, so that a run trains and tests
on what the stages wrote, or not at all.
"""

import csv
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.base.files import BadInputError, sha256
from pipeline.data.checksums import CHECKSUMS, pins
from pipeline.data.index import FILE as INDEX
from pipeline.data.index import Entry, read_index

COLUMNS = ["image", "label", "name"]
SUMS = "SHA256SUMS"


class Row(NamedTuple):
    """One line of a manifest: the image's number in the packed index, its label and its name."""

    image: int
    label: int
    name: str


def fingerprint(rows: Iterable[Row] | Iterable[Entry]) -> str:
    """SHA-256 of the lines "label,name" of `rows`: the same images with the same labels in the same order."""
    return hashlib.sha256("".join(f"{row.label},{row.name}\n" for row in rows).encode()).hexdigest()


def without_relevant(queries: Sequence[Row] | Sequence[Entry], gallery: Sequence[Row] | Sequence[Entry] | None) -> int:
    """How many queries have no image of their class among those that they are searched for in: the gallery, or all
    other queries where there is none."""
    count = Counter(row.label for row in (queries if gallery is None else gallery))
    return sum(count[row.label] < (2 if gallery is None else 1) for row in queries)


def write_manifests(folder: Path, manifests: Mapping[str, Sequence[Row]], sources: Sequence[Path]) -> None:
    """Write each of `manifests` as `folder`/<name>.csv, and the list of hashes, which has those of `sources`, too."""
    folder.mkdir()
    for name, rows in manifests.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(rows)
    made = [*sorted(folder.glob("*.csv")), *sources]
    lines = (f"{sha256(path)}  {os.path.relpath(path, folder)}\n" for path in made)
    (folder / SUMS).write_text("".join(lines), encoding="utf-8", newline="")


def read_manifest(path: Path) -> list[Row]:
    """The rows of a manifest, data/splits/<dataset>/<part>.csv or one under data/subsets.

    Raises `BadInputError`, which names the line and the stage to run, where it is missing or damaged, does not agree
    with the dataset's index, or is not what its stage wrote last.
    """
    kind, dataset = path.parts[-3:-1] if len(path.parts) > 2 else ("splits", "")
    again = f"run the {'subsets' if kind == 'subsets' else 'split'} stage again"
    rows = _parsed(path, again)
    entries = read_index(path.parents[2] / "packed" / dataset)
    for line, row in enumerate(rows, 2):
        if not 0 <= row.image < len(entries):
            problem = f"has the image {row.image}, the index has {len(entries)} images"
        elif (row.label, row.name) != ((entry := entries[row.image]).label, entry.name):
            found, due = (f"{of.label},{of.name}" for of in (row, entry))
            problem = f"has {found!r} for the image {row.image}, the index has {due!r}"
        elif line > 2 and row.image <= rows[line - 3].image:
            problem = f"has the image {row.image} after the image {rows[line - 3].image}"
        else:
            continue
        raise BadInputError(f"{path} line {line} {problem}: {again}")
    _check_sums(path, again)
    pinned = pins().get(f"{kind}/{dataset}/{path.stem}")
    if pinned and pinned != fingerprint(rows):
        raise BadInputError(
            f"{path} has the fingerprint {fingerprint(rows)}, {CHECKSUMS} has {pinned}: this is another edition or "
            f"another split of the dataset: {again}"
        )
    return rows


def _parsed(path: Path, again: str) -> list[Row]:
    """The lines of a manifest, as they are."""
    if not path.is_file():
        raise BadInputError(f"{path} is missing: {again.removesuffix(' again')} (`dvc repro`)")
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        try:
            if next(lines, None) != COLUMNS:
                raise BadInputError(f"{path} does not begin with the columns {','.join(COLUMNS)}: {again}")
            return [Row(int(image), int(label), name) for image, label, name in lines]
        except (ValueError, csv.Error) as error:
            raise BadInputError(f"{path} line {lines.line_num} is not a row ({error}): {again}") from None


def _check_sums(path: Path, again: str) -> None:
    """Hold a manifest and what it was made from against the hashes that its stage wrote beside it."""
    sums = path.with_name(SUMS)
    if not sums.is_file():
        raise BadInputError(f"{sums} is missing: {again}")
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines()
    known = {match[2]: match[1] for line in lines if (match := re.fullmatch(r"([0-9a-f]{64})  (.+)", line))}
    sources = [name for name in known if name.startswith("..")]
    if path.name not in known or not any(name.endswith(f"/{INDEX}") for name in sources):
        raise BadInputError(f"{sums} has no line for {path.name}, or none for the index: {again}")
    for name in (path.name, *sources):
        file = Path(os.path.normpath(path.parent / name))
        if not file.is_file() or sha256(file) != known[name]:
            raise BadInputError(f"{file} is not what {sums} was written for: it has changed since; {again}")
