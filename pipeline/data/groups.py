"""The groups of a packed dataset's images, `groups.csv` beside the index: what else images share than their class, such
as a font or a camera. It has a line `image,group` for each image, in the order of the index. Only evaluation reads it,
so a dataset may get groups without a run being trained again.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from pipeline.base.files import BadInputError
from pipeline.data.checksums import check_sum, read_sums
from pipeline.data.index import AGAIN, read_rows

FILE = "groups.csv"
COLUMNS = ["image", "group"]


def write_groups(folder: Path, groups: Sequence[str]) -> None:
    """Write the group of each image, in the order of the index, to `folder`/groups.csv."""
    with (folder / FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(enumerate(groups))


def read_groups(folder: Path) -> list[str] | None:
    """The group of each image of a packed dataset, by its number; None if its images have no groups. Raises
    `BadInputError` if the file is damaged or has changed since it was written."""
    path = folder / FILE
    if not path.is_file():
        return None
    check_sum(folder, FILE, read_sums(folder, AGAIN), AGAIN)
    rows = [row for _, row in read_rows(path, [COLUMNS], AGAIN)]
    if [row[0] for row in rows] != [str(place) for place in range(len(rows))] or {*map(len, rows)} - {2}:
        raise BadInputError(f"{path} has not one line for each image: {AGAIN}")
    return [group for _, group in rows]
