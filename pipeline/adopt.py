"""Take over a table's runs for the current code, if the current code is shown to compute the same bytes. With --all,
take over the runs of all tables of all grids.

This is for a change of code that cannot change results, such as a faster way to the same numbers. Of the runs that are
not done and that differ from a run in the store only by their code, one is trained again for each change of the code's
hash: all of it, or with --epochs only its first epochs. The SHA-256 of its weights after every epoch and its history
are compared with those of the run that other code made. If all are equal, this run and the other runs with the same
change become runs of the current code. The record of each run says so and why, and the tables show it.

Settings, data, packages and kind of device must be the same too. Evaluations are made again, which trains nothing.
"""

import argparse
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.base.command import exit_with
from pipeline.base.config import read_params
from pipeline.base.files import BadInputError, sha256, write_json
from pipeline.runs import store
from pipeline.runs.grid import GridRun, grid_folder, grid_runs, known_grids
from pipeline.runs.key import NotReadyError, digest, training_key
from pipeline.runs.record import CODE, MADE, RECORD, TakenOver, TrainingRecord, read_record
from pipeline.runs.run import read_history
from pipeline.work.job import Job, train_run


def without_code(content: dict[str, Any]) -> str:
    """The hash of the content of a training's key without the code, and without the key of the run that chose the
    epoch."""
    data = {name: value for name, value in content["data"].items() if name != "chosen_by"}
    return digest({name: value for name, value in content.items() if name != "code"} | {"data": data})


Pair = tuple[GridRun, TrainingRecord]
"""A run that is not done, and the record of the run in the store that differs only by its code."""


def predecessors(runs: list[GridRun], devices: Mapping[str, str]) -> dict[tuple[str, str], list[Pair]]:
    """The trained runs that are not done but have a predecessor in the store, by the change of the code's hash, old and
    new. Runs of which another chooses the epoch come last. Each key is there once."""
    records = {without_code(record.content): record for record in store.records(TrainingRecord)}
    found: dict[tuple[str, str], list[Pair]] = {}
    seen: set[str] = set()
    for run in sorted(runs, key=lambda run: run.run.chosen_by is not None):
        with suppress(NotReadyError):
            key = training_key(run.run, devices[run.grid])
            record = records.get(without_code(key.content))
            if record and key.digest not in seen and not store.is_done(key.digest):
                seen.add(key.digest)
                found.setdefault((record.content["code"], key.content["code"]), []).append((run, record))
    return found


def computed(record: TrainingRecord) -> dict[str, str]:
    """The files that a run computed, and their SHA-256: all but the list of its code."""
    return {name: digest for name, digest in record.files.items() if name != CODE}


def compare(run: GridRun, record: TrainingRecord, device: str, workers: int, epochs: int | None) -> str:
    """Train a run again, and raise `BadInputError` unless it equals the run of `record`. Return that run's key and the
    number of epochs that were compared, as text."""
    store.entry(record.key, TrainingRecord)
    old = store.folder(record.key)
    key = training_key(run.run, device)
    last = min(epochs or record.epochs, record.epochs)
    with tempfile.TemporaryDirectory(dir=store.STORE, prefix=".adopt-") as name:
        train_run(Job(run.run, f"{run.place} again", device, workers), key, Path(name), last)
        new = read_record(Path(name) / RECORD, TrainingRecord)
        pairs = zip(read_history(Path(name) / "history.csv"), read_history(old / "history.csv"), strict=False)
        for one, other in pairs:
            if one != other:
                raise BadInputError(
                    f"{run.place}: in epoch {one['epoch']} the current code computes {one}, but "
                    f"{record.key} has {other}: nothing is taken over"
                )
        if last == record.epochs and computed(new) != computed(record):
            raise BadInputError(f"{run.place}: its files differ from those of {record.key}: nothing is taken over")
    store.beside(key.digest, "checkpoint").unlink(missing_ok=True)
    return f"{record.key}, {last} of {record.epochs} epochs"


def take_over(run: GridRun, record: TrainingRecord, device: str, because: str, compared: str) -> None:
    """Put a run that other code made into the store under the run's current key."""
    key = training_key(run.run, device)
    store.entry(record.key, TrainingRecord)
    taken = TakenOver(key=record.key, because=because, compared=compared)
    kept = {"epochs": record.epochs, "images": record.images, "classes": record.classes, "gpus": record.gpus}
    with store.claim(key.digest):
        if store.is_done(key.digest):
            return
        with store.fill(key.digest) as folder:
            for name in [*computed(record), *([MADE] if (store.folder(record.key) / MADE).is_file() else [])]:
                (folder / name).hardlink_to(store.folder(record.key) / name)
            write_json(folder / CODE, key.code)
            files = computed(record) | {CODE: sha256(folder / CODE)}
            successor = TrainingRecord.made(key=key.digest, content=key.content, taken_over=taken, files=files, **kept)
            write_json(folder / RECORD, successor.model_dump(mode="json"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.adopt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", nargs="?", help="default, or a folder of papers/, such as proxygml")
    parser.add_argument("table", nargs="?", help="one of its tables; all of them if not given")
    parser.add_argument("--all", action="store_true", help="all tables of all grids")
    parser.add_argument("--because", required=True, help="why the change of code cannot change results")
    parser.add_argument("--epochs", type=int, help="number of epochs to train for the comparison; all if not given")
    words = parser.parse_args()
    if words.epochs is not None and words.epochs < 1:
        parser.error("--epochs: at least 1")
    if words.all == (words.grid is not None):
        parser.error("name a grid, or --all")
    grids = known_grids() if words.all else [words.grid]
    machines = {grid: read_params(grid_folder(grid) / "params.yaml").machine for grid in grids}
    devices = {grid: machine.device for grid, machine in machines.items()}
    runs = [run for grid in grids for run in grid_runs(grid, table=words.table) if run.run.trained]
    found = predecessors(runs, devices)
    if not found:
        raise BadInputError("every run is done, or the store has no run that differs only by its code")
    problems = []
    for pairs in found.values():
        first, old = min(pairs, key=lambda pair: pair[0].run.recipe.epochs)
        try:
            compared = compare(first, old, devices[first.grid], machines[first.grid].workers, words.epochs)
        except BadInputError as error:
            problems.append(str(error))
            continue
        for run, record in pairs:
            take_over(run, record, devices[run.grid], words.because, compared)
            print(f"{run.place}: taken over from {record.key}")
    if problems:
        raise BadInputError("\n".join(problems))


if __name__ == "__main__":
    exit_with(main)
