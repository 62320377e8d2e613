"""Stage: the runs of a grid on one dataset: train each that is not done yet, and evaluate it.

A run is done when the store holds its key (pipeline/runs/key.py): the same settings, code that computes, data,
versions and kind of device. It is left as it is, so another try after a kill or a failure is cheap, and a change of one
row trains that row alone. Several of these commands may run at a time, on one machine or on several with one file
system: each run is done once. A run that fails is named, the others go on, and the exit code at the end is 1.

At the end data/runs, data/queries and metrics/runs show the grid's runs by name. --table, --row and --seed do a part of
the grid; --dry-run says what there is to do.
"""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

from pipeline.base.checks import backbone_problems, loss_problems
from pipeline.base.config import read_params
from pipeline.base.files import BadInputError, exit_with, read_json, write_json
from pipeline.engines.local import TERMINATED, Pool, failure_of, final_key, keys_of, state
from pipeline.runs import cache, store
from pipeline.runs.follow import check_package, followed
from pipeline.runs.grid import GridRun, grid_folder, grid_runs
from pipeline.runs.key import training_key
from pipeline.runs.record import MADE, METRICS


def check(grid: str, runs: list[GridRun]) -> None:
    """Check what is to be run whole, its networks and losses too, before the first run is started."""
    problems: dict[str, None] = {}
    for recipe, source in {run.run.source: (run.run.recipe, run.run.source) for run in runs}.values():
        problems |= dict.fromkeys(f"{source.split(': ')[-1]}.{problem}" for problem in backbone_problems(recipe))
    for run in runs:
        if run.run.trained:
            name = f"{run.run.loss_source.split(': ')[-1]}"
            problems |= dict.fromkeys(loss_problems(run.run.loss, run.run.loss_settings, name))
    if problems:
        raise BadInputError("\n  ".join([f"{grid_folder(grid) / 'params.yaml'}:", *problems]))


def show(run: GridRun, device: str) -> None:
    """Let the run's names show what the store has of it: links to its weights, copies of its metrics and of what says
    when and where it was made; or why it failed."""
    key = final_key(run, device)
    note = failure_of(run, device)
    if note:
        write_json(run.error, {"schema_number": 1, "key": key, "error": note["error"]})
    elif run.error.is_file():
        run.error.unlink()
    made: dict[str, object] = {}
    if run.run.trained:
        trained = training_key(run.run, device).digest
        if store.is_done(trained):
            store.show(trained, run.weights)
            made |= _made(trained, "training")
        else:
            store.unshow(run.weights)
    if store.is_done(key):
        store.show_file(key, METRICS, run.metrics)
        store.show(key, run.queries)  # with the metrics alone where a run was not searched with
        made |= _made(key, "evaluation")
        if made:
            write_json(run.made, made)
    else:
        store.unshow(run.metrics)
        store.unshow(run.queries)


def _made(key: str, work: str) -> dict[str, object]:
    path = store.folder(key) / MADE
    return {work: {"key": key} | read_json(path)} if path.is_file() else {}


def take_in(runs: list[GridRun], device: str) -> None:
    """Put into the store what stands under the runs' names, such as what `dvc pull` has brought, or lies in DVC's cache
    by dvc.lock, and is one of these runs."""
    for run in runs:
        for place in (run.weights, run.queries):
            if store.take_in(place):
                print(f"{place}: taken into the store", file=sys.stderr)
    wanted = {key for run in runs for key in keys_of(run, device) if not store.is_done(key)}
    if wanted and (count := cache.take_in(wanted)):
        print(f"{count} runs and evaluations taken into the store from DVC's cache", file=sys.stderr)


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.run_grid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", help="default, or a folder of papers/, such as proxygml")
    parser.add_argument("dataset", help="one of the grid's")
    parser.add_argument("--table", help="do the runs of this table alone")
    parser.add_argument("--row", help="do this row alone, such as 512 or proxy_an-12.0-0.1")
    parser.add_argument("--seed", type=int, help="do this seed alone")
    parser.add_argument("--dry-run", action="store_true", help="print every run and whether it is done")
    arguments = parser.parse_args()

    machine = read_params(grid_folder(arguments.grid) / "params.yaml").machine
    device = machine.device
    runs = grid_runs(arguments.grid, arguments.dataset, arguments.table)
    asked = [run for run in runs if arguments.row in (None, run.row) and arguments.seed in (None, run.run.seed)]
    if not asked:
        rows = ", ".join(dict.fromkeys(run.row for run in runs))
        seeds = ", ".join(dict.fromkeys(str(run.run.seed) for run in runs))
        raise BadInputError(f"grid {arguments.grid}: choose among the rows {rows} and the seeds {seeds}")
    take_in(asked, device)
    states = [state(run, device) for run in asked]
    if arguments.dry_run:
        print("\n".join(f"{run.place}: {known}" for run, known in zip(asked, states, strict=True)))
        return
    to_do = [run for run, known in zip(asked, states, strict=True) if known != "done"]
    failed: list[GridRun] = []
    if to_do:
        check(arguments.grid, to_do)
        if machine.tensorboard:
            check_package()
        with followed(to_do, device) if machine.tensorboard else nullcontext():
            outcome = Pool(device, machine.workers).work(to_do)
        failed = outcome.failed
        if outcome.stopped:
            print("told to stop: what was running has saved; start this again to go on", file=sys.stderr)
            sys.exit(TERMINATED)
    for place in ("data/queries", "data/runs", "metrics/made", "metrics/runs"):
        # DVC wants its stages' outputs and dependencies, be there anything in them or not.
        Path(place, arguments.grid, arguments.dataset).mkdir(parents=True, exist_ok=True)
    for run in asked:
        show(run, device)
    if failed:
        names = ", ".join(str(run.place) for run in failed)
        print(f"error: {len(failed)} of {len(asked)} runs failed, as said above: {names}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    exit_with(main)
