"""What can be checked of a grid's results without training: records, tables that are made again from them, links.

All functions read the current folder, which may be one that a bundle or a commit was unpacked to.
"""

import json
import math
import re
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pipeline.base.config import read_params
from pipeline.base.files import BadInputError, sha256
from pipeline.base.names import checked_name
from pipeline.bundles.opened import WEIGHTS
from pipeline.data.archives import MEMBER_LIMIT
from pipeline.runs.grid import GridRun, grid_folder, grid_runs
from pipeline.runs.record import METRICS, QUERIES, RECORD, MetricsRecord, read_record
from pipeline.tables import written
from pipeline.tables.grid import GridContent, read_content

MOST_RUNS = 100_000
"""The most runs of a grid. The largest of the papers has 500."""
OVER_CLASSES = "over_test_classes"


@dataclass
class Checked:
    """What was found: a line for each kind of thing that was checked, and a line for each problem."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def grids_here() -> list[str]:
    """The grids of which the current folder has metrics files and settings."""
    names = sorted(path.name for path in Path("metrics/runs").glob("*") if path.is_dir())
    return [
        name for name in names if Path("params.yaml" if name == "default" else f"papers/{name}/params.yaml").is_file()
    ]


def bounded_runs(grid: str) -> list[GridRun]:
    """The runs of a grid whose settings may come from anybody. Raises `BadInputError` for settings that ask for an
    absurd number of runs."""
    params = read_params(grid_folder(checked_name("grid", grid)) / "params.yaml")
    sizes = [
        len(of.datasets)
        * (len(of.seeds) * len(of.protocols) + (of.search.tries * of.search.folds if of.search else 0))
        * math.prod(map(len, of.rows.values()))
        for of in params.tables.values()
    ]
    if sum(sizes) > MOST_RUNS:
        raise BadInputError(f"params.yaml of {grid} asks for {sum(sizes):,} runs, more than {MOST_RUNS:,}")
    return grid_runs(grid)


def check_grid(grid: str, hashes: dict[str, str] | None = None, queries: Path | None = None) -> Checked:
    """Check the results of a grid in the current folder. `hashes` are those of a bundle's files, `queries` a project's
    folder in which what the queries found may be, if it is not here. Raises `BadInputError` for settings that cannot be
    read."""
    found, runs = Checked(), bounded_runs(grid)
    records: list[tuple[GridRun, MetricsRecord]] = []
    for run in (run for run in runs if run.metrics.is_file()):
        try:
            records.append((run, read_record(run.metrics, MetricsRecord)))
        except BadInputError as error:
            found.problems.append(str(error))
    found.lines.append(f"{grid}: {len(records)} of {len(runs)} runs have a metrics file that is what its key says")
    if hashes is not None:
        _check_weights(records, hashes, found)
    complete = [_find_queries(run, record, queries, found) for run, record in records]
    try:
        content = read_content(grid)
        _check_tables(grid, content, all(complete), found)
    except BadInputError as error:
        found.problems.append(f"{grid}: its tables cannot be made again: {error}")
    # What comes from elsewhere can be wrong in ways that the tables' own files never are.
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        found.problems.append(f"{grid}: its tables cannot be made again: {type(error).__name__}: {error}")
    _check_links(grid, found)
    return found


def _check_weights(records: list[tuple[GridRun, MetricsRecord]], hashes: dict[str, str], found: Checked) -> None:
    """Compare the files of weights in a bundle with what the runs' records say."""
    count = 0
    for run, record in records:
        place = run.weights.as_posix()
        if record.run and f"{place}/{RECORD}" in hashes:
            count += 1
            wrong = [name for name, known in record.run.files.items() if hashes.get(f"{place}/{name}") != known]
            found.problems += [f"{place}/{name} is not what the record of the run says" for name in wrong]
    if any(name.startswith(WEIGHTS) for name in hashes):
        found.lines.append(f"{count} runs have their weights with them")


def _find_queries(run: GridRun, record: MetricsRecord, elsewhere: Path | None, found: Checked) -> bool:
    """Whether what the queries of a run found is here, so that the tables can use it. If it is not, it is brought here
    from `elsewhere`, such as to a folder that a commit was unpacked to."""
    if QUERIES not in record.files:
        return True
    here = run.cached_queries / QUERIES
    source = here if here.is_file() or elsewhere is None else elsewhere / here
    if not source.is_file():
        return False
    if sha256(source) != record.files[QUERIES]:
        if source == here:
            found.problems.append(f"{here} is not what {run.metrics} lists")
        return False
    try:
        with zipfile.ZipFile(source) as arrays:
            if sum(member.file_size for member in arrays.infolist()) > MEMBER_LIMIT:
                raise BadInputError("it is larger than any such file")
    except (zipfile.BadZipFile, BadInputError) as error:
        found.problems.append(f"{here} cannot be read ({error})")
        return False
    if source != here:
        here.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, here)
    if not (here.parent / METRICS).exists():  # as in a bundle: tables use queries beside their metrics
        shutil.copyfile(run.metrics, here.parent / METRICS)
    return True


def _without(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner, name) for key, inner in value.items() if key != name}
    return [_without(inner, name) for inner in value] if isinstance(value, list) else value


def _check_tables(grid: str, content: GridContent, queries: bool, found: Checked) -> None:
    """Make the tables again from the metrics files and compare them with those that are here."""
    texts = written.texts(grid, content)
    if not (written.TABLES / grid).is_dir():
        found.lines.append(f"{grid}: no tables are here")
        return
    for path, text in texts.items():
        try:
            kept = path.read_text(encoding="utf-8")
            same = kept == text
            if not same and not queries and path.suffix == ".json":
                same = _without(json.loads(kept), OVER_CLASSES) == _without(json.loads(text), OVER_CLASSES)
        except (OSError, ValueError, RecursionError) as error:
            found.problems.append(f"{path} is missing or damaged ({type(error).__name__})")
            continue
        if not same:
            line = next(
                (
                    number
                    for number, pair in enumerate(zip(kept.splitlines(), text.splitlines(), strict=False), 1)
                    if pair[0] != pair[1]
                ),
                min(len(kept.splitlines()), len(text.splitlines())) + 1,
            )
            found.problems.append(f"{path} is not what the metrics files give, from line {line} on")
    left_out = "" if queries else "; without the intervals over test classes, for which the queries' results lack"
    found.lines.append(f"{grid}: {len(texts)} files of tables were made again from them and compared{left_out}")


def _check_links(grid: str, found: Checked) -> None:
    """Whether the links in the tables and in the report lead to files of the folder."""
    root, count = Path().resolve(), 0
    pages = [*Path("metrics/tables", grid).glob("*.md"), *Path("metrics/reports", grid).glob("*.html")]
    for page in sorted(pages):
        text = page.read_text(encoding="utf-8", errors="replace")
        links = re.findall(r"\]\(([^()\s]+)\)" if page.suffix == ".md" else r'<a [^>]*?href="([^"]*)"', text)
        for link in dict.fromkeys(links):
            address = unquote(link.partition("#")[0])
            if not address or re.match("[a-z]+:", address):
                continue
            count += 1
            target = (page.parent / address).resolve()
            if not target.is_relative_to(root) or not target.exists():
                found.problems.append(f"{page} links to {link}, which is not there")
    found.lines.append(f"{grid}: {count} links in tables and report were followed")
