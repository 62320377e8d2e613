"""The store of runs: data/store/<key>/ is whole or absent, for trainings and for evaluations alike.

Beside a key's folder lie what a run needs until it is done: `<key>.lock`, held by the process that works on it and
dropped by the system with that process; `<key>.checkpoint`; `<key>.log`; and `<key>.error.json`, which says how its
last try failed. A run is done when its folder is there, whatever its last try said. Nothing here deletes a run; that is
`pipeline.prune`.

People see runs by names: data/runs/<grid>/<dataset>/<table>/<row>/<seed> and the like hold links to the store's files.
"""

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.base.files import BadInputError, read_json, remove, replaceable, sha256, whole, write_json
from pipeline.runs.record import MADE, METRICS, RECORD

STORE = Path("data/store")


class HeldError(BadInputError):
    """Another process works on this run."""


def folder(key: str) -> Path:
    """Where a key's files are once it is done."""
    return STORE / key


def beside(key: str, ending: str) -> Path:
    """A file beside a key's folder: lock, checkpoint, log or error.json."""
    return STORE / f"{key}.{ending}"


def is_done(key: str) -> bool:
    """Whether the key's folder is there, which it is only when it is whole."""
    return (STORE / key).is_dir()


@contextmanager
def claim(key: str) -> Iterator[None]:
    """Hold a key while the block runs. Raises `HeldError`, which says who holds it already.

    The lock is the system's, so it goes with the process however that ends. Its file stays: were it removed, one
    process could lock the old file and another the new.
    """
    STORE.mkdir(parents=True, exist_ok=True)
    path = beside(key, "lock")
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise HeldError(f"{path}: this run is being trained by {holder}: wait for it, or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def holder(key: str) -> str | None:
    """Who works on a key now; None where nobody does."""
    try:
        with beside(key, "lock").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return beside(key, "lock").read_text().strip() or "another process"
    return None


@contextmanager
def fill(key: str) -> Iterator[Path]:
    """Yield a folder to write the files of a claimed key into; it is the key's when the block ends well. Then its
    checkpoint and its note of a failure go."""
    with whole(folder(key)) as temporary:
        temporary.mkdir()
        yield temporary
    beside(key, "checkpoint").unlink(missing_ok=True)
    beside(key, "error.json").unlink(missing_ok=True)


def note_error(key: str, error: str) -> None:
    """Keep what the last try of a run failed with."""
    write_json(beside(key, "error.json"), {"error": error, "time": time.time()})


def failure(key: str) -> dict[str, Any] | None:
    """The note of a run's last try, {"error", "time" in seconds since 1970}, if it failed and the run is not done."""
    path = beside(key, "error.json")
    return read_json(path) if path.is_file() and not is_done(key) else None


def key_of(path: Path) -> str | None:
    """The key of a run's folder or of a metrics file under one of its names; None for what bears no mark of ours."""
    for file in (path / RECORD, path / METRICS) if path.is_dir() else (path,):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and isinstance(content.get("key"), str) and "schema_number" in content:
            key: str = content["key"]
            return key
    return None


def link(source: Path, target: Path) -> None:
    """Make `target` the file `source`, or a copy where that cannot be."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def show(key: str, target: Path) -> None:
    """Make `target` a folder of links to a done key's files, less made.json. A name that shows another run is first
    taken into the store, so that nothing is lost; anything else is refused."""
    if key_of(target) == key:
        return
    take_in(target)
    mark = RECORD if (folder(key) / RECORD).is_file() else METRICS
    replaceable(target, mark)
    with whole(target, mark) as temporary:
        temporary.mkdir()
        for file in sorted(folder(key).iterdir()):
            if file.name != MADE:
                link(file, temporary / file.name)


def show_file(key: str, name: str, target: Path) -> None:
    """Make `target` a copy of one of a done key's files: one that git keeps must not change with the store."""
    source = folder(key) / name
    if target.is_file() and target.read_bytes() == source.read_bytes():
        return
    if target.exists() and key_of(target) is None:
        raise BadInputError(f"{target} is a file that this stage did not make: it is not replaced; move it away")
    with whole(target) as temporary:
        shutil.copyfile(source, temporary)


def unshow(target: Path) -> None:
    """Take away a name that shows another run than it should, if the store keeps what it shows."""
    take_in(target)
    key = key_of(target)
    if key is not None and is_done(key):
        remove(target)


def take_in(target: Path) -> bool:
    """Put a run's folder that stands under a name, such as one that `dvc pull` brought, into the store, if it is not
    there and its files are what its record says."""
    return target.is_dir() and take_in_files({file.name: file for file in target.iterdir()})


def take_in_files(files: dict[str, Path]) -> bool:
    """Put the files of a run or an evaluation, by name, into the store, if it is not there and they are what its record
    says."""
    record = files.get(RECORD) or files.get(METRICS)
    key = key_of(record) if record is not None else None
    if record is None or key is None or is_done(key):
        return False
    known = read_json(record).get("files", {})
    if not all(name in files and sha256(files[name]) == known[name] for name in known):
        return False
    try:
        with claim(key):
            if not is_done(key):
                with fill(key) as temporary:
                    for name, file in files.items():
                        link(file, temporary / name)
    except HeldError:
        return False
    return True
