"""The content of a grid's report: its tables with their rows, read in the same way as for metrics/tables, and what is
known about each run."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.base.config import Table
from pipeline.base.files import read_json
from pipeline.runs import store
from pipeline.runs.grid import GridRun, grid_runs
from pipeline.runs.record import MetricsRecord, read_record
from pipeline.tables.grid import metrics_of, read_grid
from pipeline.tables.pages import comparison, of_networks, ranking_selection
from pipeline.tables.published import PublishedTable
from pipeline.tables.rows import Row, collect_table, is_extra

UNKNOWN_MACHINE = "a machine that was not noted"


@dataclass(frozen=True)
class ShownRun:
    """A run that has a metrics file, and the entries of its made.json for its training and its evaluation, if there are
    any."""

    run: GridRun
    record: MetricsRecord
    made: dict[str, Any]

    @property
    def making(self) -> dict[str, Any]:
        """When and where the run was trained, or evaluated if it was not trained."""
        return self.made.get("training") or self.made.get("evaluation") or {}

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
        """The GPU, or the processor if no GPU was used, as text."""
        machine = self.making.get("machine")
        if machine is None:
            return UNKNOWN_MACHINE
        gpu = machine["gpu"]
        return f"{gpu['name']}, driver {gpu['driver']}" if gpu else f"{machine['cpu']}, {machine['cores']} cores"

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


def _made(run: GridRun, record: MetricsRecord) -> dict[str, Any]:
    """The entries of made.json that belong to the training and the evaluation of a record."""
    keys = {"evaluation": record.key} | ({"training": record.run.key} if record.run else {})
    made = read_json(run.made) if run.made.is_file() else {}
    return {work: of for work, of in made.items() if of["key"] == keys.get(work)}


@dataclass(frozen=True)
class ShownTable:
    """A table with all that a report shows of it."""

    name: str
    title: str
    table: Table
    rows: list[Row]
    metrics: list[str]
    published: PublishedTable | None
    printed_by_others: list[PublishedTable]
    """Printed tables whose other methods are shown with this table."""

    @property
    def foreign(self) -> bool:
        """Whether its runs searched among other images than the published ones."""
        return any(row.foreign for row in self.rows)

    @property
    def selection(self) -> str:
        """The rule that chose the weights, for the numbers in figures."""
        return "best_test_epoch" if self.published else ranking_selection(self.rows)

    def verdicts(self) -> list[tuple[str, str]]:
        """For every printed number: its row and metric as text, and the verdict."""
        if self.published is None:
            return []
        lines = comparison(self.rows, self.published, "±")
        return [
            (f"{self.name}: {row.key}, {line[len(row.values)]}", line[-1]) for row, line in lines if not is_extra(row)
        ]


class ShownGrid:
    """A grid's tables, and its runs by their metrics files."""

    def __init__(self, grid: str):
        self.name = grid
        params, published = read_grid(grid)
        self.paper = published.paper if published else None
        self.tables: list[ShownTable] = []
        for name, table in params.tables.items():
            own = published.tables.get(name) if published else None
            rows = collect_table(grid_runs(grid, table=name), published)
            title = own.title if own else table.title or f"{grid}: {name}"
            metrics, others = metrics_of(params, table, own is not None), [own] if own else []
            if table.layout == "ranked" and published and "loss" in table.rows:
                others = of_networks(published, rows)
            self.tables.append(ShownTable(name, title, table, rows, metrics, own, others))

    @property
    def foreign(self) -> bool:
        """Whether any of its runs searched among other images than the published ones."""
        return any(table.foreign for table in self.tables)

    @cached_property
    def runs(self) -> dict[Path, ShownRun]:
        """The runs that the tables show, by their metrics files."""
        shown: dict[Path, ShownRun] = {}
        for table in self.tables:
            for row in table.rows:
                lacking = {*row.failures, *row.missing, *row.outdated}
                for run in row.runs:
                    if f"{row.key}/{run.place.name}" not in lacking:
                        record = read_record(run.metrics, MetricsRecord)
                        shown[run.metrics] = ShownRun(run, record, _made(run, record))
        return shown

    @cached_property
    def made_once(self) -> list[ShownRun]:
        """The runs, each only once even if several tables share it."""
        return list({run.record.key: run for run in self.runs.values()}.values())

    def names(self, kind: str) -> list[str]:
        """The names of the runs that are `missing` or `outdated`, or that have `failures`."""
        return [f"{table.name}: {name}" for table in self.tables for row in table.rows for name in getattr(row, kind)]

    def by_machine(self) -> dict[str, list[ShownRun]]:
        """The runs of each machine."""
        machines: dict[str, list[ShownRun]] = defaultdict(list)
        for run in self.made_once:
            machines[run.machine].append(run)
        return dict(sorted(machines.items()))

    def candidates(self, dataset: str) -> list[tuple[float, Row, GridRun]]:
        """Recall@1, row and first run of the rows on a dataset that kept the results of their queries, best first."""
        found = {}
        for table in self.tables:
            for row in table.rows if table.selection != "held_out_classes" else ():
                runs = [run for run in row.runs if self._has_queries(run)]
                cell = row.cell(table.selection, "recall@1")
                if row.dataset == dataset and runs and cell.values:
                    found[row.key] = (cell.mean, row, runs[0])
        return sorted(found.values(), key=lambda found: (-found[0], found[1].name))

    def _has_queries(self, run: GridRun) -> bool:
        """Whether the results of a run's queries exist and belong to the same evaluation as its metrics file."""
        shown = self.runs.get(run.metrics)
        there = (run.queries / "queries.npz").is_file()
        return shown is not None and there and store.key_of(run.queries) == shown.record.key

    @property
    def datasets(self) -> list[str]:
        """The datasets of its tables."""
        return list(dict.fromkeys(dataset for table in self.tables for dataset in table.table.datasets))
