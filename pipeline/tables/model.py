"""The model of a table: what it shows, whatever the format. A layout makes its blocks, and `formats` writes them.

All text is plain, with Unicode signs such as ± and –. Each format escapes what it must.
"""

from dataclasses import dataclass, field
from typing import Any

from pipeline.base.config import Table
from pipeline.tables.published import PublishedTable
from pipeline.tables.rows import Cell, Row
from pipeline.tables.searches import Searched
from pipeline.tables.verdicts import Verdict


@dataclass(frozen=True)
class Number:
    """A metric of a row under the rule that chose the weights, and what was printed for it, in percent."""

    row: Row
    rule: str
    metric: str
    printed: float | None = None
    verdict: Verdict | None = None

    @property
    def cell(self) -> Cell:
        """The values over the seeds."""
        return self.row.cell(self.rule, self.metric)


@dataclass(frozen=True)
class Entry:
    """What stands in one place of a table: a text, the number that it shows, and the verdict that it gives."""

    text: str
    number: Number | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Line:
    """A line of a table. The first entry names it. `tests` are further results on its row, by their names in the .json
    file."""

    entries: list[Entry]
    row: Row | None = None
    tests: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Block:
    """A part of a table: title, head, lines, and sentences below them. Blocks of one dataset share a heading, if it is
    given."""

    title: str
    head: list[str]
    lines: list[Line]
    dataset: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def full_title(self) -> str:
        """The dataset, if it is given, and the title."""
        return ". ".join(filter(None, (self.dataset, self.title)))


@dataclass(frozen=True)
class TableModel:
    """A table, with all that every format shows of it."""

    grid: str
    name: str
    title: str
    settings: Table
    rows: list[Row]
    numbers: list[Number]
    """All numbers, also those that no block shows: for .csv and .json."""
    published: PublishedTable | None
    results: list[Block]
    """What was measured, as the layout arranges it."""
    curves: list[Block]
    """The paper's Recall@1 by epoch, with ours beside it."""
    printed: list[Block]
    """What others printed. They are not run here."""
    peeking: Block | None
    chance: list[Block]
    """Chance over seeds beside chance over test classes, for .json and the report."""
    warnings: list[str]
    """What has to be known before any number is read."""
    mixtures: list[str]
    """Warnings that a row, or a difference between rows, mixes GPUs."""
    notes: list[str]
    """What the numbers mean, and where the printed ones come from."""
    remarks: list[str]
    """What is known about reproducing the table."""
    complete: str
    """How many of the planned runs are in the table; empty if all are."""
    lacks: list[str]
    """Sentences on runs that are not in the table, or that were taken over from other code."""
    tries: list[Row] = field(default_factory=list)
    """The runs that only judge tries of a search, by try."""
    searches: list[Searched] = field(default_factory=list)
    """The search of each row, if the table has one."""

    @property
    def every(self) -> list[Row]:
        """The rows, and what judges tries."""
        return self.rows + self.tries

    @property
    def chart(self) -> str:
        """What its chart shows; empty if it has none."""
        if self.searches:
            return "held-out result by try, and the expected best of so many tries"
        return "ours and the paper's" if self.published and self.published.chart else ""

    @property
    def judged(self) -> list[tuple[Row, str, Verdict]]:
        """The row, the metric and the verdict of every comparison with a printed number."""
        entries = [entry for block in self.results for line in block.lines for entry in line.entries]
        return [
            (entry.number.row, entry.number.metric, entry.verdict)
            for entry in entries
            if entry.number is not None and entry.verdict is not None
        ]


def texts(*lines: list[str]) -> list[Line]:
    """Lines that have no numbers of ours."""
    return [Line([Entry(text) for text in line]) for line in lines]
