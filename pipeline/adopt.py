"""Take over a table's runs for the current code, if the current code is shown to compute the same bytes.

This is for a change of code that cannot change results, such as a faster way to the same numbers. The first run of the
table that is not done is trained again: all of it, or with --epochs only its first epochs. The SHA-256 of its weights
after every epoch and its history are compared with those of the run that other code made. If all are equal, this run
and the table's other runs made by that same code become runs of the current code. The record of each run says so and
why, and the tables show it.

Settings, data, packages and kind of device must be the same too. Evaluations are made again, which trains nothing.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline.base.config import read_params
from pipeline.base.files import BadInputError, exit_with, write_json
from pipeline.engines.work import Job, train_run
from pipeline.runs import store
from pipeline.runs.grid import GridRun, grid_folder, grid_runs
from pipeline.runs.key import Key, training_key
from pipeline.runs.record import MADE, RECORD, TakenOver, TrainingRecord, check_files, read_record
from pipeline.runs.run import read_history

SAME = ("settings", "data", "device", "instructions", "packages")
"""The parts that must be equal between a run and its successor; only the code may differ."""


def _as_read(content: dict[str, Any]) -> dict[str, object]:
    """The content after a round trip through JSON, so that it can be compared with what was read from a file."""
    read: dict[str, object] = json.loads(json.dumps(content))
    return read


def comparable(record: TrainingRecord) -> dict[str, object]:
    """The content of a record's key, without the code."""
    names = ("dataset", "loss", "loss_settings", "seed", "protocol", "subset")
    settings = {name: getattr(record, name) for name in names}
    settings["recipe"] = record.recipe.model_dump(mode="json", exclude_defaults=True)
    data = {name: value for name, value in record.data.items() if name != "chosen_by"}
    content = {"settings": settings, "data": data, "device": record.device}
    return _as_read(content | {"instructions": record.instructions, "packages": record.packages})


def wanted(run: GridRun, key: Key) -> dict[str, object]:
    """The content of the key that the run would have now, without the code."""
    data = {name: value for name, value in key.content["data"].items() if name != "chosen_by"}
    content = {name: key.content[name] for name in ("device", "instructions", "packages")}
    return _as_read(content | {"settings": run.run.settings(), "data": data})


def predecessors(runs: list[GridRun], device: str) -> list[tuple[GridRun, TrainingRecord]]:
    """Each trained run that is not done, with a record of the store that differs from it only by its code, if there is
    one."""
    records = [read_record(path, TrainingRecord) for path in sorted(store.STORE.glob(f"*/{RECORD}"))]
    found = []
    for run in runs:
        key = training_key(run.run, device)
        if not store.is_done(key.digest):
            same = [record for record in records if comparable(record) == wanted(run, key)]
            if same:
                found.append((run, same[-1]))
    return found


def compare(run: GridRun, record: TrainingRecord, device: str, workers: int, epochs: int | None) -> str:
    """Train a run again, and raise `BadInputError` unless it equals the run of `record`. Return that run's key and the
    number of epochs that were compared, as text."""
    old = store.folder(record.key)
    check_files(old, record.files)
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
        if last == record.epochs and new.files != record.files:
            raise BadInputError(f"{run.place}: its files differ from those of {record.key}: nothing is taken over")
    store.beside(key.digest, "checkpoint").unlink(missing_ok=True)
    return f"{record.key}, {last} of {record.epochs} epochs"


def take_over(run: GridRun, record: TrainingRecord, device: str, because: str, compared: str) -> None:
    """Put a run that other code made into the store under the run's current key."""
    key = training_key(run.run, device)
    check_files(store.folder(record.key), record.files)
    taken = TakenOver(key=record.key, because=because, compared=compared)
    content = {"key": key.digest, "code": key.content["code"], "data": key.content["data"], "taken_over": taken}
    with store.claim(key.digest):
        if store.is_done(key.digest):
            return
        with store.fill(key.digest) as folder:
            for name in [*record.files, *([MADE] if (store.folder(record.key) / MADE).is_file() else [])]:
                (folder / name).hardlink_to(store.folder(record.key) / name)
            write_json(folder / RECORD, record.model_copy(update=content).model_dump(mode="json"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.adopt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", help="default, or a folder of papers/, such as proxygml")
    parser.add_argument("table", help="one of its tables")
    parser.add_argument("--because", required=True, help="why the change of code cannot change results")
    parser.add_argument("--epochs", type=int, help="number of epochs to train for the comparison; all if not given")
    words = parser.parse_args()
    if words.epochs is not None and words.epochs < 1:
        parser.error("--epochs: at least 1")
    machine = read_params(grid_folder(words.grid) / "params.yaml").machine
    runs = [run for run in grid_runs(words.grid, table=words.table) if run.run.trained]
    found = predecessors(runs, machine.device)
    if not found:
        raise BadInputError(
            f"grid {words.grid}, table {words.table}: every run is done, or the store has no run that differs only by "
            "its code"
        )
    first, old = found[0]
    # The other runs must have been made by the code that was compared, not by a third version.
    same_code = [(run, record) for run, record in found if record.code == old.code]
    compared = compare(first, old, machine.device, machine.workers, words.epochs)
    for run, record in same_code:
        take_over(run, record, machine.device, words.because, compared)
        print(f"{run.place}: taken over from {record.key}")
    others = len(found) - len(same_code)
    if others:
        print(f"{others} more runs were made by different code: call this again for them", file=sys.stderr)


if __name__ == "__main__":
    exit_with(main)
