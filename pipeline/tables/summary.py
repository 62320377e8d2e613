"""What a table found, in sentences: its best row and by how much, and whether any row beats what needs no training."""

from pipeline.tables.columns import RANKED_BY
from pipeline.tables.layouts import not_better, rule_of
from pipeline.tables.model import TableModel
from pipeline.tables.ranking import ranked
from pipeline.tables.rows import Row, is_extra, protocol_of, ranking_rule

MOST_TESTED = 20
"""The most rows that are tested against the best. The rows of a sweep are read as a curve."""


def sentences(table: TableModel) -> list[str]:
    """The sentences on each dataset of a table of which a row has all its runs. Of a search the chosen rows count."""
    rule, found = ranking_rule(table.rows), []
    chosen = [id(one.best) for one in table.searches]
    for dataset in table.settings.datasets:
        rows = [row for row in table.rows if row.dataset == dataset]
        if chosen:
            rows = [row for row in rows if is_extra(row) or id(row) in chosen]
        whole = [row for row in rows if not is_extra(row) and 0 < len(row.found[rule]) == row.planned]
        if whole:
            found.append(_best(table, rows, whole, rule))
        found += not_better(rows, rule)
    return found


def _best(table: TableModel, rows: list[Row], whole: list[Row], rule: str) -> str:
    order = sorted(whole, key=lambda row: -row.cell(rule, RANKED_BY).mean)
    best, mean = order[0], order[0].cell(rule, RANKED_BY).mean
    apart = ""
    if len(order) > 1:
        apart = f", {100 * (mean - order[1].cell(rule, RANKED_BY).mean):.2f} above {order[1].name}"
        test = ranked(whole, rule)[1].test if len(whole) <= MOST_TESTED else None
        if test:
            chance = "more than chance over seeds explains" if test.high < 0 else "chance over seeds could explain it"
            apart += f" (95 % interval {-test.high:+.2f} to {-test.low:+.2f}: {chance})"
    for plain in rows:
        cell = plain.cell(rule_of(plain, rule), RANKED_BY)
        if protocol_of(plain).plain and cell.values and cell.mean < mean:
            apart += f", {100 * (mean - cell.mean):.2f} above {plain.name}"
    return (
        f"{best.dataset}, {table.name}: {best.name} is the best of {len(order)} rows with a Recall@1 of "
        f"{best.cell(rule, RANKED_BY).text()} ({rule.replace('_', ' ')}){apart}."
    )
