"""The grids of tables at a glance: how many runs each has, done and failed, and how long the rest would take.

The time is estimated from the runs of the same dataset and network that are done: training images an epoch over their
median images/s, and the median of what an epoch took besides, for each of the recipe's epochs. It says unknown where
none is done, or the list of a run's training images is not made yet. Held-out runs and evaluation come on top.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from pipeline.config import Params, Table, read_params
from pipeline.files import exit_with, read_json
from pipeline.tables import collect, grid


def recipe_name(table: Table, dataset: str, values: tuple[Any, ...]) -> str:
    """The recipe of a row: <recipe>_<dataset> where rows differ in recipe, otherwise that named like the dataset."""
    chosen = dict(zip(table.rows, values, strict=True)).get("recipe")
    return f"{chosen}_{dataset}" if chosen else dataset


def training_images(table: Table, dataset: str, values: tuple[Any, ...], seed: int) -> int | None:
    """The length of a run's list of training images; None if it has not been made."""
    row = dict(zip(table.rows, values, strict=True))
    path = Path("data/splits") / dataset / "train.csv"
    if "rate" in row:
        path = Path("data/subsets") / dataset / f"partial_{row['rate']}.csv"
    if "gamma" in row:
        path = Path("data/subsets") / dataset / f"imbalanced_{row['gamma']}_{seed}.csv"
    return path.read_text().count("\n") - 1 if path.is_file() else None


def speeds(folder: Path) -> dict[str, tuple[float, float]]:
    """Of the runs under `folder` that are done, by dataset and backbone: images/s of training, and seconds an epoch
    beside it; medians."""
    found: dict[str, list[tuple[float, float]]] = {}
    for path in folder.glob("**/run.json"):
        run = read_json(path)
        pairs = zip(run["images_per_second"], run["epoch_seconds"], strict=True)
        beside = [(speed, seconds - run["images"] / speed) for speed, seconds in pairs if speed > 0]
        found.setdefault(f"{run['dataset']} {run['recipe']['backbone']}", []).extend(beside)
    return {
        key: (statistics.median(speed for speed, _ in of), max(0.0, statistics.median(rest for _, rest in of)))
        for key, of in found.items()
        if of
    }


def listing(params: Params, runs: Path, paper: str) -> list[str]:
    """One line a table: runs, done, failed, hours for the rest."""
    measured, lines = speeds(Path("data/runs") / paper), []
    for name, table in params.tables.items():
        total = done = failed = unknown = 0
        seconds = 0.0
        for dataset, values in grid(table):
            row = collect(runs / name, dataset, values, table.seeds, None)
            recipe = params.recipes[recipe_name(table, dataset, values)]
            speed = measured.get(f"{dataset} {recipe.backbone}")
            total, failed = total + len(row.seeds), failed + len(row.failures)
            done += len(row.seeds) - len(row.missing) - len(row.failures)
            for seed in [*row.missing, *row.failures]:
                images = training_images(table, dataset, values, seed)
                if speed and images is not None:
                    seconds += recipe.epochs * (images / speed[0] + speed[1])
                else:
                    unknown += 1
        rest = f"{seconds / 3600:.1f} h" + (f" and {unknown} runs of unknown time" if unknown else "")
        rest = "" if done == total else "unknown" if unknown == total - done else rest
        lines.append(f"{paper:10} {name:10} {total:5} {done:5} {failed:6}  {rest}".rstrip())
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.grid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted(Path("papers").glob("*/params.yaml"))
    parser.add_argument("params", type=Path, nargs="*", default=known, help="papers' params.yaml; all if not given")
    parser.add_argument("--tables", action="store_true", help="print the names <paper>/<table> alone")
    arguments = parser.parse_args()
    if arguments.tables:
        print("\n".join(f"{path.parent.name}/{name}" for path in arguments.params for name in read_params(path).tables))
        return
    print(f"{'paper':10} {'table':10} {'runs':>5} {'done':>5} {'failed':>6}  time for the rest")
    for path in arguments.params:
        paper = path.parent.name
        print("\n".join(listing(read_params(path), Path("metrics/runs") / paper, paper)))


if __name__ == "__main__":
    exit_with(main)
