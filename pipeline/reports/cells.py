"""Tables for pages: the cells of metrics/tables, each with the runs behind it."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.reports.runs import ShownGrid, ShownTable
from pipeline.tables.pages import (
    COMPARED,
    RANKED_METRICS,
    by_selection,
    comparison,
    complete,
    heading,
    ranking_lines,
    ranking_selection,
    reference_blocks,
    rules_run,
)
from pipeline.tables.ranking import ranked
from pipeline.tables.rows import SELECTIONS, Row

SIGNS = {
    "reproduced": ("✓", "good"),
    "missed": ("✗", "bad"),
    "failed": ("!", "bad"),
    "published unknown": ("?", "unknown"),
    "not run": ("○", "unknown"),
    "REHEARSAL": ("R", "bad"),
}
"""The beginning of a verdict -> its sign and the name of its colour."""

COLUMNS = {"best test epoch": "best_test_epoch", "last epoch": "last_epoch", "held-out": "held_out"}
"""Column of a comparison -> the rule that chose its weights."""


@dataclass(frozen=True)
class SeedLine:
    """The line on one run that is shown when a cell is opened."""

    seed: str
    value: str
    epoch: str
    revision: str
    data: str
    machine: str
    seconds: str
    link: str


@dataclass(frozen=True)
class PageCell:
    """A cell of a page's table."""

    text: str
    seeds: list[SeedLine] = field(default_factory=list)
    sign: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Block:
    """A part of a table: its head and its lines. The first cell of a line names the row."""

    title: str
    head: list[str]
    lines: list[list[PageCell]]


def seed_lines(grid: ShownGrid, row: Row, rule: str, metric: str, folder: Path) -> list[SeedLine]:
    """The runs behind a cell, with links from a page in `folder`."""
    lines = []
    for seed, (path, metrics) in sorted(row.found[rule].items()):
        if metric not in metrics:
            continue
        run = grid.runs[path]
        of = run.record.metrics.get(rule) or run.record.metrics.get("no_training") or {}
        data = "".join(value[:8] for name, value in run.record.data.items() if name.endswith("index.csv"))
        lines.append(
            SeedLine(
                seed=str(seed),
                value=f"{100 * metrics[metric]:.2f}",
                epoch=str(of.get("epoch", "–")),
                revision=run.revision,
                data=data or "not noted",
                machine=run.machine,
                seconds="time not noted" if run.seconds is None else f"{run.seconds:,.0f} s",
                link=os.path.relpath(path, folder),
            )
        )
    return lines


def verdict_cell(text: str) -> PageCell:
    """A verdict with its sign and colour."""
    sign, kind = next((of for start, of in SIGNS.items() if text.startswith(start)), ("", ""))
    return PageCell(text, sign=sign, kind=kind)


def blocks(grid: ShownGrid, table: ShownTable, folder: Path) -> list[Block]:
    """The blocks of a table, as in metrics/tables, with links from a page in `folder`."""
    if table.table.layout == "ranked":
        found = _ranked(grid, table, folder)
    else:
        found = _compared(grid, table, folder) if table.published else _by_rule(grid, table, folder)
    for printed in table.printed_by_others:
        source = "" if printed is table.published else f". {printed.title}; {printed.source} ({printed.kind})"
        for title, (head, *lines) in reference_blocks(printed, table.table.datasets).items():
            found.append(Block(f"{title}{source}", head, [[PageCell(text) for text in line] for line in lines]))
    return found


def _by_rule(grid: ShownGrid, table: ShownTable, folder: Path) -> list[Block]:
    found = []
    texts = by_selection(table.rows, table.metrics, "±")
    for rule in rules_run(table.rows):
        lines = []
        for row, (name, *values) in zip(table.rows, texts[SELECTIONS[rule]], strict=True):
            cells = [
                PageCell(text, seed_lines(grid, row, rule, metric, folder))
                for text, metric in zip(values, table.metrics, strict=True)
            ]
            lines.append([PageCell(name), *cells])
        found.append(Block(f"{SELECTIONS[rule]}.", ["", *map(heading, table.metrics)], lines))
    return found


def _compared(grid: ShownGrid, table: ShownTable, folder: Path) -> list[Block]:
    assert table.published is not None
    rules = {COMPARED.index(column): rule for column, rule in COLUMNS.items()}
    found = []
    for dataset in table.table.datasets:
        rows = [row for row in table.rows if row.dataset == dataset]
        metrics = [metric for row in rows for metric in table.published.rows.get(row.key, {"recall@1": None})]
        lines = []
        for (row, line), metric in zip(comparison(rows, table.published, "±"), metrics, strict=True):
            axes = len(row.values)
            cells = [PageCell(text) for text in line]
            for place, rule in rules.items():
                cells[axes + place] = PageCell(line[axes + place], seed_lines(grid, row, rule, metric, folder))
            # A row that is not a row of the grid, such as raw pixels, has only its name.
            blank = [PageCell("")] * (len(table.table.rows) - axes)
            lines.append([*cells[:axes], *blank, *cells[axes:-1], verdict_cell(line[-1])])
        found.append(Block(dataset, [*table.table.rows, *COMPARED], lines))
    return found


def _ranked(grid: ShownGrid, table: ShownTable, folder: Path) -> list[Block]:
    found, rule = [], ranking_selection(table.rows)
    for dataset in table.table.datasets:
        whole = complete([row for row in table.rows if row.dataset == dataset], rule)
        title = f"{dataset}. {SELECTIONS[rule]}."
        if not whole:
            found.append(Block(title, ["No row has all its runs yet."], []))
            continue
        places = ranked(whole, rule)
        head, *texts = ranking_lines(places, rule, "±")
        metrics = [metric for metric in RANKED_METRICS if heading(metric) in head]
        lines = [
            [
                PageCell(text, seed_lines(grid, place.row, rule, metrics[column - 1], folder))
                if 1 <= column <= len(metrics)
                else PageCell(text)
                for column, text in enumerate(line)
            ]
            for place, line in zip(places, texts, strict=True)
        ]
        found.append(Block(title, head, lines))
    return found
