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
from collections.abc import Iterable
from pathlib import Path

from pipeline.base.command import exit_with
from pipeline.base.files import read_json, write_json, write_text
from pipeline.tables import claim_lines, formats
from pipeline.tables.grid import GridContent, read_content
from pipeline.tables.model import TableModel


def write_table(table: TableModel) -> None:
    """Write one table in each format, and print it."""
    out = Path("metrics/tables") / table.grid / table.name
    lines = formats.page(table)
    print("\n".join(lines))
    if table.published and table.published.chart:
        # Imported here, because starting without matplotlib is faster and most tables have no chart.
        from pipeline.tables.charts import sweep

        sweep(out.with_suffix(".svg"), table.settings, table.rows, table.published)
        lines += [f"![ours and the paper's]({out.stem}.svg)", ""]
    write_text(out.with_suffix(".md"), "\n".join([*lines, *formats.links(table.rows, out.parent), ""]))
    write_text(out.with_suffix(".tex"), formats.latex(table))
    write_text(out.with_suffix(".csv"), formats.comma_separated(table))
    write_json(out.with_suffix(".json"), formats.aggregate(table))


def write_claims(content: GridContent, grid: str) -> None:
    """Write what the runs say to the grid's claims, if it has any, as .md and .json, and print it."""
    if content.findings:
        out = Path("metrics/tables") / grid / "claims"
        lines = [
            f"# {formats.markdown(content.published.paper if content.published else f'The claims of the grid {grid}')}",
            "",
        ]
        for block in content.claims:
            lines += formats.block_lines(block)
        print("\n".join(lines))
        lines.append(f"All that is known of each claim: [{out.stem}.json]({out.stem}.json).")
        write_text(out.with_suffix(".md"), "\n".join([*lines, ""]))
        write_json(out.with_suffix(".json"), claim_lines.aggregate(content.findings, content.rule))


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
    write_claims(content, grid)
    for table in tables:
        write_table(table)
    tidy(Path("metrics/tables") / grid, {table.name for table in tables})
    write_headlines(Path("metrics/headlines") / grid, tables)
    write_text(Path("metrics/curves") / f"{grid}.csv", formats.learning_curves(tables))
    sys.stdout.flush()


if __name__ == "__main__":
    exit_with(main)
