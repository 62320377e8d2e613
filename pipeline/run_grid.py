"""Stage: make the runs of a grid on one dataset: train each run that is not done yet, and evaluate it. With --all, make
the runs of all chosen grids.

If a table has a search, its tries are made first, then the runs of the settings that they choose (docs/search.md). A
try whose training diverges has failed, but the search goes on without it.

A run is done when the store holds its key (pipeline/runs/key.py): the same settings, code that computes, data, versions
and kind of device. A run that is done is not made again. A retry after a kill or a failure is therefore cheap, and a
change of one row trains only that row. Several of these commands may run at a time, on one machine or on several
machines that share a file system: each run is made once. If a run fails, it is named, the others go on, and the exit
code at the end is 1.

`machine` of the params file, or the environment, says what makes the runs: which GPUs of this machine, SLURM, or Ray
(docs/scale.md). The longest runs are started first. At a first SIGTERM or Ctrl-C all runs save, and the command ends
with exit code 143; a second one ends them at once.

At the end data/runs, data/queries and metrics/runs show the grid's runs by name. --table, --row and --seed make only a
part of the grid; --dry-run checks their settings and prints what there is to do.
"""

import argparse
import os
import sys

from pipeline.base.choices import chosen
from pipeline.base.command import exit_with
from pipeline.base.config import read_params
from pipeline.base.files import BadInputError
from pipeline.base.machine import Machine
from pipeline.engines import slurm
from pipeline.engines.local import TERMINATED, Outcome, Pool, Worker
from pipeline.engines.server import in_server
from pipeline.runs.grid import DEFAULT, ENSEMBLE, GridRun, check, chosen_grids, grid_folder, grid_runs
from pipeline.runs.key import NotReadyError
from pipeline.runs.names import make_folders, note_done, show, take_in, tidy
from pipeline.runs.states import keys_of
from pipeline.runs.tried import DIVERGED
from pipeline.work.copies import clear


def asked_for(words: argparse.Namespace) -> list[GridRun]:
    """The runs that the command line names. Raises `BadInputError` if there is none."""
    if words.all:
        return [run for grid in chosen_grids() for run in grid_runs(grid)]
    runs = grid_runs(words.grid, words.dataset, words.table)
    # The runs of an ensemble are made with it.
    rows = {words.row, words.row.removeprefix(ENSEMBLE)} if words.row is not None else {run.row for run in runs}
    asked = [run for run in runs if run.row in rows or run.searched in rows]
    if words.seed is not None:
        # A single seed makes no ensemble.
        asked = [run for run in asked if run.run.seed == words.seed and not run.run.members]
    if not asked:
        names = ", ".join(dict.fromkeys(run.row for run in runs))
        seeds = ", ".join(dict.fromkeys(str(run.run.seed) for run in runs))
        raise BadInputError(f"grid {words.grid}: choose among the rows {names} and the seeds {seeds}")
    return asked


def ready(runs: list[GridRun], machines: dict[str, Machine]) -> list[GridRun]:
    """Those runs whose data exist. For the others the reason is printed."""
    found, missing = [], dict[str, int]()
    for run in runs:
        try:
            keys_of(run, machines[run.grid].device)
        except NotReadyError as error:
            missing[str(error)] = missing.get(str(error), 0) + 1
        else:
            found.append(run)
    for reason, count in missing.items():
        print(f"{count} runs are left out: {reason}", file=sys.stderr)
    return found


def work(words: argparse.Namespace, runs: list[GridRun], machines: dict[str, Machine]) -> Outcome:
    """Check the runs and let the engine make them."""
    for grid in dict.fromkeys(run.grid for run in runs):
        in_server(check, grid, [run for run in runs if run.grid == grid])
    machine, worker = machines[words.grid or DEFAULT], None
    if words.worker_since is not None:
        number, shared_by = (
            int(os.environ.get(f"PIPELINE_{name}", of)) for name, of in (("WORKER", 0), ("SHARED_BY", 1))
        )
        worker = Worker(words.worker_since, number, shared_by)
    if worker is not None:
        return Pool(machine, machines, runs, worker).work()
    outcome: Outcome = chosen("engine", machine.engine)(machine, machines, asked_words(words), runs)
    return outcome


def asked_words(words: argparse.Namespace) -> list[str]:
    """The command line that asks for the same runs."""
    if words.all:
        return ["--all"]
    options = {name: getattr(words, name) for name in ("table", "row", "seed")}
    return [words.grid, words.dataset, *(f"--{key}={value}" for key, value in options.items() if value is not None)]


def read_words() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.run_grid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", nargs="?", help="default, or a folder of papers/, such as proxygml")
    parser.add_argument("dataset", nargs="?", help="one of the grid's datasets")
    parser.add_argument("--all", action="store_true", help="all chosen grids, with the machine settings of params.yaml")
    parser.add_argument("--table", help="make only the runs of this table")
    parser.add_argument("--row", help="make only this row, such as 512 or proxy_an-12.0-0.1")
    parser.add_argument("--seed", type=int, help="make only this seed")
    parser.add_argument("--dry-run", action="store_true", help="print each run's state, such as stopped in epoch 3")
    parser.add_argument(
        "--print-script", action="store_true", help="print the script that the engine slurm would submit with sbatch"
    )
    parser.add_argument(
        "--worker-since",
        type=float,
        metavar="SECONDS",
        help="be one of several workers that were started at this time, in seconds since 1970: end when there is no "
        "more run to take, and do not try runs that have failed since then",
    )
    words = parser.parse_args()
    part = (words.grid, words.dataset, words.table, words.row, words.seed)
    if words.all and part != (None,) * len(part):
        parser.error("--all makes all runs of all chosen grids: leave out grid, dataset, --table, --row and --seed")
    if not words.all and words.dataset is None:
        parser.error("name a grid and one of its datasets, or --all")
    return words


def has_diverged(run: GridRun, machines: dict[str, Machine]) -> bool:
    """Whether a run belongs to a try, not the first, of a search, and its training diverged. This is a result: it would
    diverge again."""
    note = keys_of(run, machines[run.grid].device).failure() if run.judged and run.tried != 1 else None
    return note is not None and note["error"].startswith(DIVERGED)


def make(words: argparse.Namespace, asked: list[GridRun], machines: dict[str, Machine]) -> list[GridRun]:
    """Make those of the runs that are not done, show all of them by name, and give those that failed. With --dry-run or
    --print-script nothing is made, and the process ends."""
    grids = list(machines)
    if words.worker_since is None:
        take_in(asked, machines)
    keys = {run.place: keys_of(run, machines[run.grid].device) for run in asked}
    to_do = [run for run in asked if not keys[run.place].done()]
    if words.dry_run:
        for grid in dict.fromkeys(run.grid for run in to_do):
            check(grid, [run for run in to_do if run.grid == grid])
        print("\n".join(f"{run.place}: {keys[run.place].shown()}" for run in asked))
        sys.exit()
    to_do = [run for run in to_do if not has_diverged(run, machines)]
    if words.print_script:
        if not to_do:
            print("every run is done: there is nothing to submit", file=sys.stderr)
        else:
            print(slurm.printed(machines[words.grid or DEFAULT], asked_words(words), len(to_do)), end="")
        sys.exit()
    failed: list[GridRun] = []
    if to_do:
        outcome = work(words, to_do, machines)
        failed = [run for run in outcome.failed if not has_diverged(run, machines)]
        if outcome.stopped:
            print("asked to stop: running runs have saved; start this command again to resume them", file=sys.stderr)
            sys.exit(TERMINATED)
        if words.worker_since is None:
            for address in {address for grid in grids if (address := machines[grid].checkpoints)}:
                clear(address)
    if words.worker_since is None:
        make_folders(asked)
        for run in asked:
            show(run, machines[run.grid].device)
        if words.all or (words.table, words.row, words.seed) == (None, None, None):
            tidy(asked)
    return failed


def main() -> None:
    """Command line of the stage."""
    words = read_words()
    asked = asked_for(words)
    grids = dict.fromkeys([DEFAULT, *(run.grid for run in asked)] if words.all else [words.grid])
    machines = {grid: read_params(grid_folder(grid) / "params.yaml").machine for grid in grids}
    if words.all:
        asked = ready(asked, machines)
    failed = make(words, asked, machines)
    if words.worker_since is None and any(run.tried for run in asked):
        # Which tries are chosen is known now.
        chosen = ready(asked_for(words), machines)
        if new := [run for run in chosen if run.place not in {run.place for run in asked}]:
            failed += make(words, new, machines)
            asked = chosen
    if failed:
        names = ", ".join(str(run.place) for run in failed)
        print(f"error: {len(failed)} of {len(asked)} runs failed, see above: {names}", file=sys.stderr)
        sys.exit(1)
    if words.worker_since is None and (words.table, words.row, words.seed) == (None, None, None):
        note_done(asked)


if __name__ == "__main__":
    exit_with(main)
