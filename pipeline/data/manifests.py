"""Manifests: CSV lists of images by number, label and name, in the order of the packed index."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.base.files import BadInputError

COLUMNS = ["image", "label", "name"]


class Row(NamedTuple):
    """One line of a manifest: the image's number in the packed index, its label and its name."""

    image: int
    label: int
    name: str


def write_manifest(path: Path, rows: Iterable[Row]) -> None:
    """Write `rows` as a manifest."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def read_manifest(path: Path) -> list[Row]:
    """The rows of a manifest. Raises `BadInputError` where it is missing or is none."""
    if not path.is_file():
        raise BadInputError(f"{path} is missing: run the split stage (`dvc repro`)")
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        if next(rows, None) != COLUMNS:
            raise BadInputError(f"{path} does not begin with the columns {','.join(COLUMNS)}: run split again")
        try:
            return [Row(int(image), int(label), name) for image, label, name in rows]
        except ValueError as error:
            raise BadInputError(f"{path} line {rows.line_num} is not a row ({error}): run split again") from None
