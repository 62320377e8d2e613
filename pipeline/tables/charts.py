"""Charts as SVG: ours over the points of a paper's sweep, and tries of a search. The same runs give the same bytes."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

from pipeline.base.config import Table
from pipeline.base.files import whole
from pipeline.tables.model import TableModel
from pipeline.tables.published import PublishedTable
from pipeline.tables.rows import Row, is_extra
from pipeline.tables.searches import Searched, expected_best

STYLE: Any = {
    "svg.hashsalt": "sweep",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def chart(path: Path, table: TableModel) -> None:
    """Write the chart of a table that has one to `path`."""
    if table.searches:
        tries(path, table.searches, table.settings)
    elif table.published is not None:
        sweep(path, table.settings, table.rows, table.published)


def tries(path: Path, of: list[Searched], table: Table) -> None:
    """Draw what the tries of each row gave on held-out classes, by their number, and beside it the expected best of so
    many tries (`searches.expected_best`), and write it to `path`. There are two panels for each dataset. A filled sign
    is the chosen try; tries that diverged are left out on the left, and count as 0 on the right."""
    with matplotlib.rc_context(STYLE):
        shape: Any = {"figsize": (11, 4 * len(table.datasets)), "squeeze": False, "layout": "constrained"}
        figure, panels = pyplot.subplots(len(table.datasets), 2, sharey="row", **shape)
        for (left, right), dataset in zip(panels, table.datasets, strict=True):
            members = [one for one in of if one.dataset == dataset]
            for place, one in enumerate(members):
                colour, style = f"C{place % 10}", ("-", "--", ":")[place // 10 % 3]
                shown = {number: 100 * mean for number, mean in one.trained.items()}
                left.plot([*shown], [*shown.values()], "o", color=colour, markerfacecolor="none", markersize=4)
                if one.chosen in shown:
                    left.plot(one.chosen, shown[one.chosen], "o", color=colour, markersize=6)
                best = [100 * value for value in expected_best([*one.means.values()])]
                right.plot(range(1, len(best) + 1), best, style, color=colour, label=one.name)
            results = [100 * mean for one in members for mean in one.trained.values()]
            if results:
                margin = 0.05 * (max(results) - min(results)) + 0.1
                left.set_ylim(min(results) - margin, max(results) + margin)
                right.legend(fontsize=7, ncols=2)
            left.set(
                xlabel="try; the first has the settings as they are", ylabel="Recall@1 on held-out classes, percent"
            )
            left.set_title(dataset, parse_math=False)
            right.set(xlabel="number of tries", title="expected best")
        with whole(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def sweep(path: Path, table: Table, rows: list[Row], of: PublishedTable) -> None:
    """Draw Recall@1 over the axis that `of.chart` names, and write the chart to `path`.

    There is one panel for each dataset and one colour for each combination of the other axes. Printed numbers are
    dashed and hollow; our means are filled, with 95 % t-intervals if there are several runs. A panel says how many of
    its points were not run. A point with fewer seeds than planned says how many it has.
    """
    place = list(table.rows).index(of.chart or "")
    ticks = [str(value) for value in table.rows[of.chart or ""]]
    with matplotlib.rc_context(STYLE):
        figure, panels = pyplot.subplots(1, len(table.datasets), figsize=(7.5 * len(table.datasets), 4), squeeze=False)
        for panel, dataset in zip(panels[0], table.datasets, strict=True):
            members = [row for row in rows if row.dataset == dataset and not is_extra(row)]
            lines: dict[tuple[Any, ...], list[Row]] = {}
            for row in members:
                lines.setdefault(row.values[:place] + row.values[place + 1 :], []).append(row)
            axes = [axis for number, axis in enumerate(table.rows) if number != place]
            for number, (others, line) in enumerate(lines.items()):
                named = ", ".join(f"{axis} {value}" for axis, value in zip(axes, others, strict=True))
                _draw(panel, [(ticks.index(row.values[place]), row) for row in line], of, named, f"C{number}")
            not_run = sum(not row.cell("best_test_epoch", "recall@1").values for row in members)
            if not_run:
                lacking = (
                    "nothing was run" if not_run == len(members) else f"{not_run} of {len(members)} points not run"
                )
                panel.text(0.99, 0.01, lacking, transform=panel.transAxes, ha="right", va="bottom", color="red")
            panel.set_xticks(range(len(ticks)), ticks)
            panel.set(xlabel=of.chart, ylabel="Recall@1, percent, best test epoch", title=dataset)
            if panel.get_legend_handles_labels()[0]:
                panel.legend(fontsize=7)
        if any(row.foreign for row in rows):
            figure.text(0.5, 0.5, "REHEARSAL", ha="center", va="center", size=48, color="red", alpha=0.4, rotation=20)
        figure.tight_layout()
        with whole(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def _draw(panel: Any, points: list[tuple[int, Row]], of: PublishedTable, named: str, colour: str) -> None:
    """Draw one line of a panel with the printed numbers and one with ours. `points` are places on the axis and their
    rows."""
    printed = [(x, value) for x, row in points if (value := of.printed(row.key).get("recall@1")) is not None]
    if printed:
        style = {"linestyle": "--", "marker": "o", "markersize": 5, "markerfacecolor": "none", "alpha": 0.6}
        panel.plot(*zip(*printed, strict=True), color=colour, label=f"{named} published".strip(), **style)
    ours = [(x, row, cell) for x, row in points if (cell := row.cell("best_test_epoch", "recall@1")).values]
    if not ours:
        return
    places, means = [x for x, _, _ in ours], [100 * cell.mean for _, _, cell in ours]
    label = f"{named} ours" + (", one run each" if all(len(cell.values) == 1 for _, _, cell in ours) else "")
    panel.plot(places, means, color=colour, marker="s", markersize=4, label=label.strip())
    known = [
        (x, mean, 100 * half)
        for x, mean, (_, _, cell) in zip(places, means, ours, strict=True)
        if (half := cell.half_width) is not None
    ]
    if known:
        panel.errorbar(*zip(*known, strict=True), color=colour, linestyle="none", capsize=2)
    for x, mean, (_, row, cell) in zip(places, means, ours, strict=True):
        if len(cell.values) < row.planned:
            lacking = f"n = {len(cell.values)} of {row.planned}"
            panel.annotate(lacking, (x, mean), textcoords="offset points", xytext=(3, 5), fontsize=6, color=colour)
