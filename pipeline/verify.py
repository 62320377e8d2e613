"""Check the runs of a grid against those that a commit names, byte by byte.

A metrics file in git lists the SHA-256 of a run's weights, its history and what its queries found. This command says
how many runs this clone has made, how many have the very bytes that the commit names, and on which processors both were
made. It hashes what the store has; it trains nothing.

With --remake N, N of these runs, drawn at random, are trained and evaluated once more in a scratch folder and compared
with the store, file by file; --run names one. The exit code is 1 if any bytes differ.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.command import exit_with
from pipeline.base.config import read_params
from pipeline.base.files import BadInputError, sha256
from pipeline.base.machine import Machine
from pipeline.runs import made, store
from pipeline.runs.grid import GridRun, grid_folder, grid_runs
from pipeline.runs.key import NotReadyError, evaluation_key, training_key
from pipeline.runs.record import METRICS, RECORD, MetricsRecord, TrainingRecord, read_record
from pipeline.runs.revisions import commit_of, files_of_commit
from pipeline.runs.states import keys_of

SAME, OTHER_BYTES, OTHER_RUN = "the same bytes", "other bytes", "another run"
NOT_COMMITTED, NOT_MADE = "not in the commit", "not made"


@dataclass(frozen=True)
class Compared:
    """How a run of the store compares with a commit: one of the states above; and the machines that made it there, by
    git's note, and here, empty if they are not known or if it was not made here."""

    run: GridRun
    state: str
    there: str = ""
    here: str = ""


def compared(run: GridRun, device: str, committed: dict[str, bytes]) -> Compared:
    """A run of the store, compared with the metrics files of a commit: path -> content."""
    try:
        keys = keys_of(run, device).own
    except NotReadyError:
        return Compared(run, NOT_MADE)
    if not all(map(store.check, keys)):
        return Compared(run, NOT_MADE)
    path = store.folder(keys[-1]) / METRICS
    record = read_record(path, MetricsRecord)
    there, here = (_machine(notes) for notes in (made.committed(run, record), made.here(record)))
    text = committed.get(run.metrics.as_posix())
    if text is None:
        return Compared(run, NOT_COMMITTED, "", here)
    if text == path.read_bytes():
        return Compared(run, SAME, there, here)
    # A file in git that is damaged, or of another version, names another run, too.
    return Compared(run, OTHER_BYTES if f'"key": "{keys[-1]}"'.encode() in text else OTHER_RUN, there, here)


def _machine(notes: made.Notes) -> str:
    machine = next(iter(notes.values()), {}).get("machine")
    return str((machine["gpu"] or {"name": machine["cpu"]})["name"]) if machine else ""


def _named(machines: Iterable[str]) -> str:
    return ", ".join(sorted({machine for machine in machines if machine})) or "not noted"


def summary(grid: str, commit: str, found: list[Compared]) -> list[str]:
    """The lines that say what was found."""
    counts = Counter(one.state for one in found)
    here = [one for one in found if one.here]
    machines = [f"{_named(one.here for one in here)} here"] if here else []
    if here and counts[SAME]:
        machines.append(f"{_named(one.there for one in found if one.state == SAME)} there")
    lines = [
        f"{grid}: {len(here)} of {len(found)} runs were made here, {counts[SAME]} of {len(found)} have the bytes that "
        f"commit {commit[:7]} names" + (f" ({', '.join(machines)})" if machines else "")
    ]
    for state, fix in (
        (OTHER_BYTES, "the same settings, code and data gave something else"),
        (OTHER_RUN, "their settings, code, data or packages are not those of the commit"),
        (NOT_COMMITTED, "the commit has no metrics file of them"),
        (NOT_MADE, "make them with `python -m pipeline.run_grid`"),
    ):
        if names := [str(one.run.place) for one in found if one.state == state]:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"{counts[state]} {state}: {', '.join(names[:3])}{more}: {fix}")
    return lines


def remake(run: GridRun, machine: Machine) -> list[str]:
    """Train and evaluate a run of the store once more, and return the names of the files whose bytes differ. Raises
    `BadInputError` if another process works on it."""
    from pipeline.work.job import Job, evaluate_run, train_run  # here, because it imports torch

    job = Job(run.run, f"{run.place} again", machine.device, machine.workers)
    differ = []
    with tempfile.TemporaryDirectory(dir=store.STORE, prefix=".verify-") as name:
        folder = Path(name)
        if run.run.trained:
            key = training_key(run.run, machine.device)
            (folder / "training").mkdir()
            with store.claim(key.digest):
                train_run(job, key, folder / "training")
                store.beside(key.digest, "checkpoint").unlink(missing_ok=True)
            training = store.entry(key.digest, TrainingRecord)
            differ += _differ(folder / "training", training.files | {RECORD: sha256(store.folder(key.digest) / RECORD)})
        key = evaluation_key(run.run, machine.device)
        (folder / "evaluation").mkdir()
        evaluate_run(job, key, folder / "evaluation")
        files = store.entry(key.digest, MetricsRecord).files
        differ += _differ(folder / "evaluation", files | {METRICS: sha256(store.folder(key.digest) / METRICS)})
    return differ


def _differ(folder: Path, files: dict[str, str]) -> list[str]:
    return [name for name, known in files.items() if not (folder / name).is_file() or sha256(folder / name) != known]


def chosen(found: list[Compared], count: int | None, name: str | None) -> list[GridRun]:
    """The runs to make once more. Raises `BadInputError` if none can be."""
    done = [one.run for one in found if one.state != NOT_MADE and not one.run.run.members]
    if name is not None:
        done = [run for run in done if name in (str(run.place), f"{run.row}/{run.place.name}")]
        count = count or len(done)
    if not done:
        why = "there is nothing to compare with: make the runs (`dvc repro`)"
        raise BadInputError(f"--run {name}: this run is not made, {why}" if name else f"no run is made, {why}")
    return sorted(random.sample(done, min(count or 0, len(done))), key=lambda run: str(run.place))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", help="default, or a folder of papers/, such as proxygml")
    parser.add_argument("--revision", default="HEAD", help="the commit or experiment to compare with (default: HEAD)")
    parser.add_argument("--remake", type=int, metavar="N", help="make N runs once more and compare all bytes")
    parser.add_argument("--run", metavar="ROW/SEED", help="make this run once more")
    words = parser.parse_args()
    if words.remake is not None and words.remake < 1:
        raise BadInputError(f"--remake is {words.remake}: give 1 or more")
    runs = grid_runs(words.grid)
    machine = read_params(grid_folder(words.grid) / "params.yaml").machine
    commit = commit_of(words.revision)
    committed = dict(files_of_commit(commit))
    found = [compared(run, machine.device, committed) for run in runs]
    print("\n".join(summary(words.grid, commit, found)))
    wrong = any(one.state == OTHER_BYTES for one in found)
    if words.remake or words.run:
        again = chosen(found, words.remake, words.run)
        differ = {run.place: names for run in again if (names := remake(run, machine))}
        print(f"{len(again) - len(differ)} of {len(again)} runs made again: same bytes")
        for place, names in differ.items():
            print(f"{place}: other bytes in {', '.join(names)}")
        wrong = wrong or bool(differ)
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    exit_with(main)
