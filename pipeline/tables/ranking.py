"""Rankings of rows. Each row is tested against the best one by pairs of runs with the same seed.

Runs with the same seed share initial weights and the order of images, so differences are taken seed by seed. The test
is a two-sided paired t-test of Recall@1, with p-values corrected by Holm's method for the number of comparisons.
"""

from dataclasses import dataclass

from pipeline.tables.rows import Cell, Row

RANKED_BY = "recall@1"


def holm(p_values: list[float]) -> list[float]:
    """Holm's corrected p-values (Scandinavian Journal of Statistics 6, 1979), which are valid for all comparisons
    together."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, row in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[row]))
        corrected[row] = largest
    return corrected


def paired(best: list[float], other: list[float]) -> float:
    """The two-sided p-value of a paired t-test of at least two pairs; 1 if all pairs are equal."""
    from scipy.stats import ttest_rel  # here, because its import takes a second and most tables have no ranking

    return 1.0 if best == other else float(ttest_rel(best, other).pvalue)


@dataclass(frozen=True)
class Ranked:
    """A row's place in a ranking. `difference` is its Recall@1 minus the best row's, by seed; None for the best row.
    `p`, and `p_holm`, which is corrected for the number of tested rows, are None if no test was made."""

    row: Row
    difference: Cell | None
    p: float | None
    p_holm: float | None


def ranked(rows: list[Row], selection: str) -> list[Ranked]:
    """Rows that have all their runs, sorted with the best first, each tested against the best. With one seed no row is
    tested."""
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
