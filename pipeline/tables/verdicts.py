"""Verdicts on printed numbers, as text (`pipeline.statistics.verdicts`, docs/verdicts.md)."""

from dataclasses import dataclass

from pipeline.statistics import verdicts as statistics
from pipeline.tables.published import PublishedTable
from pipeline.tables.rows import Cell, Row, is_extra
from pipeline.tables.spreads import Pools

SIGNS = {
    "consistent": ("✓", "good"),
    "differs": ("✗", "bad"),
    "cannot say": ("≈", "unknown"),
    "failed": ("!", "bad"),
    "published unknown": ("?", "unknown"),
    "not measured": ("?", "unknown"),
    "not run": ("○", "unknown"),
    "REHEARSAL": ("R", "bad"),
}
"""Kind of a verdict -> its sign and the name of its colour."""

JUDGED = ("consistent", "differs", "cannot say")
RULE = "best_test_epoch"
"""The rule that chose the weights whose numbers are judged, as the papers do."""


@dataclass(frozen=True)
class Verdict:
    """A verdict on a printed number: its kind, a key of `SIGNS`, more words on it, and what it is worth."""

    kind: str
    more: str = ""
    worth: statistics.Verdict | None = None

    @property
    def text(self) -> str:
        """The whole verdict."""
        return f"{self.kind}{self.more}"


def difference(cell: Cell, printed: float | None) -> float | None:
    """Our mean minus the printed number, in points; None if there is no run or no printed number."""
    return None if printed is None or not cell.values else 100 * cell.mean - printed


def judged(row: Row, metric: str, table: PublishedTable | None, pools: Pools) -> Verdict | None:
    """The verdict on what was printed for a metric of a row; None if the table added the row, so that nothing was
    printed for it."""
    if table is None:
        return None
    if row.foreign:
        return Verdict("REHEARSAL")
    if is_extra(row):
        return None
    cell, printed = row.cell(RULE, metric), table.printed(row.key).get(metric)
    apart = difference(cell, printed)
    if not cell.values:
        return Verdict("not measured" if row.found[RULE] else "failed" if row.failures else "not run")
    if apart is None:
        return Verdict("published unknown")
    assert pools.stated is not None, "a published.yaml with printed numbers states a spread"
    n, spread, limit = len(cell.values), pools.of(row, RULE, metric), table.limits[row.dataset][metric]
    if repeated := table.repeated(row.key, metric):
        worth = statistics.compare(100 * cell.mean, n, spread, repeated, limit)
    else:
        worth = statistics.judge(apart, n, spread, pools.stated, limit, table.error)
    more = {"consistent": "", "differs": f" by {apart:+.2f}", "cannot say": _why(worth, n, limit)}[worth.word]
    return Verdict(worth.word, more, worth)


def _why(worth: statistics.Verdict, n: int, limit: float) -> str:
    """Why nothing can be said."""
    if worth.half_width <= limit:
        return ": further apart than the stated spread explains"
    if worth.needed is None:
        return ": no number of seeds can"
    return f": {worth.needed} seeds could" if worth.needed > n else ": more rows with several seeds could"
