"""The layout `rows`, in the order of the rows. Without printed numbers it has a block for each rule that chose the
weights and a column for each metric. With printed numbers it has a block for each dataset and a line for each printed
number, with ours beside it."""

from pipeline.tables.columns import RANKED_BY, heading
from pipeline.tables.layouts import Content, not_better
from pipeline.tables.model import Block, Entry, Line, Number
from pipeline.tables.notes import judgement
from pipeline.tables.published import PublishedTable
from pipeline.tables.rows import SELECTIONS, Row, is_extra, rules_of
from pipeline.tables.verdicts import RULE, difference, judged

COMPARES = True

COMPARED = [
    "metric",
    "published",
    "best test epoch",
    "n",
    "last epoch",
    "held-out",
    "difference",
    "verdict",
    "would have seen",
]


def blocks(content: Content) -> list[Block]:
    """The blocks of the table."""
    if content.published is None:
        return [_by_rule(content, rule) for rule in rules_of(content.rows)]
    return [_compared(content, content.published, dataset) for dataset in content.settings.datasets]


def _by_rule(content: Content, rule: str) -> Block:
    several = len({row.dataset for row in content.rows}) > 1
    lines = []
    for row in content.rows:
        numbers = [Number(row, rule, metric) for metric in content.columns]
        entries = [Entry(number.cell.text(none=_lacking(row, rule)), number) for number in numbers]
        lines.append(Line([Entry(row.key if several else row.name), *entries], row))
    head = ["", *map(heading, content.columns)]
    return Block(SELECTIONS[rule], head, lines, notes=not_better(content.rows, rule))


def _lacking(row: Row, rule: str) -> str:
    """The text of a cell without a number. A row that a table added does not have every rule, and not every run has
    every metric."""
    return "–" if row.found[rule] or (is_extra(row) and any(row.found.values())) else "not run"


def _compared(content: Content, published: PublishedTable, dataset: str) -> Block:
    rows = content.of(dataset)
    lines = []
    for row in rows:
        printed = published.printed(row.key) or {RANKED_BY: None}
        for metric in dict.fromkeys([*printed, *(content.settings.columns or ())]):
            lines.append(_comparison(row, metric, printed.get(metric), content))
    notes = [*not_better(rows, RULE), *judgement(rows, published, content.pools)]
    return Block("", [*content.settings.rows, *COMPARED], lines, dataset, notes)


def _comparison(row: Row, metric: str, printed: float | None, content: Content) -> Line:
    rules = ("best_test_epoch", "last_epoch", "held_out")
    best, last, held_out = (Number(row, rule, metric, printed) for rule in rules)
    counted, apart = len(best.cell.values), difference(best.cell, printed)
    count = str(counted) if counted == row.planned else f"{counted} of {row.planned}"
    none = _lacking(row, RULE)
    said = judged(row, metric, content.published, content.pools)
    entries = [
        *map(Entry, row.values),
        Entry(heading(metric)),
        Entry("–" if printed is None else f"{printed:.1f}"),
        Entry(best.cell.text(none=none), best),
        Entry(count if counted or none == "not run" else none),
        Entry(last.cell.text(none=none), last),
        Entry(held_out.cell.text(none="–"), held_out),
        Entry("–" if apart is None else f"{apart:+.2f}"),
        Entry(said.text, best, said) if said else Entry("–"),
        Entry(f"{said.worth.sees:.1f}" if said and said.worth else "–"),
    ]
    return Line(entries, row)
