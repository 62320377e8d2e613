"""Stage: the runs of one table on one dataset: train each that is not done yet, and evaluate it.

A run is done when its settings, the code and the data that made it, the versions and the kind of device are what they
are now; it is left as it is. So is another try after a kill or a failure cheap, and a change of one row trains that row
alone. Every run is a process of its own, whose command line is printed. One that fails is named, and the others go on;
exit code 1 says at the end that some failed. Metrics of runs that are no longer what they were go at the start, and so
does what the table has no row for any more.

--row and --seed run a part of the grid, --dry-run says what there is to do.
"""

import argparse
import contextlib
import signal
import subprocess
import sys
from pathlib import Path

from pipeline.base.config import read_params, read_table
from pipeline.base.files import FAILURES, BadInputError, exit_with, note_failure, read_json, remove
from pipeline.grid import GridRun, grid_runs
from pipeline.networks.network import choose_device
from pipeline.training.checkpoint import TERMINATED, Termination


def execute(termination: Termination, stage: str, arguments: list[str]) -> bool:
    """Run a stage in a process of its own and say whether it succeeded; it notes its own failure, and what ends it
    from outside is noted here. When one of the two is told to stop (SIGTERM) both do."""
    print("$ python -m", f"pipeline.{stage}", *arguments, flush=True)
    with subprocess.Popen([sys.executable, "-m", f"pipeline.{stage}", *arguments]) as process:
        code = None
        while code is None:
            if termination.came:
                process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=0.5)
    if termination.came or code in (TERMINATED, -signal.SIGTERM):
        sys.exit(TERMINATED)
    if code < 0:
        note_failure(ChildProcessError(f"killed by {signal.Signals(-code).name}"), (stage, arguments))
    return code == 0


def forget_failures(run: Path) -> None:
    """Remove what is noted of the failures of a run, whatever its settings were then."""
    for note in FAILURES.glob("*.json"):
        if str(run) in read_json(note)["arguments"]:
            note.unlink(missing_ok=True)


def clear(folder: Path, kept: set[Path]) -> None:
    """Remove what is in the rows' folders of `folder` and not to be kept, but for what is being written."""
    for path in folder.glob("*/[!.]*"):
        if path not in kept:
            remove(path)
    for row in folder.glob("*"):
        if row.is_dir() and not any(row.iterdir()):
            row.rmdir()


def perform(run: GridRun, state: str, termination: Termination) -> bool:
    """Train and evaluate what is not done; whether all of it succeeded."""
    forget_failures(run.run.out)
    if state != "not evaluated" and not execute(termination, "train", run.run.arguments):
        return False
    if run.metrics is None:
        return True
    evaluation = [str(run.run.out), "--params", str(run.run.params), "--out", str(run.metrics.parent)]
    return execute(termination, "evaluate", evaluation)


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.run_grid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, required=True, help="such as papers/proxygml/params.yaml")
    parser.add_argument("--table", required=True, help="an entry of tables there")
    parser.add_argument("--dataset", required=True, help="one of the table's")
    parser.add_argument("--runs", type=Path, help="folder of runs; data/runs/<paper>/<table> if not given")
    parser.add_argument("--metrics", type=Path, help="of their metrics files; metrics/runs/<paper>/<table>")
    parser.add_argument("--row", help="run this row alone, such as 512 or proxy_an-12.0-0.1")
    parser.add_argument("--seed", type=int, help="run this seed alone")
    parser.add_argument(
        "--held-out-choice", action="store_true", help="only look at held-out training classes, evaluate nothing"
    )
    parser.add_argument("--dry-run", action="store_true", help="print every run and whether it is done")
    arguments = parser.parse_args()
    path, dataset, place = arguments.params, arguments.dataset, Path(arguments.params.parent.name) / arguments.table
    table = read_table(path, arguments.table, dataset)
    runs, metrics = arguments.runs or "data/runs" / place, arguments.metrics or "metrics/runs" / place

    grid = grid_runs(path, arguments.table, dataset, runs, metrics, arguments.held_out_choice)
    device = choose_device(read_params(path).machine.device)
    asked = [of for of in grid if arguments.row in (None, of.row) and arguments.seed in (None, of.run.seed)]
    if not asked:
        rows = ", ".join(dict.fromkeys(of.row for of in grid))
        seeds = ", ".join(map(str, table.seeds))
        raise BadInputError(f"{path}: tables.{arguments.table}: choose among the rows {rows} and the seeds {seeds}")
    if arguments.dry_run:
        print("\n".join(f"{of.run.out}: {of.state(device)}" for of in asked))
        return
    clear(runs / dataset, {of.run.out for of in grid})
    if not arguments.held_out_choice:
        clear(metrics / dataset, {file for of in grid if of.state(device) == "done" for file in of.files})

    termination, failed = Termination(), list[Path]()
    for number, of in enumerate(asked, start=1):
        # Asked now and not above: an epoch chosen anew makes another run of what is trained until it.
        state = of.state(device)
        if state == "done" or (of.run.until and of.run.until.parent in failed):
            continue
        print(f"{of.run.out}: {number} of {len(asked)}, {state}", flush=True)
        if not perform(of, state, termination):
            failed.append(of.run.out)
    if failed:
        told = ", ".join(map(str, failed))
        print(f"error: {len(failed)} of {len(asked)} runs failed, as told above: {told}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    exit_with(main)
