"""The store of runs: data/store/<key>/ is either whole or absent, for trainings and for evaluations.

Until a run is done, these files are beside its key's folder:

- `<key>.lock`, held by the process that works on the run; the system drops the lock when that process ends;
- `<key>.checkpoint`;
- `<key>.log`;
- `<key>.error.json`, which says how the last try failed.

A run is done when its folder exists, whatever the last try said. Nothing here deletes a run; only `pipeline.prune`
does.

People see runs by names: data/runs/<grid>/<dataset>/<table>/<row>/<seed> and similar folders hold links to the store's
files.
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
    """Another process is working on this run."""


def folder(key: str) -> Path:
    """The folder of a key's files, once the key is done."""
    return STORE / key


def beside(key: str, ending: str) -> Path:
    """A file beside a key's folder: lock, checkpoint, log or error.json."""
    return STORE / f"{key}.{ending}"


def is_done(key: str) -> bool:
    """Whether the key's folder exists. It exists only when it is whole."""
    return (STORE / key).is_dir()


@contextmanager
def claim(key: str) -> Iterator[None]:
    """Hold a key while the block runs. Raises `HeldError`, which names the holder, if another process holds it.

    The system drops the lock when the process ends, in whatever way. The lock's file stays. If it were removed, one
    process could lock the old file and another process the new file.
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
    """The process that works on a key now; None if there is none."""
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
    """Yield a folder, to which the block writes the files of a claimed key. If the block ends without an error, the
    folder becomes the key's folder, and the key's checkpoint and its note of a failure are removed."""
    with whole(folder(key)) as temporary:
        temporary.mkdir()
        yield temporary
    beside(key, "checkpoint").unlink(missing_ok=True)
    beside(key, "error.json").unlink(missing_ok=True)


def note_error(key: str, error: str) -> None:
    """Write the error with which the last try of a run failed, and the time."""
    write_json(beside(key, "error.json"), {"error": error, "time": time.time()})


def failure(key: str) -> dict[str, Any] | None:
    """The note of a run's last try, {"error", "time" in seconds since 1970}, if the try failed and the run is not done;
    otherwise None."""
    path = beside(key, "error.json")
    return read_json(path) if path.is_file() and not is_done(key) else None


def key_of(path: Path) -> str | None:
    """The key in a run's folder or in a metrics file; None if the folder or file is not one of ours."""
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
    """Make `target` a hard link to `source`, or a copy if a link is not possible."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def show(key: str, target: Path) -> None:
    """Make `target` a folder of links to the files of a done key, without made.json. If `target` shows another run,
    that run is first put into the store, so that nothing is lost. Raises `BadInputError` if `target` is anything
    else."""
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
    """Make `target` a copy of a file of a done key. It is no link, because a file that git tracks must not change with
    the store. Raises `BadInputError` if `target` is a file that is not ours."""
    source = folder(key) / name
    if target.is_file() and target.read_bytes() == source.read_bytes():
        return
    if target.exists() and key_of(target) is None:
        raise BadInputError(f"{target} is a file that this stage did not make and does not replace: move it away")
    with whole(target) as temporary:
        shutil.copyfile(source, temporary)


def unshow(target: Path) -> None:
    """Remove a name that shows the wrong run, if the store has that run."""
    take_in(target)
    key = key_of(target)
    if key is not None and is_done(key):
        remove(target)


def take_in(target: Path) -> bool:
    """Put the run that a folder under a name holds into the store, such as one from `dvc pull`. This is done if the
    store does not have the run and the files agree with the record. Returns whether it was done."""
    return target.is_dir() and take_in_files({file.name: file for file in target.iterdir()})


def take_in_files(files: dict[str, Path]) -> bool:
    """Put the files of a run or an evaluation, name -> path, into the store. This is done if the store does not have it
    and the files agree with the record. Returns whether it was done."""
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
