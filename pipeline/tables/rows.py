"""The content of a table: the runs of its rows, their means and intervals."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.base.files import BadInputError, read_json
from pipeline.runs.grid import GridRun
from pipeline.runs.key import settings_of
from pipeline.runs.protocols import PROTOCOLS, Description
from pipeline.runs.record import MetricsRecord, read_record
from pipeline.runs.tried import settings_differ
from pipeline.statistics.spread import Spread
from pipeline.statistics.verdicts import quantile
from pipeline.tables.published import Published

SELECTIONS = {
    "best_test_epoch": "Best test epoch: weights chosen by Recall@1 on the test set, as the papers do",
    "last_epoch": "Last epoch: the same runs, chosen without a look at the test set",
    "held_out": "Held-out: epoch chosen on held-out training classes, then trained on all of them",
    "held_out_classes": "Held-out training classes: what an epoch or a setting may be chosen by",
}
"""The rule that chose the weights -> its description."""

NO_GPU = "the processor"
"""How a run without a GPU is named among those that were made on GPUs."""

PEEKING = {"best_minus_last": "last_epoch", "best_minus_held_out": "held_out"}
"""What choosing the epoch on the test set adds to Recall@1: name of the difference -> the selection rule whose Recall@1
is subtracted, seed by seed."""


@dataclass(frozen=True)
class Cell:
    """One metric of one row: `values` are fractions, one for each run, by seed; `files` are the metrics files that they
    come from; `planned` is the number of planned runs. `spread` is the spread between runs, in points, if it is shared
    with other rows; otherwise it is that of the values."""

    values: list[float]
    files: list[Path]
    planned: int
    spread: Spread | None = None
    never_negative: bool = False
    """Whether the values cannot be negative, so that a symmetric interval would say nothing."""

    @property
    def mean(self) -> float:
        """The mean over the runs."""
        return statistics.fmean(self.values)

    @property
    def half_width(self) -> float | None:
        """The half-width of the 95 % t-interval of the mean over seeds; None for a single run."""
        n = len(self.values)
        if n < 2 or self.never_negative:
            return None
        df, spread = n - 1.0, 100 * statistics.stdev(self.values)
        if self.spread is not None:
            df, spread = self.spread.df, self.spread.value
        return quantile(df) * spread / 100 / math.sqrt(n)

    def text(self, sign: str = "", none: str = "not run") -> str:
        """The mean in percent, the half-width if there is one, and n if it is not the planned number; `none` if there
        is no run."""
        if not self.values:
            return none
        half, n = self.half_width, len(self.values)
        interval = f" ± {100 * half:.2f}" if half is not None else ""
        if self.never_negative and n > 1:
            more = sum(value > 0 for value in self.values)
            interval = (
                f" ({more} of {n} runs, at most {100 * max(self.values):+.2f})" if more else f" (none of {n} runs)"
            )
        return f"{100 * self.mean:{sign}.2f}{interval}" + (f" (n = {n})" if n != self.planned else "")

    def numbers(self) -> dict[str, Any]:
        """The mean, the half-width if there is one, both as fractions, and n. `planned` is added if it is not n."""
        half = {} if self.half_width is None else {"half_width": round(self.half_width, 6)}
        planned = {} if len(self.values) == self.planned else {"planned": self.planned}
        return {"mean": round(self.mean, 6), **half, "n": len(self.values), **planned}


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
    """Name of a run -> why it failed, or why its metrics file is not used."""
    missing: list[str] = field(default_factory=list)
    """The names of the runs that have no metrics file and have not failed."""
    outdated: list[str] = field(default_factory=list)
    """The names of the runs whose metrics file has other settings than now. These files are not shown."""
    taken_over: dict[str, str] = field(default_factory=dict)
    """Name of a run that other code made -> why it counts."""
    shared: Callable[["Row", str, str], Spread] | None = None
    """Gives the spread of this row, which other rows share, by selection rule and metric."""
    foreign: str | None = None
    """The images that were searched, if they are not those on which the printed numbers were measured."""
    gpus: dict[str, list[str]] = field(default_factory=dict)
    """Name of a run -> the GPUs that it was made on, by model, driver and cuDNN, or `NO_GPU`."""

    @property
    def key(self) -> str:
        """The row's name in published.yaml."""
        return f"{self.dataset}/{self.name}"

    @property
    def lacking(self) -> set[str]:
        """The names of the runs that the row does not show."""
        return {*self.failures, *self.missing, *self.outdated}

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
        spread = self.shared(self, selection, metric) if self.shared and len(runs) > 1 and not is_extra(self) else None
        return Cell([value for _, value in runs], [path for path, _ in runs], self.planned, spread)

    def peeking(self, subtracted: str) -> Cell:
        """Recall@1 at the best test epoch minus that of another selection rule, for the seeds that have both."""
        pairs = [
            (best, other)
            for seed, best in self.found["best_test_epoch"].items()
            if (other := self.found[subtracted].get(seed))
        ]
        values = [best[1]["recall@1"] - other[1]["recall@1"] for best, other in pairs]
        # The best test epoch of a run is never below its last one.
        return Cell(values, [other[0] for _, other in pairs], self.planned, never_negative=subtracted == "last_epoch")


def _misplaced(run: GridRun, record: MetricsRecord) -> str:
    """Why a metrics file is in the place of another run; empty if it is not."""
    wanted = settings_of(run.run)
    for name in ("dataset", "protocol", "seed"):
        if record.settings.get(name) != wanted[name]:
            return f"{run.metrics} is of the {name} {record.settings.get(name)}, not {wanted[name]}: make it again"
    return ""


def _reason(error: Path) -> str:
    """Why a run failed, as its note says."""
    try:
        noted = read_json(error)
    except BadInputError as damaged:
        return str(damaged)
    said = noted.get("error") if isinstance(noted, dict) else None
    return said if isinstance(said, str) else f"{error} does not say why"


def collect(runs: list[GridRun], published: Published | None) -> Row:
    """One row, read from the metrics files of its runs. If a run has a metrics file, a note that it failed is ignored.
    A metrics file that does not prove what it says, or is another run's, is named among the failures and not used."""
    row = Row(runs[0].run.dataset, runs[0].row, runs)
    for run in runs:
        name = f"{row.key}/{run.place.name}"
        if not run.metrics.is_file():
            if run.error.is_file():
                row.failures[name] = _reason(run.error)
            else:
                row.missing.append(name)
            continue
        try:
            record = read_record(run.metrics, MetricsRecord)
        except BadInputError as error:
            row.failures[name] = str(error)
            continue
        if misplaced := _misplaced(run, record):
            row.failures[name] = misplaced
            continue
        if settings_differ(run.run, record):
            row.outdated.append(name)
            continue
        for selection, metrics in record.metrics.items():
            numbers = {metric: value for metric, value in metrics.items() if isinstance(value, float)}
            # A run without training has the same metrics under both rules.
            for rule in ("best_test_epoch", "last_epoch") if selection == "no_training" else (selection,):
                row.found[rule][run.run.seed] = run.metrics, numbers
        row.gpus[name] = record.all_gpus or [NO_GPU]
        if record.history:
            row.learning.append((run, record.history))
        if record.run is not None and record.run.taken_over is not None:
            row.taken_over[name] = record.run.taken_over.because
        if published and not PROTOCOLS[run.run.protocol].on_held_out:
            searched, wanted = record.retrieved.model_dump(), published.retrieved[row.dataset].model_dump()
            row.foreign = f"{row.dataset}: {searched} in place of {wanted}" if searched != wanted else row.foreign
    return row


def collect_table(runs: list[GridRun], published: Published | None) -> list[Row]:
    """The rows of a table, made from all of its runs, in the order of the runs."""
    rows: dict[tuple[str, str], list[GridRun]] = {}
    for run in runs:
        rows.setdefault((run.run.dataset, run.row), []).append(run)
    return [collect(of_row, published) for of_row in rows.values()]


def final_runs(runs: list[GridRun]) -> list[GridRun]:
    """The runs of a table without those of a search that only judge tries: what its numbers come from."""
    chosen = {(run.run.dataset, run.row) for run in runs if run.tried is not None and not run.judged}
    return [run for run in runs if run.tried is None or (run.run.fold is None and (run.run.dataset, run.row) in chosen)]


def gpus_of(rows: list[Row]) -> list[str]:
    """The GPUs that the runs of rows were made on, each once."""
    return sorted({gpu for row in rows for gpus in row.gpus.values() for gpu in gpus})


def is_extra(row: Row) -> bool:
    """Whether the table added the row: for the images themselves, for the network without training, or for an
    ensemble."""
    return not row.runs[0].run.trained


def protocol_of(row: Row) -> Description:
    """The protocol of a row's runs, or of the first of them."""
    return PROTOCOLS[row.runs[0].run.protocol]


def rules_of(rows: list[Row]) -> list[str]:
    """The selection rules of a table, which follow from its protocols."""
    protocols = {run.run.protocol for row in rows for run in row.runs}
    if protocols == {"choose_epoch"}:
        return ["held_out_classes"]
    return [rule for rule in SELECTIONS if any(rule in PROTOCOLS[protocol].weights for protocol in protocols)]


def ranking_rule(rows: list[Row]) -> str:
    """The selection rule of a ranking: one that does not use the test set."""
    return next(rule for rule in ("last_epoch", "held_out", "held_out_classes") if rule in rules_of(rows))
