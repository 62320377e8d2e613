"""Who made a run, when and where: in git, and in this clone.

`metrics/made` is in git and says who made the committed runs. A run that this clone makes has a made.json in the store.
It is copied to metrics/made only if the run's metrics file is not the committed one, or if a person asks for it
(`pipeline.show --made-here`). So a clone that makes the committed runs again, with the same bytes, changes no file of
git.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.base.files import BadInputError, read_json, write_json
from pipeline.runs import store
from pipeline.runs.grid import GridRun
from pipeline.runs.record import MADE, MetricsRecord, checked_made, read_made, read_record
from pipeline.runs.revisions import git

Notes = dict[str, dict[str, Any]]
"""training, evaluation -> when and where it was made, with its key."""


def _keys(record: MetricsRecord) -> dict[str, str]:
    return ({"training": record.run.key} if record.run else {}) | {"evaluation": record.key}


def _stored(keys: dict[str, str]) -> Notes:
    """The notes of the store on some keys, as they were written."""
    found = {}
    for work, key in keys.items():
        if (store.folder(key) / MADE).is_file():
            try:
                noted = read_json(store.folder(key) / MADE)
            except BadInputError:
                continue
            if isinstance(noted, dict):
                found[work] = {"key": key} | noted
    return found


def here(record: MetricsRecord) -> Notes:
    """How this clone made a run; what it did not make is left out."""
    return checked_made(_stored(_keys(record)), store.STORE)


def committed(run: GridRun, record: MetricsRecord) -> Notes:
    """What metrics/made says about a run; what it says about another run is left out."""
    keys = _keys(record)
    return {work: noted for work, noted in read_made(run.made).items() if noted["key"] == keys.get(work)}


def training(run: GridRun) -> dict[str, Any]:
    """How a run was trained, in this clone if it was, otherwise as metrics/made says; empty if nothing is known."""
    noted = read_made(run.made)
    keys = {work: of["key"] for work, of in noted.items() if store.is_key(of["key"])}
    return (noted | checked_made(_stored(keys), store.STORE)).get("training", {})


def keep(run: GridRun, changed: bool) -> None:
    """Write to metrics/made what it lacks of a run. If the run's metrics file has just changed, it gets the note that
    git has beside the same metrics file, or else that of the store."""
    known = _entries(run.made.read_bytes() if run.made.is_file() else b"")
    if changed:
        same = _committed(run.metrics) == run.metrics.read_bytes()
        known = _entries(_committed(run.made)) if same else {}
    _write(run, known)


def adopt(run: GridRun) -> bool:
    """Let metrics/made say how this clone made a run. False if it did not make it."""
    found = _write(run, {}) if run.metrics.is_file() else {}
    return bool(found)


def _committed(path: Path) -> bytes:
    """The content of a file in the last commit; empty if there is none, or no git."""
    try:
        return git("show", f"HEAD:./{path.as_posix()}")
    except BadInputError:
        return b""


def _entries(text: bytes) -> Notes:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {work: of for work, of in content.items() if isinstance(of, dict)} if isinstance(content, dict) else {}


def _write(run: GridRun, known: Notes) -> Notes:
    """Write the entries of `known` that are of the run, and of the store what these lack. Returns the store's."""
    keys = _keys(read_record(run.metrics, MetricsRecord))
    stored = _stored(keys)
    merged = stored | {work: of for work, of in known.items() if of.get("key") == keys.get(work)}
    written = {work: merged[work] for work in keys if work in merged}
    if written and (not run.made.is_file() or _entries(run.made.read_bytes()) != written):
        write_json(run.made, written)
    return stored
