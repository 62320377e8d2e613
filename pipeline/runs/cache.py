"""Runs that DVC's cache holds, by dvc.lock: DVC removes a stage's outputs before it runs it again, and the store of a
fresh clone is empty, so what was pulled would be lost to a stage that starts for another reason."""

import json
from collections.abc import Iterator
from pathlib import Path

import yaml

from pipeline.runs import store
from pipeline.runs.record import METRICS, RECORD

SHOWN = ("data/runs", "data/queries")


def _cache() -> Path | None:
    """Where DVC keeps files here; None outside of a repository of DVC's."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            return Path(repo.cache.local.path)
    except NotDvcRepoError:
        return None


def _locked() -> Iterator[str]:
    """The hashes that the dvc.lock files have of the folders of runs and queries."""
    for lock in (Path("dvc.lock"), Path("papers/dvc.lock")):
        if not lock.is_file():
            continue
        stages = yaml.load(lock.read_text(encoding="utf-8"), yaml.CSafeLoader).get("stages", {})
        for stage in stages.values():
            for out in stage.get("outs", []):
                if out["path"].startswith(SHOWN) and str(out.get("md5", "")).endswith(".dir"):
                    yield out["md5"]


def take_in(wanted: set[str]) -> int:
    """Put the runs and evaluations of some keys into the store that DVC's cache holds whole; gives their number."""
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
