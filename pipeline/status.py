"""Show all grids: how many runs each table has, how many are done, running, failed or left, and how long the rest would
take.

A run is done when the store holds its key; the stages use the same check. A run whose files in the store are damaged is
named and counts as left. The time is estimated from the runs of the
same dataset and network that are done here. For each epoch of the recipe it is the number of training images divided by
the median images/s, plus the median of the other time of an epoch. The evaluation at the end is not included. The time
is unknown if no such run is done, or if the list of a run's training images is not made yet. A run that two tables
share counts once, in the first table. The settings of runs that are not done are checked for the grids that are named,
or for the chosen ones.

--why adds, for runs that are not done, what they have other than the nearest run in the store: settings, data, code by
the names of definitions, versions of packages. Runs of which this is the same stand in one line.
"""

import argparse
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.base.command import exit_with
from pipeline.base.config import read_params
from pipeline.runs import store
from pipeline.runs.cost import images_in
from pipeline.runs.grid import GridRun, check, chosen_grids, grid_folder, grid_runs, known_grids
from pipeline.runs.key import NotReadyError, evaluation_key, training_key
from pipeline.runs.made import training
from pipeline.runs.record import MetricsRecord, TrainingRecord
from pipeline.runs.states import keys_of
from pipeline.runs.why import differences

STATES = ("done", "running", "failed", "stopped")


def kind(run: GridRun) -> str:
    """The dataset and the network of a run, as text. Runs with the same text take about the same time per image."""
    return f"{run.run.dataset} {run.run.recipe.backbone}"


def speeds(runs: list[GridRun]) -> dict[str, tuple[float, float]]:
    """`kind` of the runs that were made here -> images/s of training, and the other seconds of an epoch; both are
    medians."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        images = images_in(run.run.manifest)
        made = training(run) if images else {}
        for speed, seconds in zip(made.get("images_per_second", []), made.get("epoch_seconds", []), strict=False):
            if images and speed:
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
    rest = f"{unknown} runs of unknown time" if unknown else ""
    if rest and not sum(known):
        return rest  # what is left of known time is not trained
    return f"{sum(known) / 3600:.1f} h" + (f" and {rest}" if rest else "")


def state_of(run: GridRun, device: str) -> tuple[str, str | None, str]:
    """A run's state, its key, and what is wrong with its files in the store, if anything is. The state is "not run" and
    the key None if its data do not exist yet."""
    try:
        keys = keys_of(run, device)
    except NotReadyError:
        return "not run", None, ""
    wrong = keys.damage()
    return "damaged" if wrong else keys.state(), keys.own[-1], wrong


def why(runs: list[GridRun], devices: Mapping[str, str]) -> Iterator[str]:
    """For runs that are not done, what they have other than the nearest run in the store, a line for each reason."""
    trained, evaluated = list(store.records(TrainingRecord)), list(store.records(MetricsRecord))
    found: dict[str, list[GridRun]] = {}
    for run in runs:
        device = devices[run.grid]
        try:
            training = training_key(run.run, device) if run.run.trained else None
            if training and not store.is_done(training.digest):
                texts = differences(training, trained)
            else:
                texts = differences(evaluation_key(run.run, device), evaluated)
        except NotReadyError as error:
            texts = [str(error)]
        found.setdefault("; ".join(texts) or "the store has no run to compare it with", []).append(run)
    for text, same in found.items():
        more = f" and {len(same) - 1} more" if len(same) > 1 else ""
        yield f"{same[0].place}{more}: {text}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grids", nargs="*", metavar="GRID", help="such as proxygml; all if not given")
    parser.add_argument("--why", action="store_true", help="say what runs have that are not done")
    words = parser.parse_args()
    grids = words.grids or known_grids()
    by_grid = {grid: grid_runs(grid) for grid in grids}
    measured = speeds([run for runs in by_grid.values() for run in runs])
    devices = {grid: read_params(grid_folder(grid) / "params.yaml").machine.device for grid in grids}
    states = {run.place: state_of(run, devices[grid]) for grid, runs in by_grid.items() for run in runs}
    for grid in words.grids or chosen_grids():
        if left := [run for run in by_grid.get(grid, []) if states[run.place][0] != "done"]:
            check(grid, left)
    print(
        f"{'grid':18} {'table':12} {'runs':>5} {'done':>5} {'running':>7} {'failed':>6} {'left':>5}  time for the rest"
    )
    seen: set[str] = set()
    every: list[GridRun] = []
    damaged: dict[Path, str] = {}
    for grid, runs in by_grid.items():
        for table in dict.fromkeys(run.table for run in runs):
            counts, left, shared = dict.fromkeys(STATES, 0), [], 0
            for run in (run for run in runs if run.table == table):
                known, key, wrong = states[run.place]
                if key in seen:
                    shared += 1
                    continue
                seen |= {key} if key else set()
                if known in counts:
                    counts[known] += 1
                if known != "done":
                    left.append(run)
                if wrong:
                    damaged[run.place] = wrong
            every += left
            total = counts["done"] + len(left)
            note = f"; {shared} more runs are in tables above" if shared else ""
            note += f"; {counts['stopped']} were stopped and go on" if counts["stopped"] else ""
            note += "; then the runs of the settings that are chosen" if any(run.judged for run in left) else ""
            numbers = f"{total:5} {counts['done']:5} {counts['running']:7} {counts['failed']:6} {len(left):5}"
            print(f"{grid:18} {table:12} {numbers}  {hours(left, measured)}{note}".rstrip())
    print(f"all: {len(every)} runs left{', ' + hours(every, measured) if every else ''}")
    for place, wrong in damaged.items():
        print(f"{place} is damaged: {wrong}")
    if words.why:
        print(*why([run for run in every if run.place not in damaged], devices), sep="\n")


if __name__ == "__main__":
    exit_with(main)
