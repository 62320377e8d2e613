"""Names that show runs of the store: folders of links to a key's files, and copies of its metrics file.

A name never replaces what is not ours, which is known by content: a folder is ours if its record proves itself and
lists all other files. Several commands may end at the same time and show the same runs: only one process at a time
changes names.
"""

import fcntl
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.base.files import free_name, remove, replaceable, sha256, whole
from pipeline.runs import store
from pipeline.runs.grid import CACHED
from pipeline.runs.key import digest
from pipeline.runs.record import MADE, METRICS, RECORD

_alone = False
"""Whether this process is the one that changes names."""


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other process changes names, and let none change any while the block runs. A block inside another
    one does not wait."""
    global _alone
    if _alone:
        yield
        return
    store.STORE.mkdir(parents=True, exist_ok=True)
    with (store.STORE / "names.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _alone = True
        try:
            yield
        finally:
            _alone = False


def foreign_names(path: Path) -> Path | None:
    """The first file at `path` that is neither a run's record or metrics file nor one whose name this record lists: a
    `files.Foreign` for a run's names, whose files are repaired from the store if they are damaged."""
    record = next((file for name in (RECORD, METRICS) if (file := path / name).is_file()), None)
    record = record if path.is_dir() else path
    if record is None or record.is_symlink() or (files := _listed(record)) is None:
        return path
    for file in sorted(path.iterdir()) if path.is_dir() else ():
        if file != record and (file.is_symlink() or not file.is_file() or file.name not in files):
            return file
    return None


def foreign(path: Path) -> Path | None:
    """As `foreign_names`, but a file that is not the one that the record lists is foreign, too: for places that a
    person names."""
    found = foreign_names(path)
    if found is not None or not path.is_dir():
        return found
    for name in (RECORD, METRICS):
        files = (_listed(path / name) or {}).items()
        if changed := [file for file, known in files if (path / file).is_file() and sha256(path / file) != known]:
            return path / changed[0]
    return None


def _listed(record: Path) -> dict[str, str] | None:
    """The files, name -> SHA-256, that a record or a metrics file of any schema lists; None if it is neither."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        found = digest(content["content"]) if isinstance(content, dict) and "content" in content else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        return None
    if "content" in content:
        proven = found == content.get("key")
    else:  # schema 1, which had no proof
        marks = {"schema_number", "dataset", "data", "code", "device", "packages", "files"}
        proven = content.keys() >= marks and re.fullmatch("[0-9a-f]{64}", str(content.get("key"))) is not None
    return content["files"] if proven else None


def _is_shown(key: str, target: Path) -> bool:
    """Whether a folder holds the files of a done key, and only these: links to them, or equal files, such as the links
    to its cache that DVC puts in their place."""
    if not target.is_dir() or target.is_symlink():
        return False
    kept = {file.name: file for file in store.folder(key).iterdir() if file.name != MADE}
    shown = {file.name: file for file in target.iterdir()}
    if kept.keys() != shown.keys():
        return False
    if store.is_noted(key, target) or all(kept[name].samefile(shown[name]) for name in kept):
        return True
    # Files of the same size may still differ.
    sizes = all(kept[name].stat().st_size == shown[name].stat().st_size for name in kept)
    if not sizes or any(sha256(kept[name]) != sha256(shown[name]) for name in kept):
        return False
    store.note(key, target)
    return True


@alone()
def show(key: str, target: Path) -> None:
    """Make `target` a folder of links to the files of a done key, without made.json. If `target` shows another run,
    that run is first put into the store, so that nothing is lost. If it shows this run with a file that is another
    one, such as somebody's own weights, `target` is set aside. Raises `BadInputError` if `target` is anything else."""
    if _is_shown(key, target):
        return
    if store.key_of(target) != key:
        store.take_in(target)
    elif not target.is_relative_to(CACHED) and foreign_names(target) is None and foreign(target) is not None:
        aside = free_name(target.with_name(f"{target.name}.edited"))
        target.rename(aside)
        print(f"{target} was edited or damaged: it is now {aside}", file=sys.stderr)
    with whole(target, foreign_names) as temporary:
        temporary.mkdir()
        for file in sorted(store.folder(key).iterdir()):
            if file.name != MADE:
                store.link(file, temporary / file.name)


def _is_ours(file: Path) -> bool:
    """Whether a file is a metrics file, or was one before it was damaged, such as by a merge of git."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return '"schema_number"' in text and '"key"' in text


@alone()
def show_file(key: str, name: str, target: Path) -> bool:
    """Make `target` a copy of a file of a done key. It is no link, because a file that git tracks must not change with
    the store. Returns whether there was no file, or another one. Raises `BadInputError` if `target` is a file that is
    not ours."""
    source = store.folder(key) / name
    if target.is_file() and target.read_bytes() == source.read_bytes():
        return False
    replaceable(target, lambda path: None if _is_ours(path) else path)
    if target.exists() and store.key_of(target) in (None, key):
        print(f"{target} was edited or damaged: replaced by what the store has", file=sys.stderr)
    with whole(target) as temporary:
        shutil.copyfile(source, temporary)
    return True


@alone()
def unshow(target: Path) -> None:
    """Remove a name that shows the wrong run, if the store has that run and nothing else is in the folder."""
    store.take_in(target)
    key = store.key_of(target)
    if key is not None and store.is_done(key):
        names = {file.name for file in target.iterdir()} if target.is_dir() else set()
        if names <= {file.name for file in store.folder(key).iterdir()}:
            remove(target)
