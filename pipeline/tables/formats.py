"""The formats of a table: Markdown, LaTeX, CSV and JSON of one model. The report's page is the fourth, HTML."""

import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.tables.columns import HEADLINE
from pipeline.tables.model import Block, TableModel
from pipeline.tables.rows import PEEKING, Row, is_extra
from pipeline.tables.verdicts import difference

REHEARSED = " (REHEARSAL)"


def one_line(text: str) -> str:
    """`text` without line breaks and other signs that cannot be printed."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def markdown(text: str) -> str:
    """`text` as one line of Markdown that shows it as it is: without HTML, links, emphasis and further columns."""
    return re.sub(r"[\\`*\[\]>|&~]|<(?!\d)|(?<!\w)_|_(?!\w)|^[-+#=](?=\W)", r"\\\g<0>", one_line(text))


def padded(table: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, padded so that it is easy to read in a terminal. The first line of `table` is the
    head."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = [[text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in table]
    lines.insert(1, ["-" * width for width in widths])
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def block_lines(block: Block) -> list[str]:
    """The lines of a block in Markdown."""
    lines = [f"## {markdown(block.dataset)}", ""] if block.dataset else []
    lines += [f"**{markdown(block.title)}.**", ""] if block.title else []
    if block.lines:
        table = [block.head, *([entry.text for entry in line.entries] for line in block.lines)]
        lines += padded([[markdown(text) for text in line] for line in table])
    return lines + [line for note in block.notes for line in (markdown(note), "")]


def page(table: TableModel) -> list[str]:
    """The lines of a table's page in Markdown, without links to its runs."""
    lines = [f"# {markdown(table.title)}", ""]
    if table.warnings:
        warning, *others = map(markdown, table.warnings)
        lines += [f"**{warning}**", "", *(f"- {other}" for other in others), ""]
    lines += [line for mixture in table.mixtures for line in (f"**{markdown(mixture)}**", "")]
    for block in [*table.results, *table.curves, *table.printed, *([table.peeking] if table.peeking else [])]:
        lines += block_lines(block)
    for note in table.notes:
        lines += [markdown(note), ""]
    lines += [*(f"- {markdown(remark)}" for remark in table.remarks), *([""] if table.remarks else [])]
    lines += [f"**{table.complete}**", ""] if table.complete else []
    for lack in table.lacks:
        lines += [markdown(lack), ""]
    return lines


def links(rows: list[Row], folder: Path) -> list[str]:
    """The lines of a page in `folder` with links to the metrics files of the runs that it shows."""
    lines = [
        "The metrics of every run, by seed. `metrics/made` says under the same names when and where it was made.",
        "",
    ]
    for row in rows:
        shown = [run for run in row.runs if f"{row.key}/{run.place.name}" not in row.lacking]
        if shown:
            files = ", ".join(f"[{run.place.name}]({os.path.relpath(run.metrics, folder)})" for run in shown)
            lines.append(f"- {row.key}: {files}")
    return lines if len(lines) > 2 else []


TEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "_&%$#{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{sign: f"${sign}$" for sign in "<>|"},
        "±": r"$\pm$",
        "–": "--",
        "…": r"\dots{}",
    }
)
"""Signs that mean something else in LaTeX, or that its oldest encoding lacks -> how they are written."""


def _tex(line: Sequence[str]) -> str:
    """Texts as the cells of a line in LaTeX."""
    return " & ".join(one_line(text).translate(TEX) for text in line)


def latex(table: TableModel) -> str:
    """A booktabs tabular of the table's results, with its sentences as comments below."""
    width = max([1, *(len(block.head) for block in table.results if block.lines)])
    lines = [f"\\begin{{tabular}}{{l{'c' * (width - 1)}}}", "\\toprule"]
    head: list[str] = []

    def wide(text: str) -> str:
        return f"\\multicolumn{{{width}}}{{l}}{{{_tex([text])}}}" + r" \\"

    above = [*table.warnings, *table.mixtures, *filter(None, [table.complete])]
    for block in table.results:
        if block.lines and block.head != head:
            head = block.head
            lines += [_tex([*head, *[""] * (width - len(head))]) + r" \\"]
            lines += [line for text in above for line in ("\\midrule", wide(text))]
            above = []
        lines += ["\\midrule", wide(block.full_title)]
        for line in block.lines:
            cells = [entry.text for entry in line.entries]
            lines.append(_tex([*cells, *[""] * (width - len(cells))]) + r" \\")
    lines += [wide(text) for text in above]
    notes = [note for block in table.results for note in block.notes] + table.notes + table.remarks + table.lacks
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", *(f"% {one_line(note)}" for note in notes), ""])


HEAD = [
    *("dataset", "row", "selection", "metric", "mean", "half_width", "n", "planned", "published", "difference"),
    *("verdict", "runs"),
]
"""The columns of a table as CSV."""


def comma_separated(table: TableModel) -> str:
    """CSV with one line for each number that was run or printed."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(HEAD)
    for number in table.numbers:
        row, cell = number.row, number.cell
        values = [cell.mean, cell.half_width] if cell.values else [None, None]
        said = "REHEARSAL" if row.foreign else number.verdict.text if number.verdict else ""
        judged = [number.printed, difference(cell, number.printed), said]
        counts = [len(cell.values), cell.planned]
        files = " ".join(map(str, cell.files))
        writer.writerow([row.dataset, row.name, number.rule, number.metric, *values, *counts, *judged, files])
    return content.getvalue()


def aggregate(table: TableModel) -> dict[str, Any]:
    """All numbers of a table by dataset, row, selection rule and metric, what peeking adds, and the layout's tests."""
    found: dict[str, Any] = {"REHEARSAL": table.warnings[0]} if table.warnings else {}
    for row in table.rows:
        found.setdefault(row.dataset, {})[row.name] = {}
    for number in table.numbers:
        if number.cell.values:
            rules = found[number.row.dataset][number.row.name]
            rules.setdefault(number.rule, {})[number.metric] = number.cell.numbers()
    for row in table.rows:
        for name, rule in PEEKING.items():
            if row.peeking(rule).values and not is_extra(row):
                found[row.dataset][row.name][name] = {"recall@1": row.peeking(rule).numbers()}
    for line in (line for block in [*table.results, *table.chance] for line in block.lines):
        if line.row:
            found[line.row.dataset][line.row.name] |= line.tests
    return found


def learning_curves(tables: list[TableModel]) -> str:
    """CSV with the loss, and Recall@1 if it was evaluated, of every run and epoch. `dvc plots` draws it."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(["table", "dataset", "row", "run", "epoch", "loss", "recall@1"])
    for table in tables:
        for row in table.rows:
            for run, history in row.learning:
                for line in history:
                    where = [table.name, row.dataset, row.name, run.place.name]
                    writer.writerow([*where, line["epoch"], line["loss"], line.get("recall@1")])
    return content.getvalue()


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
