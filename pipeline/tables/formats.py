"""Tables as LaTeX, CSV and JSON."""

import csv
import io
from typing import Any

from pipeline.tables.pages import (
    COMPARED,
    REHEARSAL,
    by_selection,
    comparison,
    complete,
    heading,
    judged,
    ranking_lines,
    ranking_selection,
)
from pipeline.tables.published import PublishedTable
from pipeline.tables.ranking import ranked
from pipeline.tables.rows import PEEKING, SELECTIONS, Cell, Row, difference, is_extra

HEADLINE = {"recall@1": "Recall@1", "map@r": "MAP@R"}
"""The metrics of a row that `dvc metrics show` and `dvc metrics diff` list -> their headings."""

REHEARSED = " (REHEARSAL)"


def _lacking(rows: list[Row]) -> str | None:
    planned = sum(len(row.runs) for row in rows)
    lacking = sum(len(row.missing) + len(row.failures) + len(row.outdated) for row in rows)
    return f"{planned - lacking} of {planned} planned runs" if lacking else None


def latex(
    axes: list[str], datasets: list[str], rows: list[Row], metrics: list[str], layout: str, table: PublishedTable | None
) -> str:
    """A booktabs tabular with one block for each selection rule, or for each dataset."""
    blocks: dict[str, list[list[str]]]
    if layout == "ranked":
        selection, blocks, head = ranking_selection(rows), {}, ["", "Recall@1"]
        for dataset in datasets:
            whole = complete([row for row in rows if row.dataset == dataset], selection)
            if whole:
                head, *blocks[dataset] = ranking_lines(ranked(whole, selection), selection, r"$\pm$")
    elif table is None:
        head = ["", *map(heading, metrics)]
        blocks = by_selection(rows, metrics, r"$\pm$")
    else:
        head = [*axes, *COMPARED]
        blocks = {
            dataset: [line for _, line in comparison([row for row in rows if row.dataset == dataset], table, r"$\pm$")]
            for dataset in datasets
        }
    lacking = _lacking(rows)
    if lacking:
        blocks = {lacking: [], **blocks}
    if any(row.foreign for row in rows):
        blocks = {REHEARSAL: [], **blocks}
    lines = [f"\\begin{{tabular}}{{l{'c' * (len(head) - 1)}}}", "\\toprule", _tex(head)]
    for title, block in blocks.items():
        lines += ["\\midrule", f"\\multicolumn{{{len(head)}}}{{l}}{{{title}}}" + r" \\", *map(_tex, block)]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _tex(line: list[str]) -> str:
    return " & ".join(text.replace("_", r"\_").replace("–", "--") for text in line) + r" \\"


def comma_separated(rows: list[Row], metrics: list[str], table: PublishedTable | None) -> str:
    """CSV with one line for each row, selection rule and metric that was run or printed."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    head = "dataset row selection metric mean half_width n planned published difference verdict runs"
    writer.writerow(head.split())
    for row in rows:
        printed = table.rows.get(row.key, {}) if table else {}
        for rule in SELECTIONS:
            for metric in dict.fromkeys([*metrics, *printed]):
                cell, value = row.cell(rule, metric), printed.get(metric)
                if not cell.values and (rule != "best_test_epoch" or metric not in printed):
                    continue
                said = judged(row, cell, value, table).replace("–", "") if table else ""
                numbers = [cell.mean, cell.half_width] if cell.values else [None, None]
                line = [
                    *numbers,
                    len(cell.values),
                    cell.planned,
                    value,
                    difference(cell, value),
                    "REHEARSAL" if row.foreign else said,
                ]
                writer.writerow([row.dataset, row.name, rule, metric, *line, " ".join(map(str, cell.files))])
    return content.getvalue()


def learning_curves(tables: dict[str, list[Row]]) -> str:
    """CSV with the loss, and Recall@1 if it was evaluated, of every run and epoch. `dvc plots` draws it."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(["table", "dataset", "row", "run", "epoch", "loss", "recall@1"])
    for name, rows in tables.items():
        for row in rows:
            for run, history in row.learning:
                for line in history:
                    where = [name, row.dataset, row.name, run.place.name]
                    writer.writerow([*where, line["epoch"], line["loss"], line.get("recall@1")])
    return content.getvalue()


def numbers(cell: Cell) -> dict[str, float | int]:
    """A cell's mean, its half-width if there is one, both as fractions, and its number of runs. `planned` is added if
    the number of planned runs differs."""
    half = {} if cell.half_width is None else {"half_width": round(cell.half_width, 6)}
    planned = {} if len(cell.values) == cell.planned else {"planned": cell.planned}
    return {"mean": round(cell.mean, 6), **half, "n": len(cell.values), **planned}


def aggregate(rows: list[Row], metrics: list[str], layout: str) -> dict[str, Any]:
    """All numbers of a table: mean, half-width and number of runs by dataset, row, selection rule and metric. A ranked
    table also has the tests."""
    found: dict[str, Any] = {"REHEARSAL": REHEARSAL} if any(row.foreign for row in rows) else {}
    for row in rows:
        cells = {rule: {metric: row.cell(rule, metric) for metric in metrics} for rule in SELECTIONS}
        cells |= {name: {"recall@1": row.peeking(rule)} for name, rule in PEEKING.items() if not is_extra(row)}
        found.setdefault(row.dataset, {})[row.name] = {
            rule: {metric: numbers(cell) for metric, cell in by_metric.items() if cell.values}
            for rule, by_metric in cells.items()
            if any(cell.values for cell in by_metric.values())
        }
    if layout == "ranked":
        selection = ranking_selection(rows)
        for dataset in {row.dataset for row in rows}:
            whole = complete([row for row in rows if row.dataset == dataset], selection)
            for place in ranked(whole, selection) if whole else []:
                if place.difference is not None:
                    tests = {} if place.p is None else {"p": place.p, "p_holm": place.p_holm}
                    found[dataset][place.row.name]["less_the_best"] = numbers(place.difference) | tests
    return found


def headline(row: Row) -> dict[str, float]:
    """Recall@1 and MAP@R of a row, as means over its runs in percent, by a selection rule that does not use the test
    set."""
    for rule in ("last_epoch", "held_out", "held_out_classes"):
        cells = {name: row.cell(rule, metric) for metric, name in HEADLINE.items()}
        if cells["Recall@1"].values:
            mark = REHEARSED if row.foreign else ""
            return {f"{name}{mark}": round(100 * cell.mean, 3) for name, cell in cells.items() if cell.values}
    return {}


def is_headline(content: Any) -> bool:
    """Whether the content of a JSON file is a headline, which may be replaced or removed."""
    names = {f"{name}{mark}" for name in HEADLINE.values() for mark in ("", REHEARSED)}
    return isinstance(content, dict) and content.keys() <= names
