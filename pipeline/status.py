"""Show all grids: how many runs each table has, how many are done, running, failed or left, and how long the rest would
take.

A run is done when the store holds its key; the stages use the same check. The time is estimated from the runs of the
same dataset and network that are done here. For each epoch of the recipe it is the number of training images divided by
the median images/s, plus the median of the other time of an epoch. The evaluation at the end is not included. The time
is unknown if no such run is done, or if the list of a run's training images is not made yet. A run that two tables
share counts once, in the first table.
"""

import argparse
import statistics

from pipeline.base.config import read_params
from pipeline.base.files import exit_with, read_json
from pipeline.runs.cost import images_in
from pipeline.runs.grid import GridRun, grid_folder, grid_runs, known_grids
from pipeline.runs.key import NotReadyError
from pipeline.runs.states import keys_of

STATES = ("done", "running", "failed")


def kind(run: GridRun) -> str:
    """The dataset and the network of a run, as text. Runs with the same text take about the same time per image."""
    return f"{run.run.dataset} {run.run.recipe.backbone}"


def speeds(runs: list[GridRun]) -> dict[str, tuple[float, float]]:
    """`kind` of the runs that were made here -> images/s of training, and the other seconds of an epoch; both are
    medians."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        images = images_in(run.run.manifest)
        if images and run.made.is_file():
            made = read_json(run.made).get("training", {})
            for speed, seconds in zip(made.get("images_per_second", []), made.get("epoch_seconds", []), strict=False):
                pairs.setdefault(kind(run), []).append((speed, seconds - images / speed))
    return {
        name: (statistics.median(speed for speed, _ in of), max(0.0, statistics.median(rest for _, rest in of)))
        for name, of in pairs.items()
    }


def seconds_left(run: GridRun, measured: dict[str, tuple[float, float]]) -> float | None:
    """The seconds that a run that is not done would take to train; None if they are not known."""
    images, speed = images_in(run.run.manifest), measured.get(kind(run))
    if not run.run.trained:
        return 0.0
    return run.run.recipe.epochs * (images / speed[0] + speed[1]) if images and speed else None


def hours(runs: list[GridRun], measured: dict[str, tuple[float, float]]) -> str:
    """The time for some runs, as text."""
    known = [seconds for run in runs if (seconds := seconds_left(run, measured)) is not None]
    unknown = len(runs) - len(known)
    if not runs or unknown == len(runs):
        return "unknown" if runs else ""
    return f"{sum(known) / 3600:.1f} h" + (f" and {unknown} runs of unknown time" if unknown else "")


def state_of(run: GridRun, device: str) -> tuple[str, str | None]:
    """A run's state and key; "not run" and None if its data do not exist yet."""
    try:
        keys = keys_of(run, device)
    except NotReadyError:
        return "not run", None
    return keys.state(), keys.own[-1]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grids", nargs="*", metavar="GRID", help="such as proxygml; all if not given")
    grids = parser.parse_args().grids or known_grids()
    by_grid = {grid: grid_runs(grid) for grid in grids}
    measured = speeds([run for runs in by_grid.values() for run in runs])
    print(
        f"{'grid':18} {'table':12} {'runs':>5} {'done':>5} {'running':>7} {'failed':>6} {'left':>5}  time for the rest"
    )
    seen: set[str] = set()
    every: list[GridRun] = []
    for grid, runs in by_grid.items():
        device = read_params(grid_folder(grid) / "params.yaml").machine.device
        for table in dict.fromkeys(run.table for run in runs):
            counts, left, shared = dict.fromkeys(STATES, 0), [], 0
            for run in (run for run in runs if run.table == table):
                known, key = state_of(run, device)
                if key in seen:
                    shared += 1
                    continue
                seen |= {key} if key else set()
                if known in counts:
                    counts[known] += 1
                if known != "done":
                    left.append(run)
            every += left
            total = counts["done"] + len(left)
            note = f"; {shared} more runs are in tables above" if shared else ""
            numbers = f"{total:5} {counts['done']:5} {counts['running']:7} {counts['failed']:6} {len(left):5}"
            print(f"{grid:18} {table:12} {numbers}  {hours(left, measured)}{note}".rstrip())
    print(f"all: {len(every)} runs left{', ' + hours(every, measured) if every else ''}")


if __name__ == "__main__":
    exit_with(main)
