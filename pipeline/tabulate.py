"""Stage: make the tables of a grid from its runs' metrics files, write them to metrics/tables/<grid>, and print them.

Each table is written as .md, .tex, .csv and .json, and also as .svg if the paper has a chart. metrics/headlines/<grid>
gets one small file for each row, which `dvc metrics show` and `dvc metrics diff` list. metrics/curves/<grid>.csv gets
the loss and Recall@1 of every run by epoch, which `dvc plots` draws.

A number is the mean over seeds in percent, with the half-width of its 95 % t-interval. If the grid has a
published.yaml, each line compares a printed number with ours. Runs of the grid without a metrics file are named, with
their error if they failed. Files of runs that are not in the grid are ignored.
"""

import argparse
import sys
from pathlib import Path

from pipeline.base.config import Params, Table
from pipeline.base.files import exit_with, read_json, write_json, write_text
from pipeline.runs.grid import grid_runs
from pipeline.tables import formats
from pipeline.tables.grid import metrics_of, read_grid
from pipeline.tables.pages import (
    COMPARED,
    REHEARSAL,
    by_selection,
    comparison,
    curves,
    heading,
    links,
    numbers_mean,
    others,
    padded,
    peeking,
    rank,
    references,
    verdicts_explained,
    what_lacks,
)
from pipeline.tables.published import Published, PublishedTable
from pipeline.tables.rows import Row, collect_table


def page(title: str, table: Table, rows: list[Row], metrics: list[str], published: PublishedTable | None) -> list[str]:
    """The lines of the table's page in Markdown, without other networks' printed numbers and without links to runs."""
    lines = [f"# {title}", ""]
    if any(row.foreign for row in rows):
        lines += [f"**{REHEARSAL}**", "", *sorted({f"- {row.foreign}" for row in rows if row.foreign}), ""]
    if table.layout == "ranked":
        return [*lines, *rank(rows, table.datasets), *what_lacks(rows)]
    if published is None:
        for rule, block in by_selection(rows, metrics, "±").items():
            lines += [f"**{rule}.**", "", *padded([["", *map(heading, metrics)], *block])]
    else:
        for dataset in table.datasets:
            compared = comparison([row for row in rows if row.dataset == dataset], published, "±")
            lines += [f"## {dataset}", "", *padded([[*table.rows, *COMPARED], *(line for _, line in compared)])]
        lines += curves(rows, published)
        lines += references(published, table.datasets)
    lines += peeking(rows)
    lines += [numbers_mean(rows), ""]
    if published:
        lines += verdicts_explained(published)
    return [*lines, *what_lacks(rows)]


def tabulate(grid: str, name: str, params: Params, published: Published | None) -> list[Row]:
    """Write one table, print it, and return its rows."""
    table = params.tables[name]
    own = published.tables.get(name) if published else None
    rows = collect_table(grid_runs(grid, table=name), published)
    metrics = metrics_of(params, table, own is not None)
    out = Path("metrics/tables") / grid / name
    lines = page(own.title if own else table.title or f"{grid}: {name}", table, rows, metrics, own)
    if table.layout == "ranked" and published and "loss" in table.rows:
        lines += others(published, table.datasets, rows)
    print("\n".join(lines))
    if own and own.chart:
        # Imported here, because starting without matplotlib is faster and most tables have no chart.
        from pipeline.tables.charts import sweep

        sweep(out.with_suffix(".svg"), table, rows, own)
        lines += ["", f"![ours and the paper's]({out.stem}.svg)", ""]
    write_text(out.with_suffix(".md"), "\n".join([*lines, *links(rows, out.parent), ""]))
    axes = list(table.rows)
    write_text(out.with_suffix(".tex"), formats.latex(axes, table.datasets, rows, metrics, table.layout, own))
    write_text(out.with_suffix(".csv"), formats.comma_separated(rows, metrics, own))
    write_json(out.with_suffix(".json"), formats.aggregate(rows, metrics, table.layout))
    return rows


def write_headlines(folder: Path, tables: dict[str, list[Row]]) -> None:
    """Write one file for each row that has been run: <table>/<dataset>/<row>.json. Files of rows that no longer exist
    are removed."""
    written = {}
    for name, rows in tables.items():
        for row in rows:
            if headline := formats.headline(row):
                written[folder / name / row.dataset / f"{row.name}.json"] = headline
    for path in set(folder.glob("*/*/*.json")) - written.keys():
        if formats.is_headline(read_json(path)):
            path.unlink()
    for path, headline in written.items():
        write_json(path, headline)
    folder.mkdir(parents=True, exist_ok=True)


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tabulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", help="default, or a folder of papers/, such as proxygml")
    grid = parser.parse_args().grid
    params, published = read_grid(grid)
    tables = {name: tabulate(grid, name, params, published) for name in params.tables}
    write_headlines(Path("metrics/headlines") / grid, tables)
    write_text(Path("metrics/curves") / f"{grid}.csv", formats.learning_curves(tables))
    sys.stdout.flush()


if __name__ == "__main__":
    exit_with(main)
