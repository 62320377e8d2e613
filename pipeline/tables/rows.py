"""What a table says: the runs of its grid, their means and intervals, and verdicts on printed numbers."""

import itertools
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

from pipeline.base.config import Table, folder_name
from pipeline.base.files import noted_failures, read_json
from pipeline.tables.published import Published, PublishedTable

SELECTIONS = {
    "best_test_epoch": "Best test epoch: weights chosen by Recall@1 on the test set, as the papers do",
    "last_epoch": "Last epoch: the same runs, chosen without a look at the test set",
    "held_out": "Held-out: epoch chosen on held-out training classes, then trained on all of them",
}
PEEKING = {"best_minus_last": "last_epoch", "best_minus_held_out": "held_out"}
"""What choosing on the test set adds to Recall@1: the name of the difference -> what is subtracted, seed by seed."""


@dataclass(frozen=True)
class Cell:
    """One metric of one row: `values`, fractions, one a run, and the metrics files they come from."""

    values: list[float]
    files: list[Path]

    @property
    def mean(self) -> float:
        """Mean over the runs."""
        return statistics.fmean(self.values)

    @property
    def half_width(self) -> float | None:
        """Half-width of the 95 % t-interval of the mean; None for a single run."""
        n = len(self.values)
        if n < 2:
            return None
        return float(stdtrit(n - 1, 0.975)) * statistics.stdev(self.values) / math.sqrt(n)

    def text(self, plus_minus: str, sign: str = "", none: str = "not run") -> str:
        """In percent: the mean, and the half-width where there is one; `none` where there is no run."""
        if not self.values:
            return none
        half = self.half_width
        return f"{100 * self.mean:{sign}.2f}" + (f" {plus_minus} {100 * half:.2f}" if half is not None else "")


@dataclass(frozen=True)
class Row:
    """The runs of one row on one dataset: `found` holds the metrics files' contents by selection rule and seed."""

    dataset: str
    values: tuple[Any, ...]
    """One an axis of the table."""
    seeds: list[int]
    files: dict[int, Path]
    """The metrics file of every seed, be it there or not; that of the held-out run is beside it."""
    found: dict[str, dict[int, tuple[Path, dict[str, float]]]]
    failures: dict[int, str] = field(default_factory=dict)
    """The error of the seeds whose last try failed."""
    foreign: str | None = None
    """What was searched among, where that is not what the printed numbers were measured on."""

    @property
    def name(self) -> str:
        """The values, as the folder of runs has them."""
        return folder_name(self.values)

    @property
    def key(self) -> str:
        """The row's name in published.yaml."""
        return f"{self.dataset}/{self.name}"

    @property
    def missing(self) -> list[int]:
        """The seeds that have no metrics file and did not fail."""
        return [seed for seed in self.seeds if not self.files[seed].is_file() and seed not in self.failures]

    def cell(self, selection: str, metric: str) -> Cell:
        """One metric under one selection rule."""
        runs = [(path, metrics[metric]) for path, metrics in self.found[selection].values() if metric in metrics]
        return Cell([value for _, value in runs], [path for path, _ in runs])

    def peeking(self, subtracted: str) -> Cell:
        """Recall@1 at the best test epoch less that of another selection rule, of the seeds that have both."""
        pairs = [
            (best, of)
            for seed, best in self.found["best_test_epoch"].items()
            if (of := self.found[subtracted].get(seed))
        ]
        return Cell([best[1]["recall@1"] - of[1]["recall@1"] for best, of in pairs], [of[0] for _, of in pairs])


def grid(table: Table) -> list[tuple[str, tuple[Any, ...]]]:
    """Dataset and values of every row, in order."""
    return [(dataset, values) for dataset in table.datasets for values in itertools.product(*table.rows.values())]


def collect(folder: Path, dataset: str, values: tuple[Any, ...], seeds: list[int], published: Published | None) -> Row:
    """One row from the metrics files in `folder`/<dataset>/<values>.

    A run whose last try failed is told as failed; a metrics file of it is older than that and left aside.
    """
    place = folder / dataset / folder_name(values)
    files = {seed: place / f"{seed}.json" for seed in seeds}
    failed: dict[int, str] = {}
    noted = noted_failures()
    for seed in seeds:
        run = Path("data", *place.parts[1:], str(seed))
        mine = {str(run), f"{run}_held_out", f"{run}_held_out_choice"}
        failed.update((seed, note["error"]) for note in noted if mine & set(note["arguments"]))
    found: dict[str, dict[int, tuple[Path, dict[str, float]]]] = {selection: {} for selection in SELECTIONS}
    foreign = None
    for seed, file in files.items():
        for path in (file, file.with_name(f"{seed}_held_out.json")):
            if not path.is_file() or seed in failed:
                continue
            content = read_json(path)
            for selection, metrics in content["metrics"].items():
                # What has not been trained is the same before and after.
                for rule in ("best_test_epoch", "last_epoch") if selection == "no_training" else (selection,):
                    found[rule][seed] = path, metrics
            if published:
                told, wanted = content.get("retrieved"), published.retrieved[dataset].model_dump()
                foreign = f"{dataset}: {told} in place of {wanted}" if told != wanted else foreign
    return Row(dataset, values, seeds, files, found, failed, foreign)


def difference(cell: Cell, printed: float | None) -> float | None:
    """Our mean less the printed number, in points."""
    return None if printed is None or not cell.values else 100 * cell.mean - printed


def verdict(cell: Cell, printed: float | None, of: PublishedTable, failed: bool) -> str:
    """What our number says of the printed one."""
    apart = difference(cell, printed)
    if not cell.values:
        return "failed" if failed else "not run"
    if apart is None:
        return "published unknown"
    if abs(apart) <= of.tolerance + of.error + 1e-9:
        return "reproduced: within the tolerance"
    if cell.half_width is not None and abs(apart) <= 100 * cell.half_width + of.error:
        return "reproduced: within the interval"
    return f"missed by {apart:+.2f}"
