"""Figures of a report as data addresses, SVG for line drawings. The same runs give the same bytes.

The figures are narrow, so that they can be read on a telephone, and need no colour.
"""

import base64
import io
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure

from pipeline.reports.runs import ShownRun, rule_of
from pipeline.tables.charts import STYLE, chart
from pipeline.tables.model import TableModel
from pipeline.tables.rows import Cell, Row, is_extra

WIDTH = 4.8
"""The width of a figure, in inches of 96 pixels."""

INK, PAPERS, BAND = "#1f2937", "#b45309", "#d1d5db"


def data_address(kind: str, content: bytes) -> str:
    """A file's content as a data address. `kind` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def svg(figure: Figure) -> str:
    """A figure as a data address. The figure is closed."""
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return data_address("image/svg+xml", content.getvalue())


def dots(entries: Sequence[tuple[str, Cell, float | None]], label: str) -> str:
    """A figure with one line for each entry (name, our cell, the printed number in percent): a tick for each seed, the
    mean, the 95 % t-interval, and the printed number as a hollow diamond."""
    with matplotlib.rc_context(STYLE):
        figure, panel = pyplot.subplots(figsize=(WIDTH, 0.7 + 0.27 * len(entries)), layout="constrained")
        for place, (_, cell, printed) in enumerate(entries):
            values = [100 * value for value in cell.values]
            if values:
                panel.plot(values, [place] * len(values), "|", color=INK, markersize=8, alpha=0.6)
                panel.plot(100 * cell.mean, place, "o", color=INK, markersize=4.5)
            if cell.values and cell.half_width is not None:
                half = 100 * cell.half_width
                panel.plot([100 * cell.mean - half, 100 * cell.mean + half], [place, place], color=INK, linewidth=1.2)
            if printed is not None:
                panel.plot(printed, place + 0.25, "D", color=PAPERS, markerfacecolor="none", markersize=5)
        panel.set_yticks(range(len(entries)), [name for name, _, _ in entries], parse_math=False)
        panel.set_ylim(len(entries) - 0.4, -0.6)
        panel.grid(axis="x", color=BAND, linewidth=0.5)
        panel.set_axisbelow(True)
        panel.set_xlabel(label)
        return svg(figure)


def intervals(table: TableModel, dataset: str) -> str | None:
    """A figure with Recall@1 of the rows of a table on a dataset, and the printed numbers; None if there is neither."""
    entries, rule = [], rule_of(table)
    for row in table.rows:
        printed = table.published.printed(row.key).get("recall@1") if table.published else None
        cell = row.cell(rule, "recall@1")
        # Rows without training are left out. They may be so far away that differences of the others would not be seen.
        if row.dataset == dataset and not is_extra(row) and (cell.values or printed is not None):
            entries.append((row.name, cell, printed))
    return dots(entries, f"Recall@1, percent, {rule.replace('_', ' ')}") if entries else None


def peeking(rows: list[Row]) -> str:
    """A figure of what choosing the epoch on the test set adds to Recall@1 of each row, paired by seed."""
    return dots([(row.key, row.peeking("last_epoch"), None) for row in rows], "best test epoch less last epoch, points")


def chart_of(table: TableModel) -> str:
    """The chart of a table. It is the same as the file beside the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chart.svg"
        chart(path, table)
        return data_address("image/svg+xml", path.read_bytes())


def curves(
    rows: dict[str, list[ShownRun]], metric: str, label: str, printed: dict[str, dict[str, float]]
) -> str | None:
    """A figure of a metric by epoch, with one panel for each row: its runs as lines (dashed if not evaluated on the
    test set), the range of all rows' runs behind them, and printed numbers as hollow diamonds. None if no run has the
    metric."""
    lines = {name: [line for run in runs if (line := _line(run, metric))[1]] for name, runs in rows.items()}
    lines = {name: of_row for name, of_row in lines.items() if of_row}
    if not lines:
        return None
    factor = 100 if metric.startswith("recall") else 1
    columns = min(2 if len(lines) == 4 else 3, len(lines))
    height = math.ceil(len(lines) / columns)
    with matplotlib.rc_context(STYLE):
        figure, panels = pyplot.subplots(
            height,
            columns,
            figsize=(WIDTH, 0.5 + 1.15 * height),
            sharex=True,
            sharey=metric.startswith("recall"),
            squeeze=False,
            layout="constrained",
        )
        by_epoch: dict[int, list[float]] = {}
        for epochs, values, _ in (line for of_row in lines.values() for line in of_row):
            for epoch, value in zip(epochs, values, strict=True):
                by_epoch.setdefault(epoch, []).append(factor * value)
        places = sorted(by_epoch)
        for panel in panels.flat[len(lines) :]:
            panel.set_visible(False)
        for panel, (name, of_row) in zip(panels.flat, lines.items(), strict=False):
            if metric.startswith("recall"):
                ends = [min(by_epoch[epoch]) for epoch in places], [max(by_epoch[epoch]) for epoch in places]
                panel.fill_between(places, *ends, color=BAND, linewidth=0)
            for epochs, values, dashed in of_row:
                style = "--" if dashed else "-"
                mark = "." if len(epochs) < 8 else ""
                panel.plot(
                    epochs, factor * np.array(values), style, marker=mark, color=INK, linewidth=0.9, markersize=3
                )
            theirs = printed.get(name, {})
            panel.plot([*map(int, theirs)], [*theirs.values()], "D", color=PAPERS, markerfacecolor="none", markersize=4)
            panel.set_title(name, fontsize=8, parse_math=False)
        figure.supxlabel("epoch", fontsize=9)
        figure.supylabel(label, fontsize=9)
        return svg(figure)


def _line(run: ShownRun, metric: str) -> tuple[list[int], list[float], bool]:
    looks = [line for line in run.record.history if metric in line]
    return [int(line["epoch"]) for line in looks], [line[metric] for line in looks], run.run.run.protocol != "test"


def scatter(points: np.ndarray, labels: np.ndarray, names: dict[int, str]) -> str:
    """A map of points, float32 (images, 2), as a PNG picture, coloured by class. The names of classes are shown in the
    middle of their points if they are few and short."""
    figure: Any = Figure(figsize=(6.4, 6.4), dpi=100)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    panel = figure.add_axes((0, 0, 1, 1))
    panel.axis("off")
    classes, colours = np.unique(labels, return_inverse=True)
    # Neighbouring class numbers get different colours. There may be more classes than colours that people can tell
    # apart.
    hues = (colours * 0.618034) % 1
    panel.scatter(*points.T, c=hues, cmap="hsv", vmin=0, vmax=1, s=9, linewidths=0, alpha=0.75)
    short = all(len(names[label]) <= 12 and names[label].isascii() for label in classes)
    if len(classes) <= 40 and short:
        for label in classes:
            place = np.median(points[labels == label], axis=0)
            style = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
            panel.text(*place, names[label], ha="center", va="center", fontsize=9, bbox=style, parse_math=False)
    content = io.BytesIO()
    canvas.print_png(content, metadata={"Software": None})
    return data_address("image/png", _palette(content.getvalue()))


def _palette(content: bytes) -> bytes:
    """The same PNG picture with at most 64 colours."""
    from PIL import Image

    smaller = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").quantize(64).save(smaller, "PNG", optimize=True)
    return smaller.getvalue()
