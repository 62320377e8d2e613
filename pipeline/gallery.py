"""Write the gallery of a single run as a page: its worst, best and random queries with their nearest images, its
confused classes, and images with equal bytes but different labels.

RUN is a run's metrics file, such as metrics/runs/default/glyphs/glyphs/proxy_an/0.json or a file that
`pipeline.evaluate` wrote, or a folder under data/queries.
"""

import argparse
from pathlib import Path

from pipeline.base.command import exit_with
from pipeline.base.files import BadInputError, check_output
from pipeline.reports.pages import foreign_page, write_gallery
from pipeline.runs import store
from pipeline.runs.record import METRICS, RECORD, MetricsRecord, check_files, read_record


def queries_of(run: Path) -> tuple[Path, MetricsRecord]:
    """The queries.npz of the evaluation that RUN names, and the evaluation's record. Raises `BadInputError` if there is
    none."""
    if run.is_dir() and (run / RECORD).is_file():
        raise BadInputError(
            f"{run} is the folder of a training: evaluate it (`python -m pipeline.evaluate {run} --out metrics.json`) "
            "and name the metrics file"
        )
    record = read_record(run / METRICS if run.is_dir() else run, MetricsRecord)
    beside = run if run.is_dir() else store.folder(record.key)
    if "queries.npz" not in record.files:
        raise BadInputError(f"{run}: this evaluation kept no queries.npz: name another run")
    check_files(beside, record.files)
    return beside / "queries.npz", record


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.gallery", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run's metrics file, or its folder under data/queries")
    parser.add_argument("--out", type=Path, default=Path("gallery.html"), help="the page (default: gallery.html)")
    parser.add_argument("--count", type=int, default=20, help="queries of each kind (default: 20)")
    words = parser.parse_args()
    if words.count < 1:
        raise BadInputError(f"--count is {words.count}: give 1 or more")
    if words.out.suffix != ".html":
        raise BadInputError(f"--out is {words.out}: name a file that ends in .html")
    check_output("--out", words.out, foreign_page, is_file=True)
    queries, record = queries_of(words.run)
    write_gallery(queries, record.dataset, str(words.run), words.count, words.out)
    print(f"look at {words.out}")


if __name__ == "__main__":
    exit_with(main)
