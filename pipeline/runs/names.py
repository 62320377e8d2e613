"""The names under which people see the runs of a grid: data/runs, data/queries, metrics/runs and metrics/made. What
DVC's cache gets is below data/cached."""

import sys
from pathlib import Path

from pipeline.base.files import remove, sha256, write_json
from pipeline.base.machine import Machine
from pipeline.runs import cache, made, shown, store
from pipeline.runs.grid import CACHED, GridRun, grid_runs
from pipeline.runs.record import METRICS
from pipeline.runs.states import Keys, keys_of


@shown.alone()
def take_in(runs: list[GridRun], machines: dict[str, Machine]) -> None:
    """Check what the store has of some runs, and set aside what is damaged. Then put into the store what it lacks of
    them and what is under their names, such as runs from `dvc pull`, or in DVC's cache by dvc.lock. `machines` is grid
    -> its `Machine`."""
    wanted: set[str] = set()
    for run in runs:
        keys = keys_of(run, machines[run.grid].device)
        wanted |= {key for key in (*keys.own, *keys.awaited) if not store.check(key)}
        for place in (run.weights, run.queries, run.cached_weights, run.cached_queries):
            if store.take_in(place):
                print(f"{place}: taken into the store", file=sys.stderr)
    wanted = {key for key in wanted if not store.is_done(key)}
    if wanted and (count := cache.take_in(wanted)):
        print(f"{count} runs and evaluations taken into the store from DVC's cache", file=sys.stderr)


def make_folders(runs: list[GridRun]) -> None:
    """Make the folders that are outputs of DVC's stages, because DVC needs them to exist even if they are empty."""
    for grid, dataset in {(run.grid, run.run.dataset) for run in runs}:
        for place in (CACHED / "runs", CACHED / "queries", Path("metrics/runs")):
            (place / grid / dataset).mkdir(parents=True, exist_ok=True)


def show_files(run: GridRun, keys: Keys) -> None:
    """Make the run's folders show what the store has of it: links to its weights, and to the results of its queries."""
    if run.run.trained:
        _show(keys.own[0], run.weights, run.cached_weights)
    _show(keys.own[-1], run.queries, run.cached_queries)  # only the metrics, if the run has no results of queries


def _show(key: str, *targets: Path) -> None:
    for target in targets:
        if store.is_done(key):
            shown.show(key, target)
        else:
            shown.unshow(target)


@shown.alone()
def show(run: GridRun, device: str) -> None:
    """`show_files`, a copy of the run's metrics, and who made it; or the reason why it failed.

    The note in metrics/made stays while the metrics file does (`runs/made.py`)."""
    keys = keys_of(run, device)
    key = keys.own[-1]
    show_files(run, keys)
    if note := keys.failure():
        write_json(run.error, {"schema_number": 1, "key": key, "error": note["error"]})
    elif run.error.is_file():
        run.error.unlink()
    if not store.is_done(key):
        shown.unshow(run.metrics)
        return
    changed = shown.show_file(key, METRICS, run.metrics)
    made.keep(run, changed)


def note_done(runs: list[GridRun]) -> None:
    """Write the hashes of a whole grid's metrics files to data/cached/done/<grid>/<dataset>.json. This is the only
    output of the stage that makes the runs that is not in git. It lacks in a fresh clone, where DVC would otherwise
    find every metrics file and make no run."""
    for grid, dataset in sorted({(run.grid, run.run.dataset) for run in runs}):
        every = grid_runs(grid, dataset)
        # A try of a search that diverged has only an error, as it always will.
        files = {run.place: run.error if run.judged and run.error.is_file() else run.metrics for run in every}
        if all(file.is_file() for file in files.values()):
            hashes = {str(place): sha256(file) for place, file in files.items()}
            write_json(CACHED / "done" / grid / f"{dataset}.json", hashes)


@shown.alone()
def tidy(runs: list[GridRun]) -> None:
    """Remove metrics files of runs that are no longer in the grid, on the grids' datasets that have some of `runs`."""
    for grid, dataset in {(run.grid, run.run.dataset) for run in runs}:
        wanted = {path for run in grid_runs(grid, dataset) for path in (run.metrics, run.error)}
        folder = Path("metrics/runs", grid, dataset)
        for path in set(folder.glob("*/*/*.json")) - wanted:
            if store.key_of(path) is not None:
                remove(path)
                for parent in (path.parent, path.parent.parent):
                    if not any(parent.iterdir()):
                        parent.rmdir()
