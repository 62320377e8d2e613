"""Rankings of rows. Each row is tested against the best one by Dunnett's test over seeds.

There is one variance for all rows that do not differ grossly. Runs with the same seed share initial weights and the
order of images. The test takes them for independent, which makes it a little too careful.
"""

from dataclasses import dataclass

from pipeline.statistics.contrasts import Estimate, against_best
from pipeline.tables.columns import RANKED_BY
from pipeline.tables.rows import Row
from pipeline.tables.spreads import points


@dataclass(frozen=True)
class Ranked:
    """A row's place in a ranking. `difference` is its mean Recall@1 minus the best row's, in points, None for the best
    row. `test` has the same with its interval and p-value, which hold for all rows together; None if no test was
    made."""

    row: Row
    difference: float | None
    test: Estimate | None


def ranked(rows: list[Row], selection: str) -> list[Ranked]:
    """Rows that have all their runs, sorted with the best first, each tested against the best. With one seed no row is
    tested."""
    order = sorted(rows, key=lambda row: -row.cell(selection, RANKED_BY).mean)
    means = [100 * row.cell(selection, RANKED_BY).mean for row in order]
    tests = against_best([points(row, selection, RANKED_BY) for row in order])
    return [
        Ranked(row, mean - means[0] if place else None, test)
        for place, (row, mean, test) in enumerate(zip(order, means, tests, strict=True))
    ]
