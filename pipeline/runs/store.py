"""The store of runs: data/store/<key>/ is either whole or absent, for trainings and for evaluations.

Until a run is done, these files are beside its key's folder:

- `<key>.lock`, held by the process that works on the run; the system drops the lock when that process ends;
- `<key>.checkpoint`;
- `<key>.log`;
- `<key>.error.json`, which says how the last try failed.

A run is done when its folder exists, whatever the last try said. Nothing here deletes a run; only `pipeline.prune`
does.

There is one door into the store, and it believes nothing. The name of a folder is the key in its record, the key is the
hash of the record's content, and the record lists every other file with its hash (runs/record.py). `take_in` checks all
of this for a run that comes from elsewhere, and takes only the files that the record lists. `check` does the same for
an entry that is to be used. It hashes an entry's files only if their sizes or times have changed since the last check,
which `<key>.checked` notes. A damaged entry is set aside as `<key>.damaged`, with a line that names it, and is then no
longer done.

People see runs by names: data/runs/<grid>/<dataset>/<table>/<row>/<seed> and similar folders hold links to the store's
files.
"""

import fcntl
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from pipeline.base.files import BadInputError, free_name, read_json, whole, write_json
from pipeline.runs.record import (
    MADE,
    METRICS,
    RECORD,
    MetricsRecord,
    Record,
    TrainingRecord,
    check_files,
    read_record,
)

STORE = Path("data/store")


class HeldError(BadInputError):
    """Another process is working on this run."""


def is_key(text: object) -> bool:
    """Whether a text is a key: 64 hexadecimal digits."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def folder(key: str) -> Path:
    """The folder of a key's files, once the key is done. Raises `BadInputError` for a text that is no key, because a
    key may come from elsewhere and is used as a path."""
    if not is_key(key):
        raise BadInputError(f"{key!r} is no key of a run: a key has 64 hexadecimal digits")
    return STORE / key


def beside(key: str, ending: str) -> Path:
    """A file beside a key's folder: lock, checkpoint, log, error.json, graphs, checked or damaged."""
    return folder(key).with_name(f"{key}.{ending}")


def is_done(key: str) -> bool:
    """Whether the key's folder exists. It exists only when it is whole. Whoever uses its files calls `check` or `entry`
    first."""
    return folder(key).is_dir()


_held: set[str] = set()
"""The keys that this process has claimed."""


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
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)


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
    beside(key, "checked").unlink(missing_ok=True)
    note(key, folder(key))
    beside(key, "checkpoint").unlink(missing_ok=True)
    beside(key, "error.json").unlink(missing_ok=True)


def _marks(place: Path) -> dict[str, list[int]]:
    """Name -> size, time and number of the files in a folder. They change if a file is changed or replaced."""
    found = {}
    for file in place.iterdir():
        status = file.stat()
        found[file.name] = [status.st_size, status.st_mtime_ns, status.st_ino]
    return found


def is_noted(key: str, place: Path) -> bool:
    """Whether the files in a folder are as they were when they were last found to be a key's files."""
    try:
        return bool(read_json(beside(key, "checked"))[str(place)] == _marks(place))
    except (BadInputError, KeyError, TypeError):
        return False


def note(key: str, place: Path) -> None:
    """Note that the files in a folder are a key's files, and how they are now."""
    try:
        noted = dict(read_json(beside(key, "checked")))
    except (BadInputError, TypeError, ValueError):
        noted = {}
    write_json(beside(key, "checked"), noted | {str(place): _marks(place)})


def _record(file: Path, name: str) -> TrainingRecord | MetricsRecord:
    """The record in a file that has, or should have, the name of the record of a training or of an evaluation."""
    return read_record(file, TrainingRecord) if name == RECORD else read_record(file, MetricsRecord)


def check(key: str) -> bool:
    """Whether the key is done and its files are those that its record lists. A damaged entry is set aside, and a line
    names it. If another process holds the key, a damaged entry is left to that process."""
    if not is_done(key):
        return False
    if why := damage(key):
        _set_aside(key, why)
    return not why


def damage(key: str) -> str:
    """What is wrong with the files of a done key; empty if nothing is. Nothing is set aside. Files that did not change
    since the last check are not read again."""
    try:
        if is_noted(key, folder(key)):
            return ""
        name = RECORD if (folder(key) / RECORD).exists() else METRICS
        record = _record(folder(key) / name, name)
        if record.key != key:
            raise BadInputError(f"{folder(key)} holds the run {record.key}")
        check_files(folder(key), record.files)
    except (BadInputError, OSError) as error:
        return str(error)
    with suppress(OSError):  # such as a disk that may not be written: the next check reads the files again
        note(key, folder(key))
    return ""


def _set_aside(key: str, why: str) -> None:
    try:
        with nullcontext() if key in _held else claim(key):
            aside = free_name(beside(key, "damaged"))
            folder(key).rename(aside)
            beside(key, "checked").unlink(missing_ok=True)
    except HeldError:
        return
    why = re.sub(r": (make it again|run `dvc repro`).*", "", why)
    print(f"{why}: the damaged entry is now {aside}", file=sys.stderr)


def entry(key: str, kind: type[Record]) -> Record:
    """The record of a done key, after `check`. Raises `BadInputError` if the key is not done, or is damaged."""
    if not check(key):
        raise BadInputError(f"{folder(key)} is missing or was damaged: make its run again (`dvc repro`)")
    return read_record(folder(key) / (RECORD if kind is TrainingRecord else METRICS), kind)


def records(kind: type[Record]) -> Iterator[Record]:
    """The records of all trainings, or of all evaluations, that are done. Those of another version, and those that do
    not prove what they say, are left out. Their other files are not checked."""
    for path in sorted(STORE.glob(f"*/{RECORD if kind is TrainingRecord else METRICS}")):
        with suppress(BadInputError):
            record = read_record(path, kind)
            if record.key == path.parent.name:
                yield record


def note_error(key: str, error: str) -> None:
    """Write the error with which the last try of a run failed, and the time."""
    write_json(beside(key, "error.json"), {"error": error, "time": time.time()})


def failure(key: str) -> dict[str, Any] | None:
    """The note of a run's last try, {"error", "time" in seconds since 1970}, if the try failed and the run is not done;
    otherwise None. A note that is damaged counts as none, so the run is tried again."""
    path = beside(key, "error.json")
    if not path.is_file() or is_done(key):
        return None
    try:
        note = read_json(path)
    except BadInputError:
        return None
    good = isinstance(note, dict) and isinstance(note.get("error"), str) and isinstance(note.get("time"), float | int)
    return note if good else None


def key_of(path: Path) -> str | None:
    """The key in a run's folder or in a metrics file; None if the folder or file is not one of ours. The key is what
    the file says; `check` and `take_in` check it."""
    for file in (path / RECORD, path / METRICS) if path.is_dir() else (path,):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict) and is_key(content.get("key")) and "schema_number" in content:
            key: str = content["key"]
            return key
    return None


def link(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy if a link is not possible or `source` is itself a symbolic
    link."""
    try:
        if source.is_symlink():
            raise OSError
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def take_in(target: Path) -> bool:
    """Put the run that a folder holds into the store, such as one from `dvc pull`, if the store does not have it.
    Returns whether it was done. A run that does not prove what it says is named and not taken."""
    return target.is_dir() and take_in_files({file.name: file for file in target.iterdir()})


def take_in_files(files: dict[str, Path]) -> bool:
    """`take_in` for the files of a run or an evaluation: name -> path. Only the record and the files that it lists are
    taken, and made.json."""
    name = RECORD if RECORD in files else METRICS
    said = key_of(files[name]) if name in files else None
    if said is None or is_done(said):
        return False
    try:
        record = _record(files[name], name)
        for listed, expected in record.files.items():
            if listed not in files:
                raise BadInputError(f"{files[name]} lists {listed}, which is missing")
            check_files(files[listed].parent, {files[listed].name: expected})
        with claim(record.key):
            if is_done(record.key):
                return False
            with fill(record.key) as temporary:
                for taken in (name, MADE, *record.files):
                    if taken in files:
                        link(files[taken], temporary / taken)
    except HeldError:
        return False
    except BadInputError as error:
        print(f"{error}: not taken into the store", file=sys.stderr)
        return False
    return True
