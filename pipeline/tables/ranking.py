"""Rows ranked, and each tested against the best by the paired runs of their seeds.

Runs of one seed share initial weights and order of images, so differences are taken seed by seed: a paired t-test of
Recall@1, two-sided, its p-values corrected for the number of comparisons by Holm's method.
"""

from dataclasses import dataclass

from scipy.stats import ttest_rel

from pipeline.tables.rows import Cell, Row

RANKED_BY = "recall@1"


def holm(p_values: list[float]) -> list[float]:
    """Holm's p-values (Scandinavian Journal of Statistics 6, 1979), which hold for all comparisons at once."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, row in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[row]))
        corrected[row] = largest
    return corrected


def paired(best: list[float], other: list[float]) -> float:
    """The two-sided p-value of a paired t-test of at least two pairs; 1 where all pairs are equal."""
    return 1.0 if best == other else float(ttest_rel(best, other).pvalue)


@dataclass(frozen=True)
class Ranked:
    """A row's place in a ranking: `difference` is its Recall@1 less the best row's, by seed; `p`, and `p_holm`
    corrected for the number of rows tested, are None where no test was made."""

    row: Row
    difference: Cell | None
    p: float | None
    p_holm: float | None


def ranked(rows: list[Row], selection: str) -> list[Ranked]:
    """Rows that have all their runs, from the best down, each tested against the best; with one seed none is tested."""
    order = sorted(rows, key=lambda row: -row.cell(selection, RANKED_BY).mean)
    values = [[metrics[RANKED_BY] for _, metrics in row.found[selection].values()] for row in order]
    differences = [[one - best for one, best in zip(other, values[0], strict=True)] for other in values[1:]]
    tested = len(values[0]) > 1
    p = [paired(values[0], other) for other in values[1:]] if tested else []
    corrected = holm(p)
    places = [Ranked(order[0], None, None, None)]
    for number, row in enumerate(order[1:]):
        cell = Cell(differences[number], [], row.planned)
        found = (p[number], corrected[number]) if tested else (None, None)
        places.append(Ranked(row, cell, *found))
    return places
