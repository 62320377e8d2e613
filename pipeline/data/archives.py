"""Read files directly from tar and zip archives, or from a folder of them, one at a time, without unpacking to disk.

Nothing here writes, so a hostile archive cannot write outside a folder. An archive that tries is refused nevertheless,
because it is not the published one. The unpacked size is limited, so that no archive keeps the stage busy for ever or
fills the memory. Every byte is checked against the archive's own checksums (the CRC of gzip or zip).
"""

import functools
import gzip
import math
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Container, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, TypeVar, cast

from pipeline.base.files import BadInputError
from pipeline.base.lists import listed
from pipeline.data.decoding import BYTE_LIMIT

READ_LIMIT = BYTE_LIMIT
"""The most bytes of one image or list. The largest in these datasets has 15 MB."""

MEMBER_LIMIT = 1 << 30
"""The most bytes of any member. CUB-200-2011 holds a table of 110 MB that is not read."""

FIX = "remove it and download it again"

HEADER_LIMIT = 1 << 20
"""The most bytes between two members of a tar file, and after the last one. A long name takes a few thousand."""

MOST_MEMBERS = 250_000
"""The most members of an archive. The largest of the published ones has 120,000."""

MOST_EMPTY = 20_000
"""The most members without content, folders included. They cost time, and hardly any bytes."""

GROWTH_LIMIT = 20
"""An archive may unpack to this many times its own size plus `MEMBER_LIMIT`. Images hardly shrink at all."""

ARCHIVES = (".tgz", ".tar.gz", ".zip")
"""The ends of archives' names."""

Record = TypeVar("Record")


class _Member(NamedTuple):
    """One entry of an archive: `kind` is "file", "folder", "link" or "device"; `read` gives its content."""

    name: str
    kind: str
    size: int
    read: Callable[[], bytes]


class _Limited:
    """A stream that raises `BadInputError` if more of it is read than its members need. This stops endless or large
    headers, and zeros after the archive's end, which gzip shrinks a thousandfold."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path, self.left = file, path, HEADER_LIMIT

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`."""
        content = self.file.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise BadInputError(
                f"{self.path}: more than {HEADER_LIMIT:,} bytes in a row belong to no member, which is too much: {FIX}"
            )
        return content


def _tar(path: Path) -> Iterator[_Member]:
    """The members of a gzipped tar file, as a stream."""

    def content(info: tarfile.TarInfo) -> bytes:
        file = archive.extractfile(info)
        assert file is not None, "only members that are files are read"
        return file.read()

    kinds = {tarfile.DIRTYPE: "folder", tarfile.SYMTYPE: "link", tarfile.LNKTYPE: "link"}
    with gzip.open(path) as unzipped:
        limited = _Limited(cast(BinaryIO, unzipped), path)
        with tarfile.open(fileobj=cast(BinaryIO, limited), mode="r|") as archive:
            for info in archive:
                limited.left = info.size + HEADER_LIMIT
                kind = "file" if info.isreg() else kinds.get(info.type, "device")
                yield _Member(info.name, kind, info.size, functools.partial(content, info))
                # Without this, the list of members grows with the archive.
                archive.members = []  # type: ignore[attr-defined]
        while limited.read(1 << 16):
            pass  # gzip compares its CRC at the very end.


def _zip(path: Path) -> Iterator[_Member]:
    """The members of a zip file, in the file's order."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16
            # Not `is_dir`, which fails if a member has no name.
            kind = (
                "folder"
                if info.filename.endswith("/")
                else "file"
                if stat.S_IFMT(mode) in (0, stat.S_IFREG)
                else "link"
            )
            yield _Member(info.filename, kind, info.file_size, functools.partial(archive.read, info))


def files(top: Path) -> list[Path]:
    """The files below a folder that are no archives, after those that are. Links to folders are followed only in the
    folder itself, so that no circle is walked."""
    tops = [top, *sorted(path for path in top.iterdir() if path.is_symlink() and path.is_dir())]
    files = [Path(place, name) for of in tops for place, _, names in os.walk(of) for name in names if name[0] != "."]
    return sorted(files, key=lambda path: (not path.name.endswith(ARCHIVES), path))


def _folder(top: Path, files: list[Path]) -> Iterator[_Member]:
    """Files below a folder, as members of it."""
    for path in files:
        kind = "file" if path.is_file() else "device"
        size = path.stat().st_size if kind == "file" else 0
        yield _Member(path.relative_to(top).as_posix(), kind, size, path.read_bytes)


def read(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file in the archive whose name is wanted, in the archive's order. A folder in
    place of an archive is read with all archives that lie in it.

    Names have no leading "./". Files that macOS adds (`._*`, `__MACOSX`) are skipped. Raises `BadInputError` for an
    archive that is missing, damaged, cut short or encrypted, and for members that lead out of it, are links or devices,
    or are absurdly large.
    """
    if not (path.is_file() or path.is_dir()):
        raise BadInputError(f"{path} is missing: run the download stage")
    loose = files(path) if path.is_dir() else []
    while loose and loose[0].name.endswith(ARCHIVES):
        yield from read(loose.pop(0), wanted)
    budget = math.inf if path.is_dir() else MEMBER_LIMIT + GROWTH_LIMIT * path.stat().st_size
    empty = 0
    try:
        members = _folder(path, loose) if path.is_dir() else _zip(path) if path.suffix == ".zip" else _tar(path)
        for count, member in enumerate(members, 1):
            empty += not member.size
            if count > MOST_MEMBERS or empty > MOST_EMPTY:
                most = f"{MOST_MEMBERS:,} members" if count > MOST_MEMBERS else f"{MOST_EMPTY:,} empty members"
                raise BadInputError(f"{path} has more than {most}, which is too much: {FIX}")
            name = member.name.removeprefix("./")
            parts = PurePosixPath(name).parts
            if not member.name or (member.kind == "file" and not parts) or member.size < 0:
                raise BadInputError(
                    f"{path}: the member {name!r} has no name or the impossible size {member.size:,}: {FIX}"
                )
            if name.startswith("/") or ".." in parts or "\\" in name:
                raise BadInputError(f"{path}: the member {name!r} leads out of the archive: {FIX}")
            if member.kind not in ("file", "folder"):
                raise BadInputError(f"{path}: the member {name!r} is a {member.kind}, not a file: {FIX}")
            budget -= member.size
            chosen = member.kind == "file" and not name.startswith("__MACOSX/") and not parts[-1].startswith("._")
            chosen = chosen and wanted(name)
            if member.size > (READ_LIMIT if chosen else MEMBER_LIMIT) or budget < 0:
                raise BadInputError(f"{path}: {name!r} takes {member.size:,} bytes unpacked, which is too much: {FIX}")
            if chosen:
                yield name, member.read()
    except BadInputError:
        raise
    # The readers of the standard library raise many kinds of errors for damaged archives.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        # zipfile raises this for an unknown method of compression and for a missing password.
        unknown = isinstance(error, RuntimeError) and not isinstance(error, RecursionError)
        problem = "cannot be read" if unknown else "is damaged or cut short"
        raise BadInputError(f"{path} {problem} ({reason}): {FIX}") from None


def ending(name: str, wanted: Container[str]) -> str:
    """The longest end of a path, from a slash on, that is wanted; empty if none is. Archives of mirrors have other
    folders around the same files."""
    while name and name not in wanted:
        name = name.partition("/")[2]
    return name


def read_texts(path: Path, names: list[str], hint: str = "") -> list[bytes]:
    """The content of the named files of an archive, whatever folder is around them, in the order of `names`. Raises
    `BadInputError`, with `hint`, that names files that are missing or appear twice with other content."""
    found: dict[str, bytes] = {}
    for member, content in read(path, lambda member: bool(ending(member, names))):
        name = ending(member, names)
        if found.setdefault(name, content) != content:
            raise BadInputError(f"{path} holds {name} twice: this is another archive: {FIX}{hint}")
    missing = [name for name in names if name not in found]
    if missing:
        raise BadInputError(f"{path} holds no {' and no '.join(missing)}: this is another archive: {FIX}{hint}")
    return [found[name] for name in names]


def read_annotated(
    path: Path,
    annotated: dict[str, Record],
    source: str,
    key: Callable[[str, Container[str]], str] = ending,
) -> Iterator[tuple[str, Record, bytes]]:
    """Yield name, record and content of every file of the archive that `annotated` names. `key` gives the name there of
    a file of the archive, or an empty one.

    Raises `BadInputError` at the end if the archive lacks some of them. `source` says in the message where the names
    come from.
    """
    missing = set(annotated)
    for member, content in read(path, lambda member: bool(key(member, annotated))):
        name = key(member, annotated)
        missing.discard(name)
        yield name, annotated[name], content
    if missing:
        folder = path if path.is_dir() else path.parent
        shown = listed(sorted(missing), folder.with_name(f"{folder.name}.missing.txt"))
        raise BadInputError(f"{path} lacks {len(missing):,} of the images that {source} names:{shown}\n{FIX}")


def rows(text: bytes, source: str, columns: int, skip: int = 0) -> Iterator[list[str]]:
    """The fields of each line of an annotation file, separated by blanks; the first `skip` lines are left out.

    Raises `BadInputError` for a line that does not have `columns` fields, and for text that is not UTF-8.
    """
    try:
        lines = text.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BadInputError(f"{source} is not text ({error}): {FIX}") from None
    for place, line in enumerate(lines[skip:], skip + 1):
        fields = line.split()
        if fields and len(fields) != columns:
            raise BadInputError(f"{source} line {place} has {len(fields)} fields, but {columns} are expected: {line!r}")
        if fields:
            yield fields


def by_id(text: bytes, source: str) -> dict[str, str]:
    """A mapping from the first field of each line of an annotation file, its id, to the second field. Raises
    `BadInputError` if an id appears twice."""
    found: dict[str, str] = {}
    for key, value in rows(text, source, 2):
        if key in found:
            raise BadInputError(f"{source} has the id {key} twice: {FIX}")
        found[key] = value
    return found


def number(text: str, source: str) -> int:
    """A whole number from an annotation file. Raises `BadInputError` if `text` is none."""
    try:
        return int(text)
    except ValueError:
        raise BadInputError(f"{source}: {text!r} should be a whole number: {FIX}") from None
