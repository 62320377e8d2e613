"""The search of a table: what its tries gave on held-out classes, and which one is chosen.

The expected best result of k tries is that of k draws, with replacement, from the tries that were made (Dodge et al.,
EMNLP 2019, arXiv 1909.03004, equation 4).
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.runs.grid import TRY, GridRun
from pipeline.runs.tried import best_try, result
from pipeline.tables.rows import Row

NEAR = 0.01
"""A try within this of the best one is near it."""


@dataclass(frozen=True)
class Searched:
    """The search of one row on one dataset: try -> the results on held-out classes, as fractions, one a fold, None if
    not known; and try -> what it changes. `first` and `best` are the rows of the first and of the chosen try; `best` is
    None while it is not known which one that is."""

    dataset: str
    name: str
    results: dict[int, list[float | None]]
    points: dict[int, dict[str, Any]]
    first: Row
    best: Row | None

    @property
    def chosen(self) -> int | None:
        """The number of the chosen try."""
        return best_try(self.results)

    @property
    def means(self) -> dict[int, float]:
        """Try -> its mean over folds, of the tries that have all results."""
        known = {number: [value for value in of if value is not None] for number, of in self.results.items()}
        return {number: statistics.fmean(of) for number, of in known.items() if len(of) == len(self.results[number])}

    @property
    def trained(self) -> dict[int, float]:
        """As `means`, without the tries whose training diverged in a fold."""
        return {number: mean for number, mean in self.means.items() if all(self.results[number])}

    @property
    def near(self) -> float:
        """The share of the known tries that are within a point of the best."""
        return sum(mean >= max(self.means.values()) - NEAR for mean in self.means.values()) / len(self.means)

    def numbers(self) -> dict[str, Any]:
        """All of it for the .json file."""
        tries = [
            {"changes": self.points[number], "held_out": [None if of is None else round(of, 6) for of in values]}
            for number, values in self.results.items()
        ]
        return {"chosen": self.chosen, "tries": tries}


def expected_best(results: Sequence[float]) -> list[float]:
    """The expected best of 1, 2, ... as many draws as there are results."""
    ordered, n = sorted(results), len(results)
    return [
        sum(value * (((i + 1) / n) ** k - (i / n) ** k) for i, value in enumerate(ordered)) for k in range(1, n + 1)
    ]


def searches(runs: list[GridRun], rows: list[Row]) -> list[Searched]:
    """The searches of a table, from its runs, and from `rows`, which hold the final runs."""
    by_key = {(row.dataset, row.name): row for row in rows}
    found = []
    for dataset, name in dict.fromkeys((run.run.dataset, run.searched) for run in runs if run.judged):
        tries: dict[int, list[GridRun]] = {}
        for run in runs:
            if run.judged and run.tried is not None and (run.run.dataset, run.searched) == (dataset, name):
                tries.setdefault(run.tried, []).append(run)
        results = {number: [result(run.run, run.metrics, run.error) for run in of] for number, of in tries.items()}
        points = {number: of[0].point for number, of in tries.items()}
        best = by_key.get((dataset, f"{name}{TRY}{best_try(results)}"))
        found.append(Searched(dataset, name, results, points, by_key[dataset, f"{name}{TRY}1"], best))
    return found
