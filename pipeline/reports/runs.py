"""The content of a grid's report: its tables with their rows, read in the same way as for metrics/tables, and what is
known about each run."""

import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.base.gpu import gpu_text
from pipeline.runs.grid import GridRun
from pipeline.runs.key import file_hash
from pipeline.runs.made import Notes, committed, here
from pipeline.runs.record import QUERIES, MetricsRecord, read_record
from pipeline.tables.columns import RANKED_BY
from pipeline.tables.grid import read_content
from pipeline.tables.model import TableModel
from pipeline.tables.rows import Row, ranking_rule

UNKNOWN_MACHINE = "a machine that was not noted"


@dataclass(frozen=True)
class ShownRun:
    """A run that has a metrics file; who made it, its training and its evaluation, as metrics/made says; and how this
    clone made it, if it did."""

    run: GridRun
    record: MetricsRecord
    made: Notes
    here: Notes

    @property
    def making(self) -> dict[str, Any]:
        """When and where the run was trained, or evaluated if it was not trained."""
        return self.made.get("training") or self.made.get("evaluation") or {}

    @property
    def made_here(self) -> str:
        """The processor or GPU and the seconds with which this clone made the run; empty if it did not, or if it is who
        made the committed run."""
        if not self.here or self.here == self.made:
            return ""
        again = ShownRun(self.run, self.record, self.here, {})
        return f"{again.machine}, {again.seconds:,.0f} s"

    @property
    def seconds(self) -> float | None:
        """The seconds of training and evaluation; None if they were not noted."""
        return sum(work["seconds"] for work in self.made.values()) if self.made else None

    @property
    def gpu_joules(self) -> float | None:
        """The GPU's energy in joules in training and evaluation, as far as it was counted; None if it was not counted.
        If runs shared the GPU, it is divided by their number."""
        counted = [
            work["gpu_joules"] / work["runs_on_device"]
            for work in self.made.values()
            if work.get("gpu_joules") is not None
        ]
        return sum(counted) if counted else None

    @property
    def machine(self) -> str:
        """The GPUs, or the processors if no GPU was used, of all machines that worked on the run, as text."""
        if not self.making:
            return UNKNOWN_MACHINE
        machines = self.making.get("machines") or [self.making["machine"]]
        named = [gpu_text(of["gpu"]) if of["gpu"] else f"{of['cpu']}, {of['cores']} cores" for of in machines]
        return "; then ".join(dict.fromkeys(named))

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU was used."""
        return bool(self.making.get("machine", {}).get("gpu"))

    @property
    def revision(self) -> str:
        """The first digits of the commit with which the run was made, with a plus if files had been changed."""
        git = self.making.get("git", {})
        revision = (git.get("revision") or "")[:10]
        return f"{revision}{'' if git.get('clean') else '+'}" if revision else "not noted"


def rule_of(table: TableModel) -> str:
    """The rule that chose the weights, for the numbers in figures."""
    return "best_test_epoch" if table.published else ranking_rule(table.rows)


class ShownGrid:
    """A grid's tables, and its runs by their metrics files."""

    def __init__(self, grid: str):
        self.name = grid
        self.content = read_content(grid)
        self.tables, published = self.content.tables, self.content.published
        self.paper = published.paper if published else None

    @property
    def foreign(self) -> bool:
        """Whether any of its runs searched among other images than the published ones."""
        return any(table.warnings for table in self.tables)

    @cached_property
    def runs(self) -> dict[Path, ShownRun]:
        """The runs that the tables show, by their metrics files."""
        shown: dict[Path, ShownRun] = {}
        for table in self.tables:
            for row in table.every:
                for run in row.runs:
                    if f"{row.key}/{run.place.name}" not in row.lacking:
                        record = read_record(run.metrics, MetricsRecord)
                        shown[run.metrics] = ShownRun(run, record, committed(run, record), here(record))
        return shown

    @cached_property
    def made_once(self) -> list[ShownRun]:
        """The runs, each only once even if several tables share it."""
        return list({run.record.key: run for run in self.runs.values()}.values())

    def names(self, kind: str) -> list[str]:
        """The names of the runs that are `missing` or `outdated`, or that have `failures`."""
        return [f"{table.name}: {name}" for table in self.tables for row in table.every for name in getattr(row, kind)]

    def by_machine(self) -> dict[str, list[ShownRun]]:
        """The runs of each machine."""
        machines: dict[str, list[ShownRun]] = defaultdict(list)
        for run in self.made_once:
            machines[run.machine].append(run)
        return dict(sorted(machines.items()))

    def mixtures(self) -> list[str]:
        """The tables' warnings that a row, or a difference between rows, mixes GPUs."""
        return [f"{table.name}: {sentence}" for table in self.tables for sentence in table.mixtures]

    def candidates(self, dataset: str) -> list[tuple[float, Row, GridRun]]:
        """Recall@1, row and first run of the rows on a dataset that kept the results of their queries, best first."""
        found = {}
        for table in self.tables:
            rule = rule_of(table)
            for row in table.rows if rule != "held_out_classes" else ():
                cell = row.cell(rule, RANKED_BY)
                run = next((run for run in row.runs if self._has_queries(run)), None)
                if row.dataset == dataset and run is not None and cell.values:
                    found[row.key] = (cell.mean, row, run)
        return sorted(found.values(), key=lambda found: (-found[0], found[1].name))

    def _has_queries(self, run: GridRun) -> bool:
        """Whether the results of a run's queries exist and are those that its metrics file lists. If they are others, a
        line names them."""
        shown, file = self.runs.get(run.metrics), run.cached_queries / QUERIES
        if shown is None or not file.is_file() or QUERIES not in shown.record.files:
            return False
        same = file_hash(file) == shown.record.files[QUERIES]
        if not same:
            print(
                f"{file} is not what {run.metrics} lists and is not used: `dvc repro` makes it again", file=sys.stderr
            )
        return same

    @property
    def datasets(self) -> list[str]:
        """The datasets of its tables."""
        return list(dict.fromkeys(dataset for table in self.tables for dataset in table.settings.datasets))
