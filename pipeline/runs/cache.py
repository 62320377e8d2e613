"""Runs that DVC's cache holds, found by dvc.lock.

DVC removes a stage's outputs before it runs the stage again, and the store of a fresh clone is empty. Without this
module, a stage that starts for another reason could not use the runs that were pulled.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import yaml

from pipeline.runs import store
from pipeline.runs.grid import CACHED
from pipeline.runs.record import METRICS, RECORD


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
    """The hashes of the folders of runs and queries in the dvc.lock files. Damaged parts are passed over, because DVC
    itself refuses them."""
    for lock in (Path("dvc.lock"), Path("papers/dvc.lock")):
        if not lock.is_file():
            continue
        with suppress(yaml.YAMLError, OSError, ValueError, AttributeError, KeyError, TypeError):
            stages = yaml.load(lock.read_text(encoding="utf-8"), yaml.CSafeLoader).get("stages", {})
            for stage in stages.values():
                for out in stage.get("outs", []):
                    if out["path"].startswith(f"{CACHED}/") and re.fullmatch(r"[0-9a-f]{32}\.dir", str(out.get("md5"))):
                        yield out["md5"]


def _folders(cache: Path, md5: str) -> Iterator[dict[str, Path]]:
    """The files of each folder in a listing of DVC's cache: name -> path in the cache."""
    found: dict[str, dict[str, Path]] = {}
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        for file in json.loads((cache / md5[:2] / md5[2:]).read_text(encoding="utf-8")):
            folder, _, name = file["relpath"].rpartition("/")
            found.setdefault(folder, {})[name] = cache / file["md5"][:2] / file["md5"][2:]
    yield from found.values()


def take_in(wanted: set[str]) -> int:
    """Put the runs and evaluations with the `wanted` keys into the store if DVC's cache has all of their files. Returns
    their number."""
    taken = 0
    hashes = list(_locked()) if wanted else []
    cache = _cache() if hashes else None
    for md5 in hashes if cache else []:
        assert cache is not None
        for files in _folders(cache, md5):
            record = files.get(RECORD) or files.get(METRICS)
            if record is not None and store.key_of(record) in wanted and all(map(Path.is_file, files.values())):
                taken += store.take_in_files(files)
    return taken
