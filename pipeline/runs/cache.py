"""Runs that DVC's cache holds, found by dvc.lock.

DVC removes a stage's outputs before it runs the stage again, and the store of a fresh clone is empty. Without this
module, a stage that starts for another reason could not use the runs that were pulled.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import yaml

from pipeline.runs import store
from pipeline.runs.record import METRICS, RECORD

SHOWN = ("data/runs", "data/queries")


def _cache() -> Path | None:
    """The folder in which DVC keeps files here; None outside of a DVC repository."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            return Path(repo.cache.local.path)
    except NotDvcRepoError:
        return None


def _locked() -> Iterator[str]:
    """The hashes of the folders of runs and queries in the dvc.lock files."""
    for lock in (Path("dvc.lock"), Path("papers/dvc.lock")):
        if not lock.is_file():
            continue
        stages = yaml.load(lock.read_text(encoding="utf-8"), yaml.CSafeLoader).get("stages", {})
        for stage in stages.values():
            for out in stage.get("outs", []):
                if out["path"].startswith(SHOWN) and str(out.get("md5", "")).endswith(".dir"):
                    yield out["md5"]


def take_in(wanted: set[str]) -> int:
    """Put the runs and evaluations with the `wanted` keys into the store if DVC's cache has all of their files. Returns
    their number."""
    taken = 0
    hashes = list(_locked())
    cache = _cache() if hashes and wanted else None
    for md5 in hashes if cache else []:
        assert cache is not None
        listing = cache / md5[:2] / md5[2:]
        if not listing.is_file():
            continue
        folders: dict[str, dict[str, Path]] = {}
        for file in json.loads(listing.read_text(encoding="utf-8")):
            folder, _, name = file["relpath"].rpartition("/")
            folders.setdefault(folder, {})[name] = cache / file["md5"][:2] / file["md5"][2:]
        for files in folders.values():
            record = files.get(RECORD) or files.get(METRICS)
            if record is not None and store.key_of(record) in wanted and all(map(Path.is_file, files.values())):
                taken += store.take_in_files(files)
    return taken
