"""Stage: write the report of a grid: metrics/reports/<grid>/index.html, a page in one file that loads nothing else.

It shows the grid's tables, each cell with its runs; intervals, learning curves, galleries, a map of the test images,
costs, and what was not reproduced. metrics/reports/index.html, which links to all existing reports, is also written;
without GRID only this page is written. The .md tables hold the same numbers.
"""

import argparse

from pipeline.base.command import exit_with
from pipeline.reports.pages import write_overview, write_report
from pipeline.runs.grid import known_grids


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", nargs="?", help="default, or a folder of papers/, such as proxygml")
    grid = parser.parse_args().grid
    page = write_report(grid) if grid else None
    print(f"look at {page or write_overview(known_grids())}")
    if page:
        write_overview(known_grids())


if __name__ == "__main__":
    exit_with(main)
