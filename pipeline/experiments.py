"""Show the DVC experiments of the current commit: the parameters that differ, and Recall@1 of each row of a grid's
tables.

`dvc exp show` shows the same and more, but in columns named after files, for which no terminal is wide enough. Here a
column has the name of its row, after table and dataset if the grid has several. Numbers are means in percent, at the
last epoch.
"""

import argparse
import logging
from typing import Any

from dvc.api import exp_show
from dvc.exceptions import DvcException

from pipeline.base.command import exit_with
from pipeline.base.files import BadInputError
from pipeline.runs.grid import DEFAULT, grid_folder
from pipeline.tables.formats import padded

RECALL = ".json:Recall@1"
PARAMETERS = ("losses.", "recipes.", "tables.")


def _shortest(places: list[str]) -> dict[str, str]:
    """Each place -> the place without the first parts that all places share: `<table>/<dataset>/<row>` -> `<row>`."""
    parts = {place: place.split("/") for place in places}
    common = 0
    while len({tuple(names[: common + 1]) for names in parts.values()}) == 1 and common < 2:
        common += 1
    return {place: "/".join(names[common:]) for place, names in parts.items()}


def experiments(found: list[dict[str, Any]], grid: str) -> list[list[str]]:
    """The table: its head, and one line for each entry of `found` (this folder, the commit, and each experiment)."""
    folder = f"metrics/headlines/{grid}/"
    own = "" if grid == DEFAULT else f"{grid_folder(grid)}/params.yaml:"
    columns = list(dict.fromkeys(name for one in found for name in one))
    rows = [name for name in columns if name.startswith(folder) and name.endswith(RECALL)]
    names = _shortest([name.removeprefix(folder).removesuffix(RECALL) for name in rows])
    parameters = [name for name in columns if name.startswith(own) and name.removeprefix(own).startswith(PARAMETERS)]
    parameters = [name for name in parameters if len({str(one.get(name)) for one in found}) > 1]
    heads = [name.removeprefix(own).split(".", 1)[1] for name in parameters]
    lines = [["", *heads, *names.values()]]
    for one in found:
        state = f" ({one['State'].lower()})" if one["State"] else ""
        settings = [
            "" if one.get(name) is None else f"{one[name]:g}" if isinstance(one[name], float) else str(one[name])
            for name in parameters
        ]
        recalls = ["–" if one.get(name) is None else f"{one[name]:.2f}" for name in rows]
        lines.append([f"{one['Experiment'] or one['rev']}{state}", *settings, *recalls])
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.experiments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", nargs="?", default=DEFAULT, help="default, or a folder of papers/, such as proxygml")
    parser.add_argument("--commits", type=int, default=1, help="number of commits: this one and those before it")
    words = parser.parse_args()
    grid_folder(words.grid)
    if words.commits < 1:
        parser.error("--commits: at least 1")
    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        found = exp_show(num=words.commits)
    except DvcException as error:
        raise BadInputError(str(error)) from None
    if not found:
        raise BadInputError("git has no commit here yet")
    print("\n".join(padded(experiments(found, words.grid))[:-1]))


if __name__ == "__main__":
    exit_with(main)
