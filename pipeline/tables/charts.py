"""Charts of a paper's sweeps, ours over theirs, as SVG: the same runs give the same bytes."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

from pipeline.base.config import Table
from pipeline.base.files import whole
from pipeline.tables.published import PublishedTable
from pipeline.tables.rows import Row


def sweep(path: Path, table: Table, rows: list[Row], of: PublishedTable) -> None:
    """Recall@1 over the axis that `of.chart` names, one panel a dataset and one colour a combination of the other axes:
    the printed numbers dashed and hollow, our means full, with their intervals."""
    place = list(table.rows).index(of.chart or "")
    ticks = table.rows[of.chart or ""]
    with matplotlib.rc_context(
        {
            "svg.hashsalt": "sweep",
            "svg.fonttype": "none",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        figure, panels = pyplot.subplots(1, len(table.datasets), figsize=(7.5 * len(table.datasets), 4), squeeze=False)
        for panel, dataset in zip(panels[0], table.datasets, strict=True):
            lines: dict[tuple[Any, ...], list[Row]] = {}
            for row in rows:
                if row.dataset == dataset:
                    lines.setdefault(row.values[:place] + row.values[place + 1 :], []).append(row)
            for number, (others, members) in enumerate(lines.items()):
                named = ", ".join(
                    f"{axis} {value}" for axis, value in zip(_without(table.rows, place), others, strict=True)
                )
                colour = f"C{number}"
                printed = [
                    (ticks.index(row.values[place]), value)
                    for row in members
                    if (value := of.rows.get(row.key, {}).get("recall@1")) is not None
                ]
                if printed:
                    style = {"linestyle": "--", "marker": "o", "markersize": 5, "markerfacecolor": "none", "alpha": 0.6}
                    panel.plot(*zip(*printed, strict=True), color=colour, label=f"{named} published".strip(), **style)
                ours = [
                    (ticks.index(row.values[place]), 100 * cell.mean, 100 * (cell.half_width or 0))
                    for row in members
                    if (cell := row.cell("best_test_epoch", "recall@1")).values
                ]
                if ours:
                    x, y, error = zip(*ours, strict=True)
                    panel.errorbar(
                        x, y, error, color=colour, marker="s", markersize=4, capsize=2, label=f"{named} ours".strip()
                    )
            panel.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
            panel.set(xlabel=of.chart, ylabel="Recall@1, percent, best test epoch", title=dataset)
            if panel.get_legend_handles_labels()[0]:
                panel.legend(fontsize=7)
        if any(row.foreign for row in rows):
            figure.text(0.5, 0.5, "REHEARSAL", ha="center", va="center", size=48, color="red", alpha=0.4, rotation=20)
        figure.tight_layout()
        with whole(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def _without(axes: dict[str, Any], place: int) -> list[str]:
    return [axis for number, axis in enumerate(axes) if number != place]
