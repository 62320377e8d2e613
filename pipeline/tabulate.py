"""Stage: make the tables of a grid from its runs' metrics files, write them to metrics/tables/<grid>, and print them.

Each table is written as .md, .tex, .csv and .json, and also as .svg if the paper has a chart or the table a search.
metrics/headlines/<grid> gets one small file for each row, which `dvc metrics show` and `dvc metrics diff` list.
metrics/curves/<grid>.csv gets the loss and Recall@1 of every run by epoch, which `dvc plots` draws.

A number is the mean over seeds in percent, with the half-width of its 95 % t-interval. If the grid has a
published.yaml, each line compares a printed number with ours. Runs of the grid without a metrics file are named, with
their error if they failed. Files of runs that are not in the grid are ignored.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from pipeline.base.command import exit_with
from pipeline.base.files import read_json, write_json, write_text
from pipeline.tables import formats, written
from pipeline.tables.grid import read_content
from pipeline.tables.model import TableModel


def write_table(table: TableModel) -> None:
    """Write one table in each format, and print it."""
    print("\n".join(formats.page(table)))
    if table.chart:
        # Imported here, because starting without matplotlib is faster and most tables have no chart.
        from pipeline.tables.charts import chart

        chart(written.place(table).with_suffix(".svg"), table)
    for path, text in written.table_texts(table).items():
        write_text(path, text)


def write_headlines(folder: Path, tables: list[TableModel]) -> None:
    """Write one file for each row that has been run: <table>/<dataset>/<row>.json. Files of rows that no longer exist
    are removed."""
    written = {}
    for table in tables:
        for row in table.rows:
            if headline := formats.headline(row):
                written[folder / table.name / row.dataset / f"{row.name}.json"] = headline
    for path in set(folder.glob("*/*/*.json")) - written.keys():
        if formats.is_headline(read_json(path)):
            path.unlink()
    for path, headline in written.items():
        write_json(path, headline)
    folder.mkdir(parents=True, exist_ok=True)


def tidy(folder: Path, tables: Iterable[str]) -> None:
    """Remove the files of tables that no longer exist. A table is known by the first line of its .csv."""
    for path in folder.glob("*.csv"):
        ours = path.read_text(encoding="utf-8", errors="replace").startswith(",".join(formats.HEAD))
        if ours and path.stem not in tables:
            for ending in (".md", ".tex", ".json", ".svg", ".csv"):
                path.with_suffix(ending).unlink(missing_ok=True)


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tabulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", help="default, or a folder of papers/, such as proxygml")
    grid = parser.parse_args().grid
    content = read_content(grid)
    tables = content.tables
    for path, text in written.claim_texts(grid, content).items():
        write_text(path, text)
    if content.findings:
        print("\n".join(written.claims_page(grid, content)))
    for table in tables:
        write_table(table)
    tidy(written.TABLES / grid, {table.name for table in tables})
    write_headlines(Path("metrics/headlines") / grid, tables)
    write_text(Path("metrics/curves") / f"{grid}.csv", formats.learning_curves(tables))
    sys.stdout.flush()


if __name__ == "__main__":
    exit_with(main)
