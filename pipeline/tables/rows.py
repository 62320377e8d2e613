"""The content of a table: the runs of its rows, their means and intervals, and verdicts on printed numbers."""

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from scipy.special import stdtrit

from pipeline.base.files import read_json
from pipeline.runs.grid import GridRun
from pipeline.runs.record import MetricsRecord, read_record
from pipeline.tables.published import Published, PublishedTable

SELECTIONS = {
    "best_test_epoch": "Best test epoch: weights chosen by Recall@1 on the test set, as the papers do",
    "last_epoch": "Last epoch: the same runs, chosen without a look at the test set",
    "held_out": "Held-out: epoch chosen on held-out training classes, then trained on all of them",
    "held_out_classes": "Held-out training classes: what an epoch or a setting may be chosen by",
}
"""The rule that chose the weights -> its description."""

PEEKING = {"best_minus_last": "last_epoch", "best_minus_held_out": "held_out"}
"""What choosing the epoch on the test set adds to Recall@1: name of the difference -> the selection rule whose Recall@1
is subtracted, seed by seed."""


@dataclass(frozen=True)
class Cell:
    """One metric of one row: `values` are fractions, one for each run, by seed; `files` are the metrics files that they
    come from; `planned` is the number of planned runs."""

    values: list[float]
    files: list[Path]
    planned: int

    @property
    def mean(self) -> float:
        """The mean over the runs."""
        return statistics.fmean(self.values)

    @property
    def half_width(self) -> float | None:
        """The half-width of the 95 % t-interval of the mean; None for a single run."""
        n = len(self.values)
        if n < 2:
            return None
        return float(stdtrit(n - 1, 0.975)) * statistics.stdev(self.values) / math.sqrt(n)

    def text(self, plus_minus: str, sign: str = "", none: str = "not run") -> str:
        """The mean in percent, the half-width if there is one, and n if it is not the planned number; `none` if there
        is no run."""
        if not self.values:
            return none
        half, n = self.half_width, len(self.values)
        interval = f" {plus_minus} {100 * half:.2f}" if half is not None else ""
        return f"{100 * self.mean:{sign}.2f}{interval}" + (f" (n = {n})" if n != self.planned else "")


@dataclass
class Row:
    """The runs of one row on one dataset."""

    dataset: str
    name: str
    runs: list[GridRun]
    found: dict[str, dict[int, tuple[Path, dict[str, float]]]] = field(
        default_factory=lambda: {rule: {} for rule in SELECTIONS}
    )
    """Rule that chose the weights -> seed -> metrics file and metrics."""
    learning: list[tuple[GridRun, list[dict[str, float | int]]]] = field(default_factory=list)
    """Each trained run and its history by epoch."""
    failures: dict[str, str] = field(default_factory=dict)
    """Name of a run -> why it failed."""
    missing: list[str] = field(default_factory=list)
    """The names of the runs that have no metrics file and have not failed."""
    outdated: list[str] = field(default_factory=list)
    """The names of the runs whose metrics file has other settings than now. These files are not shown."""
    taken_over: dict[str, str] = field(default_factory=dict)
    """Name of a run that other code made -> why it counts."""
    foreign: str | None = None
    """The images that were searched, if they are not those on which the printed numbers were measured."""

    @property
    def key(self) -> str:
        """The row's name in published.yaml."""
        return f"{self.dataset}/{self.name}"

    @property
    def planned(self) -> int:
        """The number of seeds of the row."""
        return len({run.run.seed for run in self.runs})

    @property
    def values(self) -> tuple[str, ...]:
        """The row's values as text, one for each axis of its table; the row's name if the table added the row."""
        return self.runs[0].values or (self.name,)

    @property
    def histories(self) -> list[dict[int, float]]:
        """For each run by the papers' protocol: epoch -> Recall@1 on the test set, if it was evaluated."""
        looks = [
            [line for line in history if "recall@1" in line]
            for run, history in self.learning
            if run.run.protocol == "test"
        ]
        return [{int(line["epoch"]): line["recall@1"] for line in lines} for lines in looks]

    def cell(self, selection: str, metric: str) -> Cell:
        """The cell of one metric under one selection rule."""
        runs = [(path, metrics[metric]) for path, metrics in self.found[selection].values() if metric in metrics]
        return Cell([value for _, value in runs], [path for path, _ in runs], self.planned)

    def peeking(self, subtracted: str) -> Cell:
        """Recall@1 at the best test epoch minus that of another selection rule, for the seeds that have both."""
        pairs = [
            (best, other)
            for seed, best in self.found["best_test_epoch"].items()
            if (other := self.found[subtracted].get(seed))
        ]
        values = [best[1]["recall@1"] - other[1]["recall@1"] for best, other in pairs]
        return Cell(values, [other[0] for _, other in pairs], self.planned)


def _settings_differ(run: GridRun, record: MetricsRecord) -> bool:
    """Whether a metrics file has other settings than its run has now."""
    if record.run is None:
        return False
    now, made = run.run.settings(), record.run.model_dump(mode="json")
    made["recipe"] = record.run.recipe.model_dump(mode="json", exclude_defaults=True)
    return any(made[name] != value for name, value in now.items())


def collect(runs: list[GridRun], published: Published | None) -> Row:
    """One row, read from the metrics files of its runs. If a run has a metrics file, a note that it failed is
    ignored."""
    row = Row(runs[0].run.dataset, runs[0].row, runs)
    for run in runs:
        name = f"{row.key}/{run.place.name}"
        if not run.metrics.is_file():
            if run.error.is_file():
                row.failures[name] = read_json(run.error)["error"]
            else:
                row.missing.append(name)
            continue
        record = read_record(run.metrics, MetricsRecord)
        if _settings_differ(run, record):
            row.outdated.append(name)
            continue
        for selection, metrics in record.metrics.items():
            numbers = {metric: value for metric, value in metrics.items() if isinstance(value, float)}
            # A run without training has the same metrics under both rules.
            for rule in ("best_test_epoch", "last_epoch") if selection == "no_training" else (selection,):
                row.found[rule][run.run.seed] = run.metrics, numbers
        if record.history:
            row.learning.append((run, record.history))
        if record.run is not None and record.run.taken_over is not None:
            row.taken_over[name] = record.run.taken_over.because
        if published and run.run.protocol != "choose_epoch":
            searched, wanted = record.retrieved.model_dump(), published.retrieved[row.dataset].model_dump()
            row.foreign = f"{row.dataset}: {searched} in place of {wanted}" if searched != wanted else row.foreign
    return row


def collect_table(runs: list[GridRun], published: Published | None) -> list[Row]:
    """The rows of a table, made from all of its runs, in the order of the runs."""
    rows: dict[tuple[str, str], list[GridRun]] = {}
    for run in runs:
        rows.setdefault((run.run.dataset, run.row), []).append(run)
    return [collect(of_row, published) for of_row in rows.values()]


def is_extra(row: Row) -> bool:
    """Whether the table added the row: for the images themselves, for the network without training, or for an
    ensemble."""
    return not row.runs[0].run.trained


def difference(cell: Cell, printed: float | None) -> float | None:
    """Our mean minus the printed number, in points; None if there is no run or no printed number."""
    return None if printed is None or not cell.values else 100 * cell.mean - printed


def verdict(cell: Cell, printed: float | None, table: PublishedTable, failed: bool) -> str:
    """Whether our number reproduces the printed one, as text."""
    apart = difference(cell, printed)
    if not cell.values:
        return "failed" if failed else "not run"
    if apart is None:
        return "published unknown"
    if abs(apart) <= table.tolerance + table.error + 1e-9:
        return "reproduced: within the tolerance"
    if cell.half_width is not None and abs(apart) <= 100 * cell.half_width + table.error:
        return "reproduced: within the interval"
    return f"missed by {apart:+.2f}"
