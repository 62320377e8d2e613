"""Stage: one table of a grid of runs, from their metrics files to metrics/tables, and printed.

Writes NAME.md, NAME.tex, NAME.csv and NAME.json (the aggregate that `dvc metrics diff` compares), and NAME.svg where
the paper has a chart. A number is the mean over seeds in percent with the half-width of its 95 % t-interval. With
--published each line compares one printed number with ours. Runs of the grid that have no metrics file are named, those
that failed with their error; files of runs that are not in the grid are ignored.
"""

import argparse
import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.base.config import Table, read_params, read_table
from pipeline.base.files import exit_with, write_json, write_text
from pipeline.tables.published import Published, PublishedTable, check_table, read_published
from pipeline.tables.rows import PEEKING, SELECTIONS, Row, collect, difference, grid, verdict

RAW_PIXELS = "raw_pixels"
HEADINGS = {"map@r": "MAP@R", "r_precision": "R-Precision", "nmi_arithmetic": "NMI", "nmi_geometric": "NMI, geometric"}
REHEARSAL = "REHEARSAL: these runs did not search among the published images. Their numbers mean nothing."


def heading(metric: str) -> str:
    """A metric's name in tables."""
    return HEADINGS.get(metric, metric.replace("recall", "Recall"))


def padded(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose first line is its head, padded so that it reads well in a terminal."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = [[text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in table]
    lines.insert(1, ["-" * width for width in widths])
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def by_selection(rows: list[Row], metrics: list[str], plus_minus: str) -> dict[str, list[list[str]]]:
    """Without printed numbers: one block a selection rule that was run, one line a row, one column a metric."""
    run = [rule for rule in SELECTIONS if rule != "held_out" or any(row.found[rule] for row in rows)]
    return {
        SELECTIONS[rule]: [[row.name, *(row.cell(rule, metric).text(plus_minus) for metric in metrics)] for row in rows]
        for rule in run
    }


def comparison(rows: list[Row], of: PublishedTable, plus_minus: str) -> list[tuple[Row, list[str]]]:
    """With printed numbers: one line each."""
    lines = []
    for row in rows:
        for metric, printed in of.rows.get(row.key, {"recall@1": None}).items():
            best, last, held_out = (row.cell(rule, metric) for rule in SELECTIONS)
            apart, count = difference(best, printed), len(best.values)
            line = [
                heading(metric),
                "–" if printed is None else f"{printed:.1f}",
                best.text(plus_minus),
                str(count) if count == len(row.seeds) else f"{count} of {len(row.seeds)}",
                last.text(plus_minus),
                held_out.text(plus_minus, none="–"),
                "–" if apart is None else f"{apart:+.2f}",
                REHEARSAL.split(":")[0] if row.foreign else verdict(best, printed, of, bool(row.failures)),
            ]
            lines.append((row, [*map(str, row.values), *line]))
    return lines


COMPARED = ["", "published", "best test epoch", "n", "last epoch", "held-out", "difference", "verdict"]


def page(title: str, table: Table, rows: list[Row], metrics: list[str], of: PublishedTable | None) -> list[str]:
    """The table in Markdown, less the links to its runs."""
    lines = [f"# {title}", ""]
    if any(row.foreign for row in rows):
        lines += [f"**{REHEARSAL}**", "", *sorted({f"- {row.foreign}" for row in rows if row.foreign}), ""]
    if of is None:
        for told, block in by_selection(rows, metrics, "±").items():
            lines += [f"**{told}.**", "", *padded([["", *map(heading, metrics)], *block])]
    else:
        for dataset in table.datasets:
            compared = comparison([row for row in rows if row.dataset == dataset], of, "±")
            lines += [f"## {dataset}", "", *padded([[*table.rows, *COMPARED], *(line for _, line in compared)])]
        lines += references(of, table.datasets)
    lines += peeking(rows)
    lines += [spread(rows, len(table.seeds)), ""]
    if of:
        error = f", read off it with an error of {of.error} points" if of.error else ""
        lines += [f"Published: {of.source} ({of.kind}{error}). –: {of.unknown or 'not run'}.", ""]
        allowed = f"{of.tolerance} points" + (f" and the error of reading, {of.error}" if of.error else "")
        within = "in the interval of ours at the best test epoch, or no further from our mean than"
        within = within if _most_runs(rows) > 1 else "no further from ours at the best test epoch than"
        lines += [
            f"Reproduced: the printed number is {within} {allowed}: {of.tolerance_reason}.",
            "",
            *(f"- {note}" for note in of.notes),
            *([""] if of.notes else []),
        ]
    for row in rows:
        lines += [f"Failed: {row.key}/{seed}: {error}" for seed, error in row.failures.items()]
    not_run = [f"{row.key}/{seed}" for row in rows for seed in row.missing]
    lines += [f"Not run: {', '.join(not_run)}."] if not_run else []
    return lines


def _most_runs(rows: list[Row]) -> int:
    return max((len(found) for row in rows if row.name != RAW_PIXELS for found in row.found.values()), default=0)


def spread(rows: list[Row], seeds: int) -> str:
    """What the numbers are over so many planned seeds, in a sentence: of one run there is no interval."""
    most = _most_runs(rows)
    if most < 2:
        return "Each number is of one run: of its spread over seeds nothing is known." if most else "Nothing was run."
    single = any(len(found) == 1 for row in rows if row.name != RAW_PIXELS for found in row.found.values())
    told = "; without ±: one run" if single else ""
    told += f"; {RAW_PIXELS}: one measurement" if any(row.name == RAW_PIXELS for row in rows) else ""
    return f"Mean ± half-width of the 95 % t-interval over {seeds} seeds{told}."


def references(of: PublishedTable, datasets: list[str]) -> list[str]:
    """The other methods' rows as the paper prints them."""
    lines = []
    for dataset in datasets:
        rows = [row for row in of.references if dataset in row.numbers]
        if rows:
            metrics = list(rows[0].numbers[dataset])
            told = [
                [row.method, row.network, *("–" if value is None else f"{value:.1f}" for value in values.values())]
                for row in rows
                for values in [row.numbers[dataset]]
            ]
            lines += [f"**Other methods on {dataset}, as printed; not run here.**", ""]
            lines += padded([["method", "network", *map(heading, metrics)], *told])
    return lines


def peeking(rows: list[Row]) -> list[str]:
    """What choosing the epoch on the test set adds, where there are seeds to tell it from chance."""
    rows = [row for row in rows if len(row.peeking("last_epoch").values) > 1]
    if not rows:
        return []
    told = [[row.key, *(row.peeking(of).text("±", "+", "–") for of in PEEKING.values())] for row in rows]
    head = ["Recall@1, best test epoch", "less last epoch", "less held-out"]
    return [
        "**Peeking: what choosing the epoch on the test set adds, in points, paired by seed.**",
        "",
        *padded([head, *told]),
    ]


def links(rows: list[Row], out: Path) -> list[str]:
    """Where the metrics and the provenance of every run are."""
    lines = ["The metrics and the provenance of every run, by seed:", ""]
    for row in rows:
        files = {file for found in row.found.values() for file, _ in found.values()} | set(row.files.values())
        told = (f"[{file.stem}]({os.path.relpath(file, out.parent)})" for file in sorted(files))
        lines.append(f"- {row.key}: {' '.join(told)}")
    return lines


def latex(table: Table, rows: list[Row], metrics: list[str], of: PublishedTable | None) -> str:
    """A booktabs tabular with one block a selection rule, or a dataset."""
    if of is None:
        head = ["", *map(heading, metrics)]
        blocks = by_selection(rows, metrics, r"$\pm$")
    else:
        head = [*table.rows, *COMPARED]
        blocks = {
            dataset: [line for _, line in comparison([row for row in rows if row.dataset == dataset], of, r"$\pm$")]
            for dataset in table.datasets
        }
    if any(row.foreign for row in rows):
        blocks = {REHEARSAL: [], **blocks}
    lines = [f"\\begin{{tabular}}{{l{'c' * (len(head) - 1)}}}", "\\toprule", _tex(head)]
    for told, block in blocks.items():
        lines += ["\\midrule", f"\\multicolumn{{{len(head)}}}{{l}}{{{told}}}" + r" \\", *map(_tex, block)]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _tex(line: list[str]) -> str:
    return " & ".join(text.replace("_", r"\_").replace("–", "--") for text in line) + r" \\"


def comma_separated(rows: list[Row], metrics: list[str], of: PublishedTable | None) -> str:
    """One line a row, selection rule and metric that was run or printed."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    head = "dataset row selection metric mean half_width n published difference verdict runs"
    writer.writerow(head.split())
    for row in rows:
        printed = of.rows.get(row.key, {}) if of else {}
        for rule in SELECTIONS:
            for metric in dict.fromkeys([*metrics, *printed]):
                cell, value = row.cell(rule, metric), printed.get(metric)
                if not cell.values and (rule != "best_test_epoch" or metric not in printed):
                    continue
                said = verdict(cell, value, of, bool(row.failures)) if of else ""
                numbers = [cell.mean, cell.half_width] if cell.values else [None, None]
                told = [
                    *numbers,
                    len(cell.values),
                    value,
                    difference(cell, value),
                    "REHEARSAL" if row.foreign else said,
                ]
                writer.writerow([row.dataset, row.name, rule, metric, *told, " ".join(map(str, cell.files))])
    return content.getvalue()


def aggregate(rows: list[Row], metrics: list[str]) -> dict[str, Any]:
    """What `dvc metrics diff` compares: mean, half-width and number of runs by dataset, row, selection rule, metric."""
    found: dict[str, Any] = {"REHEARSAL": REHEARSAL} if any(row.foreign for row in rows) else {}
    for row in rows:
        cells = {rule: {metric: row.cell(rule, metric) for metric in metrics} for rule in SELECTIONS}
        cells |= {name: {"recall@1": row.peeking(of)} for name, of in PEEKING.items()}
        found.setdefault(row.dataset, {})[row.name] = {
            rule: {
                metric: {
                    "mean": round(cell.mean, 6),
                    **({} if cell.half_width is None else {"half_width": round(cell.half_width, 6)}),
                    "n": len(cell.values),
                }
                for metric, cell in of.items()
                if cell.values
            }
            for rule, of in cells.items()
            if rule in ("best_test_epoch", "last_epoch") or any(cell.values for cell in of.values())
        }
    return found


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tabulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the file of the table's grid")
    parser.add_argument("--table", required=True, help="an entry of tables there, and of --published")
    parser.add_argument("--runs", type=Path, required=True, help="folder of metrics: <dataset>/<row>/<seed>.json")
    parser.add_argument("--out", type=Path, required=True, help="the table, less its ending: metrics/tables/glyphs")
    parser.add_argument("--published", type=Path, help="a published.yaml, to compare with")
    parser.add_argument("--raw-pixels", action="store_true", help=f"a first row {RAW_PIXELS}, of one measurement")
    arguments = parser.parse_args()

    params, out = read_params(arguments.params), arguments.out
    table = read_table(arguments.params, arguments.table)
    published: Published | None = read_published(arguments.published) if arguments.published else None
    if published:
        check_table(arguments.published, published, arguments.table, table)
    of = published.tables[arguments.table] if published else None
    first = [(dataset, (RAW_PIXELS,), [0]) for dataset in table.datasets] if arguments.raw_pixels else []
    wanted = [*first, *((dataset, values, table.seeds) for dataset, values in grid(table))]
    rows = [collect(arguments.runs, *row, published) for row in wanted]
    recalls = [f"recall@{k}" for dataset in table.datasets for k in params.recipes[dataset].recall_at]
    metrics = [*dict.fromkeys(recalls), "map@r", *(["r_precision", "nmi_geometric"] if of else []), "nmi_arithmetic"]
    title = of.title if of else f"{', '.join(table.datasets)}: retrieval among unseen classes, in percent"

    lines = page(title, table, rows, metrics, of)
    print("\n".join(lines))
    if of and of.chart:
        # Where it is used: starting without matplotlib is faster, and most tables have no chart.
        from pipeline.tables.charts import sweep

        sweep(out.with_suffix(".svg"), table, rows, of)
        lines += ["", f"![ours and the paper's]({out.stem}.svg)"]
    write_text(out.with_suffix(".md"), "\n".join([*lines, "", *links(rows, out), ""]))
    write_text(out.with_suffix(".tex"), latex(table, rows, metrics, of))
    write_text(out.with_suffix(".csv"), comma_separated(rows, metrics, of))
    write_json(out.with_suffix(".json"), aggregate(rows, metrics))


if __name__ == "__main__":
    exit_with(main)
