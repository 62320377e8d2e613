"""Pages of a grid, of all grids, and of one run. Each is a single file that loads nothing else and runs no script."""

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.base.files import BadInputError, write_json, write_text
from pipeline.reports import figures
from pipeline.reports.cells import seed_lines
from pipeline.reports.galleries import Answer, Gallery, Picture, Thumbnails, gallery, two_labels
from pipeline.reports.maps import embedding_map
from pipeline.reports.runs import ShownGrid, ShownRun
from pipeline.reports.settings import settings
from pipeline.runs.grid import GridRun
from pipeline.runs.protocols import PROTOCOLS
from pipeline.tables import claim_lines, summary
from pipeline.tables.columns import heading
from pipeline.tables.model import TableModel
from pipeline.tables.rows import Row, is_extra
from pipeline.tables.verdicts import SIGNS

REPORTS = Path("metrics/reports")


def render(template: str, **content: Any) -> str:
    """A page made from a template of this package. All content is escaped."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(content)


@dataclass(frozen=True)
class DatasetLook:
    """What a report shows for a dataset's images: galleries, images with two labels, and a map."""

    dataset: str
    galleries: list[Gallery]
    twice: tuple[int, list[list[Picture]]]
    map: tuple[str, int] | None
    mapped: str
    problem: str = ""


def baseline_of(rows: list[tuple[float, Row, GridRun]]) -> tuple[float, Row, GridRun]:
    """The baseline among candidates, which are sorted with the best first: a row without training, otherwise the worst
    row."""
    return next((row for row in rows if PROTOCOLS[row[2].run.protocol].plain), rows[-1])


def look(grid: ShownGrid, dataset: str, stored: dict[str, str]) -> DatasetLook:
    """The galleries of the best row on a dataset and of the baseline (see `baseline_of`), and the map of the best row.
    Thumbnails are added to `stored`, by their id."""
    rows = grid.candidates(dataset)
    if not rows:
        return DatasetLook(dataset, [], (0, []), None, "", "no run has kept what its queries found")
    try:
        thumbnails = Thumbnails(dataset)
        best = next((row for row in rows if not is_extra(row[1])), rows[0])
        baseline = baseline_of(rows)
        shown = {"Best row": best} | ({"Baseline": baseline} if baseline is not best else {})
        galleries = []
        for name, (recall, row, run) in shown.items():
            title = f"{name}: {row.name} of {run.table}, seed {run.run.seed} (Recall@1 of the row {100 * recall:.2f})"
            galleries.append(gallery(thumbnails, run.cached_queries / "queries.npz", title))
        found = DatasetLook(
            dataset,
            galleries,
            two_labels(thumbnails),
            embedding_map(best[2].cached_queries / "queries.npz", thumbnails.packed),
            f"{best[1].name}, seed {best[2].run.seed}",
        )
    except BadInputError as error:
        return DatasetLook(dataset, [], (0, []), None, "", str(error))
    stored |= {f"{dataset}-{image}": address for image, address in thumbnails.addresses.items()}
    return found


def counts(grid: ShownGrid) -> dict[str, int]:
    """The kind of a verdict -> the number of printed numbers with such a verdict."""
    said = Counter(verdict.kind for table in grid.tables for _, _, verdict in table.judged)
    return {kind: said[kind] for kind in SIGNS if said[kind]}


def run_counts(grid: ShownGrid) -> dict[str, int]:
    """The numbers of planned runs, of done runs, and of runs that failed, are missing, have other settings, or were
    taken over."""
    found = {"planned": sum(len(row.runs) for table in grid.tables for row in table.every), "done": len(grid.runs)}
    kinds = {"failures": "failed", "missing": "not run", "outdated": "of other settings", "taken_over": "taken over"}
    return found | {name: len(grid.names(kind)) for kind, name in kinds.items()}


def not_run(grid: ShownGrid) -> str:
    """A sentence on the planned runs that no table shows."""
    lacking = {table.name: sum(len(row.lacking) for row in table.every) for table in grid.tables}
    if not any(lacking.values()):
        return "All planned runs are done."
    named = ", ".join(f"{count} of {name}" for name, count in lacking.items() if count)
    return f"Not done, so nothing is known of them: {named}."


def costs(runs: list[ShownRun]) -> list[str]:
    """The line of a machine: its runs, hours, seconds for each run (median), images/s in training (median), memory and
    GPU memory in GB (highest), and the GPU's energy in kWh."""
    seconds = [run.seconds for run in runs if run.seconds is not None]
    speeds = [speed for run in runs for speed in run.making.get("images_per_second", ())]
    memory = [run.making["peak_memory_bytes"] for run in runs if run.making]
    gpus = [gpu["peak_memory_bytes"] for run in runs if (gpu := run.making.get("machine", {}).get("gpu"))]
    joules = [run.gpu_joules for run in runs if run.gpu_joules is not None]
    return [
        str(len(runs)),
        f"{sum(seconds) / 3600:.2f}" if seconds else "–",
        f"{median(seconds):,.0f}" if seconds else "–",
        f"{median(speeds):,.0f}" if speeds else "–",
        f"{max(memory) / 1e9:.1f}" if memory else "–",
        f"{max(gpus) / 1e9:.1f}" if gpus else "–",
        f"{sum(joules) / 3.6e6:.2f}" if joules else "–",
    ]


def table_figures(grid: ShownGrid, table: TableModel) -> dict[str, list[tuple[str, str]]]:
    """The figures of a table, `intervals` and `curves`: data address and description of each."""
    drawn: list[tuple[str, str]] = []
    learning: list[tuple[str, str]] = []
    printed = table.published.curves if table.published else {}
    for dataset in table.settings.datasets:
        rows = {
            row.name: [grid.runs[run.metrics] for run in row.runs if run.metrics in grid.runs]
            for row in table.rows
            if row.dataset == dataset and not is_extra(row)
        }
        if address := figures.intervals(table, dataset):
            drawn.append((address, f"Recall@1 of {table.name} on {dataset}: each seed, mean and interval"))
        own = {name: printed.get(f"{dataset}/{name}", {}) for name in rows}
        for metric, label in (("recall@1", "Recall@1, percent"), ("loss", "training loss")):
            if address := figures.curves(rows, metric, label, own if metric == "recall@1" else {}):
                learning.append((address, f"{label} by epoch of all runs of {table.name} on {dataset}"))
    if table.chart:
        drawn.append((figures.chart_of(table), f"{table.name}: {table.chart}"))
    return {"intervals": drawn, "curves": learning}


def title_of(grid: ShownGrid) -> str:
    """The title of a grid's report."""
    return grid.paper or f"Report of the grid {grid.name}"


def report(grid: ShownGrid, folder: Path) -> str:
    """The page of a grid, with links for a page in `folder`."""
    stored: dict[str, str] = {}
    looks = [look(grid, dataset, stored) for dataset in grid.datasets]
    failures = {name: error for table in grid.tables for row in table.every for name, error in row.failures.items()}
    return render(
        "report.html",
        grid=grid,
        title=title_of(grid),
        counts=counts(grid),
        found=[sentence for table in grid.tables for sentence in summary.sentences(table)],
        not_run=not_run(grid),
        runs=run_counts(grid),
        signs=SIGNS,
        claims=grid.content.claims,
        claim_counts=claim_lines.counts(grid.content.findings),
        claim_signs=claim_lines.SIGNS,
        machines={name: costs(runs) for name, runs in grid.by_machine().items()},
        mixtures=grid.mixtures(),
        gpu_hours=sum(run.seconds or 0 for run in grid.made_once if run.on_gpu) / 3600,
        cpu_hours=sum(run.seconds or 0 for run in grid.made_once if not run.on_gpu) / 3600,
        revisions=sorted({run.revision for run in grid.made_once}),
        tables=[(table, table_figures(grid, table), settings(table)) for table in grid.tables],
        seeds=lambda number: seed_lines(grid, number, folder) if number else [],
        tables_at=os.path.relpath(Path("metrics/tables") / grid.name, folder),
        peeking=[
            (table, table.peeking, figures.peeking([line.row for line in table.peeking.lines if line.row]))
            for table in grid.tables
            if table.peeking
        ],
        looks=looks,
        stored=stored,
        failures=failures,
        missed=[
            (f"{table.name}: {row.key}, {heading(metric)}", verdict.text)
            for table in grid.tables
            for row, metric, verdict in table.judged
            if verdict.kind in ("differs", "cannot say")
        ],
        taken_over={
            name: because for table in grid.tables for row in table.every for name, because in row.taken_over.items()
        },
    )


def write_report(name: str) -> Path:
    """Write the report of a grid, and beside it the keys of the runs that it shows. Return the report's path."""
    path, grid = REPORTS / name / "index.html", ShownGrid(name)
    write_text(path, report(grid, path.parent))
    write_json(path.with_name("made_from.json"), {str(place): run.record.key for place, run in grid.runs.items()})
    return path


def overview(grids: list[ShownGrid]) -> str:
    """The page that links to the reports of some grids."""
    lines = [(grid, title_of(grid), counts(grid), run_counts(grid)) for grid in grids]
    return render("overview.html", title="Reports", lines=lines, signs=SIGNS)


def write_overview(names: list[str]) -> Path:
    """Write the page that links to the existing reports of some grids. Return its path."""
    path = REPORTS / "index.html"
    write_text(path, overview([ShownGrid(name) for name in names if (REPORTS / name / "index.html").is_file()]))
    return path


SEAL = re.compile(r'<meta name="generator" content="pipeline sha256:([0-9a-f]{64})">\n')


def sealed(page: str) -> str:
    """A page whose head has the SHA-256 of the rest, so that `foreign_page` knows it."""
    head, charset, rest = page.partition('<meta charset="utf-8">\n')
    digest = hashlib.sha256(page.encode()).hexdigest()
    return f'{head}{charset}<meta name="generator" content="pipeline sha256:{digest}">\n{rest}'


def foreign_page(path: Path) -> Path | None:
    """`path`, unless it is a page that `sealed` made and nobody has changed: a `files.Foreign`."""
    try:
        page = path.read_bytes().decode("utf-8")
    except (OSError, ValueError):
        return path
    seal = SEAL.search(page)
    digest = hashlib.sha256(SEAL.sub("", page, count=1).encode()).hexdigest()
    return None if seal and seal[1] == digest else path


def write_nearest(out: Path, title: str, answers: list[Answer], stored: dict[str, str]) -> None:
    """Write a page with images and the images nearest to them to `out`. `stored` has their thumbnails by id."""
    write_text(out, render("nearest.html", title=title, answers=answers, stored=stored))


def write_gallery(queries: Path, dataset: str, title: str, count: int, out: Path) -> None:
    """Write a page with the gallery of a single run to `out`."""
    thumbnails = Thumbnails(dataset)
    shown = gallery(thumbnails, queries, title, count)
    twice = two_labels(thumbnails)
    stored = {f"{dataset}-{image}": address for image, address in thumbnails.addresses.items()}
    page = render("gallery.html", title=f"Gallery of {title}", shown=shown, twice=twice, stored=stored)
    write_text(out, sealed(page))
