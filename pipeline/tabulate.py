"""Stage: the table of a grid of runs, from their metrics files to metrics/tables, and printed.

Writes NAME.md, NAME.tex, NAME.csv and NAME.json (the aggregate that `dvc metrics diff` compares). A cell is the mean
over seeds in percent with the half-width of its 95 % t-interval. Runs of the grid that have no metrics file are named;
files of runs that are not in the grid are ignored.
"""

import argparse
import csv
import io
import math
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

from pipeline.config import read_params
from pipeline.files import exit_with, read_json, write_json, write_text

SELECTIONS = {
    "best_test_epoch": "Best test epoch: weights chosen by Recall@1 on the test set, as the papers do",
    "last_epoch": "Last epoch: the same runs, chosen without a look at the test set",
}
RAW_PIXELS = "raw_pixels"
NO_TRAINING = "no_training"


@dataclass(frozen=True)
class Cell:
    """One metric of one row: `values`, fractions, one a run, and the metrics files they come from."""

    values: list[float]
    files: list[Path]

    @property
    def mean(self) -> float:
        """Mean over the runs."""
        return statistics.fmean(self.values)

    @property
    def half_width(self) -> float | None:
        """Half-width of the 95 % t-interval of the mean; None for a single run."""
        n = len(self.values)
        if n < 2:
            return None
        return float(stdtrit(n - 1, 0.975)) * statistics.stdev(self.values) / math.sqrt(n)

    def text(self, plus_minus: str) -> str:
        """In percent: the mean, and the half-width where there is one."""
        if not self.values:
            return "not run"
        half = self.half_width
        return f"{100 * self.mean:.2f}" + (f" {plus_minus} {100 * half:.2f}" if half is not None else "")


def column_names(recall_at: list[int]) -> dict[str, str]:
    """The table's columns: key in the metrics files -> heading."""
    recalls = {f"recall@{k}": f"Recall@{k}" for k in recall_at}
    return recalls | {"map@r": "MAP@R", "nmi_arithmetic": "NMI"}


def collect(folder: Path, row: str, selection: str, seeds: list[int], columns: list[str]) -> dict[str, Cell]:
    """The cells of one row under one selection rule, of those of its runs that have a metrics file."""
    files = [folder / row / f"{seed}.json" for seed in seeds]
    found: dict[Path, dict[str, Any]] = {file: read_json(file)["metrics"] for file in files if file.is_file()}
    return {column: Cell([metrics[selection][column] for metrics in found.values()], list(found)) for column in columns}


def markdown(title: str, headings: list[str], blocks: dict[str, dict[str, list[str]]]) -> str:
    """A page with one table a selection rule."""
    lines = [f"# {title}", ""]
    for heading, rows in blocks.items():
        # Padded, so that the same text reads well in a terminal.
        table = [["", *headings], *([name, *cells] for name, cells in rows.items())]
        widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
        padded = [[text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in table]
        padded.insert(1, ["-" * width for width in widths])
        lines += [f"**{heading}.**", "", *("| " + " | ".join(line) + " |" for line in padded), ""]
    return "\n".join(lines)


def latex(headings: list[str], blocks: dict[str, dict[str, list[str]]]) -> str:
    """A booktabs tabular with one block a selection rule."""
    columns = len(headings) + 1
    lines = [f"\\begin{{tabular}}{{l{'c' * len(headings)}}}", "\\toprule", " & ".join(["", *headings]) + r" \\"]
    for heading, rows in blocks.items():
        lines += ["\\midrule", f"\\multicolumn{{{columns}}}{{l}}{{{heading}}}" + r" \\"]
        lines += [" & ".join([name.replace("_", r"\_"), *cells]) + r" \\" for name, cells in rows.items()]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def long_rows(selection: str, row: str, cells: dict[str, Cell]) -> list[list[Any]]:
    """Lines of the CSV: one a metric."""
    return [
        [row, selection, metric, cell.mean, cell.half_width, len(cell.values), " ".join(map(str, cell.files))]
        for metric, cell in cells.items()
        if cell.values
    ]


def aggregate(cells: dict[str, Cell]) -> dict[str, dict[str, float]]:
    """What `dvc metrics diff` compares, of one row: mean, half-width and number of runs by metric."""
    return {
        metric: {
            "mean": round(cell.mean, 6),
            **({} if cell.half_width is None else {"half_width": round(cell.half_width, 6)}),
            "n": len(cell.values),
        }
        for metric, cell in cells.items()
        if cell.values
    }


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tabulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the file of the table's grid")
    parser.add_argument("--runs", type=Path, required=True, help="folder of metrics files: <loss>/<seed>.json")
    parser.add_argument("--out", type=Path, required=True, help="the table, less its ending: metrics/tables/glyphs")
    arguments = parser.parse_args()

    params = read_params(arguments.params)
    grid, out = params.tables["glyphs"], arguments.out
    columns = column_names(params.recipes[grid.datasets[0]].recall_at)
    seeds = {RAW_PIXELS: [0], **dict.fromkeys(map(str, grid.rows["loss"]), grid.seeds)}
    table = {
        selection: {
            row: collect(arguments.runs, row, NO_TRAINING if row == RAW_PIXELS else selection, wanted, list(columns))
            for row, wanted in seeds.items()
        }
        for selection in SELECTIONS
    }

    def blocks(plus_minus: str) -> dict[str, dict[str, list[str]]]:
        return {
            SELECTIONS[selection]: {
                row: [cell.text(plus_minus) for cell in cells.values()] for row, cells in rows.items()
            }
            for selection, rows in table.items()
        }

    page = markdown(
        f"{grid.datasets[0]}: retrieval among unseen classes, in percent", list(columns.values()), blocks("±")
    )
    page += f"\nMean ± half-width of the 95 % t-interval over {len(grid.seeds)} seeds; {RAW_PIXELS}: one measurement.\n"
    files = {row: {seed: arguments.runs / row / f"{seed}.json" for seed in wanted} for row, wanted in seeds.items()}
    not_run = [f"{row}/{seed}" for row, of in files.items() for seed, file in of.items() if not file.is_file()]
    if not_run:
        page += f"\nNot run: {', '.join(not_run)}.\n"
    print(page)
    page += "\nThe metrics and the provenance of every run, by seed:\n\n"
    for row, of in files.items():
        links = (f"[{seed}]({os.path.relpath(file, out.parent)})" for seed, file in of.items())
        page += f"- {row}: {' '.join(links)}\n"

    lines = [
        line for selection, rows in table.items() for row, of in rows.items() for line in long_rows(selection, row, of)
    ]
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(["row", "selection", "metric", "mean", "half_width", "n", "runs"])
    writer.writerows(lines)
    write_text(out.with_suffix(".md"), page)
    write_text(out.with_suffix(".tex"), latex(list(columns.values()), blocks(r"$\pm$")))
    write_text(out.with_suffix(".csv"), content.getvalue())
    write_json(
        out.with_suffix(".json"),
        {row: {selection: aggregate(table[selection][row]) for selection in SELECTIONS} for row in seeds},
    )


if __name__ == "__main__":
    exit_with(main)
