"""What a bundle of a grid holds, and the archive with its description: RO-Crate 1.1, as Zenodo and WorkflowHub read it
(https://w3id.org/ro/crate/1.1).

The same files give the same bytes: members have one order and one date, and nothing of the machine.
"""

import json
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.base.files import BadInputError, sha256
from pipeline.base.yaml_files import read_yaml
from pipeline.runs.grid import GridRun, grid_folder, grid_runs
from pipeline.runs.record import QUERIES, RECORD, MetricsRecord, TrainingRecord, read_record
from pipeline.runs.revisions import git

METADATA = "ro-crate-metadata.json"
ALWAYS = ("LICENSE", "NOTICE", "CITATION.cff", "requirements.txt", "requirements.lock")
LOCKS = ("dvc.lock", "data/dvc.lock", "papers/dvc.lock")
SETTINGS = ("params.yaml", "published.yaml", "claims.yaml")
LICENCE = "https://spdx.org/licenses/MIT"

KINDS = {
    ".json": "application/json",
    ".csv": "text/csv",
    ".md": "text/markdown",
    ".tex": "application/x-tex",
    ".svg": "image/svg+xml",
    ".html": "text/html",
    ".yaml": "application/yaml",
    ".cff": "application/yaml",
    ".npz": "application/octet-stream",
    ".pt": "application/octet-stream",
}
"""Ending -> media type; text for any other file."""
PACKED = (".npz", ".pt")
"""Files that are stored as they are, because they hardly get smaller."""

ABOUT = {
    "metrics/runs": "The metrics of a run, with all that its key is the hash of",
    "metrics/made": "When and where a run was made",
    "metrics/tables": "A table of the grid",
    "metrics/headlines": "Recall@1 and MAP@R of a row",
    "metrics/curves": "Loss and Recall@1 by epoch",
    "metrics/reports": "The report page",
    "data/cached/queries": "What the queries of a run found",
    "data/runs": "The weights of a run, their history and record; pretrained weights have terms of their own: NOTICE",
}
"""Folder -> what its files are."""


def files_of(grid: str, weights: bool) -> dict[str, Path]:
    """The files of a bundle: name in the archive -> path. Raises `BadInputError` if the grid has no table or no run."""
    folder, runs = grid_folder(grid), grid_runs(grid)
    paths = [*map(Path, (*ALWAYS, *LOCKS)), *(folder / name for name in SETTINGS), Path(f"metrics/curves/{grid}.csv")]
    for place in ("tables", "headlines"):
        paths += Path("metrics", place, grid).rglob("*.*")
    done = [run for run in runs if run.metrics.is_file()]
    if not done or not Path("metrics/tables", grid).is_dir():
        raise BadInputError(f"{grid}: nothing to hand on: make its runs and tables first (`python -m pipeline.status`)")
    for run in runs:
        paths += [run.metrics, run.made, run.error]
    for run in done:
        paths += _kept(run, weights)
    return {path.as_posix(): path for path in sorted(paths) if path.is_file()}


def _kept(run: GridRun, weights: bool) -> list[Path]:
    """What a run kept: its queries, and its weights with what belongs to them. Raises `BadInputError` if weights are
    wanted that are not here."""
    record = read_record(run.metrics, MetricsRecord)
    paths = [run.cached_queries / QUERIES] if QUERIES in record.files else []
    if weights and record.run:
        shown = run.weights / RECORD
        if not shown.is_file() or read_record(shown, TrainingRecord).key != record.run.key:
            raise BadInputError(
                f"--weights: {run.weights} is missing or of another run: make it or pull it, then "
                f"`python -m pipeline.show {run.grid} {run.run.dataset}`"
            )
        paths += [shown, *(run.weights / name for name in record.run.files)]
    return paths


def _commit() -> tuple[str, str]:
    """The last commit and its date; without git, the version and its release's year."""
    try:
        commit, date = git("show", "--no-patch", "--format=%H %cs", "HEAD").decode().split()
        return commit, date
    except (BadInputError, ValueError):
        return "not in git", "2026-01-01"


def crate(grid: str, title: str, files: dict[str, Path]) -> dict[str, Any]:
    """The content of ro-crate-metadata.json for the files of a bundle."""
    cited = read_yaml(Path("CITATION.cff"))
    commit, date = _commit()
    entities = [_entity(name, path) for name, path in files.items()]

    def these(*beginnings: str) -> list[dict[str, str]]:
        return [{"@id": quote(name)} for name in files if name.startswith(beginnings)]

    folder = grid_folder(grid).as_posix()
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": title,
        "description": f"The grid {grid} of {cited['title']}: settings, metrics and keys of its runs, tables and "
        "report page. `python -m pipeline.verify` of that project checks it, and makes its runs again.",
        "datePublished": date,
        "license": {"@id": LICENCE},
        "author": {"@id": "#authors"},
        "hasPart": [{"@id": quote(name)} for name in files],
        "mentions": {"@id": "#runs"},
    }
    made = {
        "@id": "#runs",
        "@type": "CreateAction",
        "name": "Runs were trained and evaluated, and tables made",
        "instrument": {"@id": "#software"},
        "object": these(*((f"{folder}/",) if folder != "." else SETTINGS), "requirements.lock"),
        "result": these("metrics/"),
    }
    software = {
        "@id": "#software",
        "@type": "SoftwareApplication",
        "name": cited["title"],
        "softwareVersion": f"{cited['version']}, commit {commit}",
        "license": {"@id": LICENCE},
    }
    about = {"conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"}, "about": {"@id": "./"}}
    graph = [
        {"@id": METADATA, "@type": "CreativeWork", **about},
        root,
        {"@id": "#authors", "@type": "Organization", "name": cited["authors"][0]["name"]},
        {"@id": LICENCE, "@type": "CreativeWork", "name": "MIT License", "description": "The files LICENSE and NOTICE"},
        software,
        made,
        *entities,
    ]
    context = ["https://w3id.org/ro/crate/1.1/context", {"sha256": "https://schema.org/sha256"}]
    return {"@context": context, "@graph": graph}


def _entity(name: str, path: Path) -> dict[str, Any]:
    """A file in the description: its size in bytes, its hash, and the key of its run if it is a metrics file."""
    of = next((said for folder, said in ABOUT.items() if name.startswith(f"{folder}/")), "")
    entity = {
        "@id": quote(name),
        "@type": "File",
        "name": name,
        "encodingFormat": KINDS.get(path.suffix, "text/plain"),
        "contentSize": str(path.stat().st_size),
        "sha256": sha256(path),
    }
    if name.startswith("metrics/runs/") and not name.endswith(".error.json"):
        entity["identifier"] = read_record(path, MetricsRecord).key
    return entity | ({"description": of} if of else {})


def write(archive: Path, description: dict[str, Any], files: dict[str, Path]) -> None:
    """Write the archive: the description first, then the files in the order of their names."""
    with zipfile.ZipFile(archive, "w") as opened:
        text = json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        opened.writestr(_member(METADATA), text, zipfile.ZIP_DEFLATED, 9)
        for name, path in files.items():
            member = _member(name)
            member.compress_type = zipfile.ZIP_STORED if path.suffix in PACKED else zipfile.ZIP_DEFLATED
            member.file_size = path.stat().st_size
            with path.open("rb") as source, opened.open(member, "w") as target:
                while piece := source.read(1 << 20):
                    target.write(piece)


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    member.create_system, member.external_attr = 3, 0o100644 << 16
    return member
