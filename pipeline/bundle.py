"""Write the results of a grid as one archive to hand on: GRID.zip, with RO-Crate 1.1 metadata.

It holds settings, metrics and keys of all runs that are done, who made them, tables, the report page, printed numbers
and claims, what the queries found, the locked packages and the licences; with --weights also the weights. Repositories
such as Zenodo and WorkflowHub read its metadata, and `python -m pipeline.verify GRID.zip` checks it in another clone of
this project. The same results give the same bytes.
"""

import argparse
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.base.command import exit_with
from pipeline.base.files import BadInputError, check_output, sha256, whole, write_text
from pipeline.bundles import contents, opened
from pipeline.bundles.checked import check_grid
from pipeline.reports.pages import REPORTS, overview, report
from pipeline.reports.runs import ShownGrid


def _ours(path: Path) -> Path | None:
    """`path`, unless it is a bundle: a `files.Foreign`."""
    try:
        with opened.bundle(path):
            return None
    except BadInputError:
        return path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.bundle", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", help="default, or a folder of papers/, such as proxygml")
    parser.add_argument("--weights", action="store_true", help="also the weights of its runs")
    parser.add_argument("--out", type=Path, help="the archive to write; data/bundles/GRID.zip if not given")
    words = parser.parse_args()
    out = words.out or Path("data/bundles") / f"{words.grid}.zip"
    if out.suffix != ".zip":
        raise BadInputError(f"--out {out}: name a file that ends in .zip")
    check_output("--out", out, _ours, is_file=True)
    files = contents.files_of(words.grid, words.weights)
    grid = ShownGrid(words.grid)
    place = REPORTS / words.grid / "index.html"
    with TemporaryDirectory() as name:
        for path, text in ((place, report(grid, place.parent)), (REPORTS / "index.html", overview([grid]))):
            files[path.as_posix()] = Path(name) / path.parent.name
            write_text(files[path.as_posix()], text)
        files = dict(sorted(files.items()))
        with whole(out) as temporary:
            contents.write(
                temporary, contents.crate(words.grid, grid.paper or f"Results of the grid {grid.name}", files), files
            )
            _check(temporary, words.grid)
    print(f"{out}: {len(files)} files, {out.stat().st_size / 1e6:.1f} MB, SHA-256 {sha256(out)}")


def _check(bundle: Path, grid: str) -> None:
    """Raise `BadInputError` if the bundle would not pass its own check, such as if the tables are of other runs."""
    with opened.bundle(bundle) as (folder, hashes, problems), chdir(folder):
        if found := problems + check_grid(grid, hashes).problems:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise BadInputError(
                f"{grid} is not ready to be handed on: {'; '.join(found[:3])}{more}: make its tables anew "
                f"(`python -m pipeline.tabulate {grid}`)"
            )


if __name__ == "__main__":
    exit_with(main)
