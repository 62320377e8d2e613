"""A run made again, compared with what a bundle, a commit or the store says of it.

With the same key every byte is compared. On another kind of device, with other instructions or packages, last bits
differ, so the difference of its metrics is said beside the spread over seeds.
"""

import random
import statistics
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.base.files import BadInputError, read_json, sha256
from pipeline.base.machine import Machine
from pipeline.bundles.checked import bounded_runs
from pipeline.runs import made, store
from pipeline.runs.grid import GridRun
from pipeline.runs.key import Key, evaluation_key, training_key
from pipeline.runs.record import MADE, METRICS, RECORD, MetricsRecord, read_record
from pipeline.tables.columns import HEADLINE

PLACE = {"device", "instructions", "packages"}
"""The parts of a key's content that another kind of machine changes. Then other last bits are to be expected."""


@dataclass(frozen=True)
class Known:
    """A run of which something is known: its metrics file, as a record and as bytes; the machine that made it, if it
    is noted; and the metrics files of the other seeds of its row."""

    run: GridRun
    record: MetricsRecord
    text: bytes
    machine: str
    row: list[MetricsRecord]


@dataclass
class Again:
    """What a run that was made again has: the machine that made it, the files with other bytes, and what else is to be
    said. It is another run if its settings, data or code are others here; then it is not made."""

    run: GridRun
    machine: str = ""
    differ: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    other: bool = False


def _parts(content: dict[str, Any], key: Key) -> set[str]:
    """The parts of a key's content that are others than in a record, but for the key of the training."""
    names = (content.keys() | key.content.keys()) - {"training"}
    return {name for name in names if content.get(name) != key.content.get(name)}


def make_again(known: Known, machine: Machine) -> Again:
    """Make a run again, with this clone's code and data, and compare it. What the store lacks of it is made there.
    Raises `BadInputError` if its data are not here, or if another process works on it."""
    run, record = known.run.run, known.record
    found = Again(known.run)
    training = training_key(run, machine.device) if run.trained else None
    evaluation = evaluation_key(run, machine.device)
    other = _parts(record.content, evaluation)
    if training and record.run:
        other |= _parts(record.run.content, training)
    if other - PLACE:
        found.other = True
        found.said = [f"another run here, by its {', '.join(sorted(other - PLACE))}, and not made"]
        return found
    keys = [key.digest for key in (training, evaluation) if key]
    if other or not all(map(store.check, keys)):
        _make(known.run, machine)
        folders = [store.folder(key) for key in keys]
        _compare(known, folders, found)
    else:
        with TemporaryDirectory(dir=store.STORE, prefix=".verify-") as name:
            _compare(known, _remade(known.run, machine, training, evaluation, Path(name)), found)
    here = store.entry(keys[-1], MetricsRecord)
    if found.differ and (other or here.all_gpus != record.all_gpus):
        found.said = [f"made again with other: {', '.join(sorted(other)) or 'GPU'}", *_differences(known, here)]
        found.differ = []
    return found


def _make(run: GridRun, machine: Machine) -> None:
    """Make a run, and the one that chooses its epoch, in the store."""
    from pipeline.work.job import Job, perform  # here, because it imports torch

    for each in (run.run.chosen_by, run.run):
        if each and (code := perform(Job(each, str(run.place), machine.device, machine.workers))):
            raise BadInputError(f"{run.place} could not be made (exit code {code}): try it once more")


def _remade(run: GridRun, machine: Machine, training: Key | None, evaluation: Key, folder: Path) -> list[Path]:
    """Train and evaluate a run of the store once more, in folders below `folder`."""
    from pipeline.work.job import Job, evaluate_run, train_run

    job = Job(run.run, f"{run.place} again", machine.device, machine.workers)
    folders = []
    if training:
        folders.append(folder / "training")
        folders[-1].mkdir()
        with store.claim(training.digest):
            train_run(job, training, folders[-1])
            store.beside(training.digest, "checkpoint").unlink(missing_ok=True)
    folders.append(folder / "evaluation")
    folders[-1].mkdir()
    evaluate_run(job, evaluation, folders[-1])
    return folders


def _compare(known: Known, folders: list[Path], found: Again) -> None:
    """Note the machine and the files with other bytes. The folders are those of the training, if there is one, and of
    the evaluation."""
    record = known.record
    wanted = [(folders[-1], record.files)] + ([(folders[0], record.run.files)] if record.run else [])
    for folder, files in wanted:
        found.differ += [
            name for name, hash_ in files.items() if not (folder / name).is_file() or sha256(folder / name) != hash_
        ]
    if record.run and read_json(folders[0] / RECORD) != record.run.model_dump(mode="json"):
        found.differ.append(RECORD)
    if (folders[-1] / METRICS).read_bytes() != known.text:
        found.differ.append(METRICS)
    if (folders[0] / MADE).is_file():  # which a run from elsewhere lacks
        found.machine = machine_of({"training": read_json(folders[0] / MADE)})


def _differences(known: Known, here: MetricsRecord) -> list[str]:
    """For each rule that chose the weights, the difference of the metrics, here less there, in points, beside the
    standard deviation over the seeds of the row."""
    lines = []
    for rule, metrics in known.record.metrics.items():
        for metric, name in HEADLINE.items():
            there, ours = metrics.get(metric), here.metrics.get(rule, {}).get(metric)
            if isinstance(there, float) and isinstance(ours, float):
                seeds = [of.metrics.get(rule, {}).get(metric) for of in known.row]
                values = [value for value in seeds if isinstance(value, float)]
                spread = (
                    f"the {len(values)} seeds have a standard deviation of {100 * statistics.stdev(values):.2f}"
                    if len(values) > 1
                    else "one seed, so no spread is known"
                )
                numbers = f"{100 * there:.2f} there, {100 * ours:.2f} here, {100 * (ours - there):+.2f}"
                lines.append(f"{rule} {name}: {numbers}; {spread}")
    return lines


def known_runs(grid: str) -> list[Known]:
    """What the metrics files of a grid in the current folder say of its runs. Those that prove nothing are left out,
    and so are ensembles, which no training makes."""
    runs = [run for run in bounded_runs(grid) if run.metrics.is_file() and not run.run.members]
    rows: dict[tuple[str, ...], list[MetricsRecord]] = {}
    records = []
    for run in runs:
        with suppress(BadInputError):
            records.append((run, read_record(run.metrics, MetricsRecord)))
            rows.setdefault(_row(run), []).append(records[-1][1])
    return [
        Known(run, record, run.metrics.read_bytes(), machine_of(made.committed(run, record)), rows[_row(run)])
        for run, record in records
    ]


def _row(run: GridRun) -> tuple[str, ...]:
    return run.run.dataset, run.table, run.row, run.run.protocol


def machine_of(notes: made.Notes) -> str:
    """The GPU or the processor that made a run, by a note; empty if it is not known."""
    machine = next(iter(notes.values()), {}).get("machine")
    return str((machine["gpu"] or {"name": machine["cpu"]})["name"]) if machine else ""


def named(machines: Iterable[str]) -> str:
    """Machines, each once, as text."""
    return ", ".join(sorted({machine for machine in machines if machine})) or "not noted"


def chosen(known: list[Known], count: int | None, name: str | None) -> list[Known]:
    """The runs to make again: those with a name, or `count` of them at random. Raises `BadInputError` if there is
    none."""
    if name is not None:
        known = [of for of in known if name in (str(of.run.place), f"{of.run.row}/{of.run.place.name}")]
    if not known:
        raise BadInputError(f"--run {name}: no such run has a metrics file" if name else "no run has a metrics file")
    return sorted(random.sample(known, min(count or len(known), len(known))), key=lambda of: str(of.run.place))


def summary(known: list[Known], found: list[Again]) -> list[str]:
    """The lines that say what was found."""
    there = {of.run.place: of.machine for of in known}
    same = [of for of in found if not (of.differ or of.said)]
    machines = (
        f" ({named(of.machine for of in same)} here, {named(there[of.run.place] for of in same)} there)" if same else ""
    )
    lines = [f"{len(same)} of {len(found)} runs made again: same bytes{machines}"]
    for of in found:
        lines += [f"{of.run.place}: other bytes in {', '.join(of.differ)}"] if of.differ else []
        lines += [f"{of.run.place}: {said}" for said in of.said]
    return lines
