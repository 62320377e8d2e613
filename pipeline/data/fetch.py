"""Fetch published files from several mirrors. Broken transfers are resumed, and every file is checked before it gets
its final name.

`requests` does HTTP, TLS checks, redirects, proxies (HTTPS_PROXY, NO_PROXY …) and time-outs. Libraries for datasets
(pooch, torch.hub) neither resume a transfer nor try another mirror, so that part is here.

Two environment variables:

- `PIPELINE_MIRRORS`: base addresses, separated by spaces, tried in order instead of the published ones. A mirror serves
  the `data` folder of a machine that has the files: `$PIPELINE_MIRRORS/raw/cub/CUB_200_2011.tgz`. One machine can
  therefore serve a cluster without internet access: `python -m http.server --directory data`.
- `PIPELINE_TIMEOUT`: seconds that a server may be silent before the transfer is stopped and resumed; 60 if not set.
"""

import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from pipeline.base.files import BadInputError
from pipeline.data.checksums import CHECKSUMS, DATA, pin, pins
from pipeline.data.file import File, Package
from pipeline.data.transfer import MirrorError, Transfer, patience, public
from pipeline.data.wheels import unpack

CHUNK = 1 << 20


def fetch(file: File, folder: Path) -> Path:
    """Put `file`, verified, into `folder` (somewhere under `data`) and return its path.

    A file that is already there, from an earlier run or put there by hand, is used if it verifies. If it does not, it
    is left alone and `BadInputError` is raised. If the download fails, `BadInputError` says what each mirror answered
    and how to put the file in place by hand.
    """
    target = folder / file.name
    key = target.relative_to(DATA).as_posix()
    pinned = pins().get(key)
    if _is_there(target):
        found = _digests(target)
        problem = _problem(target, file, pinned, found)
        if problem:
            raise BadInputError(f"{target} is not the published file: {problem}. Remove it, or put the right one there")
    else:
        found = _download(file, target, pinned)
    if not pinned and not file.published and file.check is None:
        print(f"{key} is not pinned, because nothing says what it must hold. Its SHA-256 is {found['sha256']}")
    elif not pinned and len(file.sha256 or "") < 64:
        pin({key: found["sha256"]})
    return target


def _is_there(path: Path) -> bool:
    """Whether a file, or a link to one, is at `path`. Raises `BadInputError` for anything else at `path`, because
    reading a pipe would never end."""
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        raise BadInputError(f"{path}: a folder above it is a file, remove that file") from None
    if kind == stat.S_IFLNK and not path.exists():
        raise BadInputError(f"{path} is a link to nothing: remove the link, or put back the file that it leads to")
    if not path.is_file():
        raise BadInputError(f"{path} is {'a folder' if path.is_dir() else 'a device or a pipe'}, not a file: remove it")
    return True


@contextmanager
def _opened(partial: Path, target: Path) -> Iterator[BinaryIO]:
    """The file `partial`, locked, which holds a part of the download of `target`. Raises `BadInputError` if `partial`
    is a link or a second name of a file, because a file elsewhere would be overwritten."""
    if _is_there(partial) and (partial.is_symlink() or partial.stat().st_nlink > 1):
        raise BadInputError(f"{partial} is a link, and a download would overwrite the file that it leads to: remove it")
    for folder in (partial.parent, target.parent):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise BadInputError(f"{folder} is not a folder: remove it") from None
    with open(partial, "ab", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o666)) as output:
        try:
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInputError(f"{target} is being downloaded by another process: wait for it") from None
        yield output


def _download(file: File, target: Path, pinned: str | None) -> dict[str, str]:
    """Fetch `file` to `target` from the first mirror that gives it complete and correct; return its digests. Raises
    `BadInputError` if none does."""
    patience()
    bases = os.environ.get("PIPELINE_MIRRORS", "").split()
    urls = [f"{base.rstrip('/')}/{target.relative_to(DATA).as_posix()}" for base in bases] or file.urls
    sources: list[str | Package] = [*urls, *([file.package] if file.package and not bases else [])]
    # Beside the folder, not in it, because DVC tracks everything that is in the folder.
    partial = target.parent.with_name(f".{target.parent.name}.{file.name}.download")
    # Without a checksum nobody would notice a file that came partly from one mirror, or day, and partly from another.
    vouched = bool(file.published or pinned)
    failures = []
    with _opened(partial, target) as output:
        for source in sources:
            try:
                # A part that an earlier run or another mirror left may be wrong. Then try once more from the start.
                begun = vouched and isinstance(source, str) and output.seek(0, os.SEEK_END) > 0
                for resumed in (begun, False):
                    if isinstance(source, str):
                        Transfer(source, output, file.name, file.size, vouched, file.at_most).run()
                    else:
                        unpack(source, output)
                    found = _digests(partial)
                    problem = _problem(partial, file, pinned, found)
                    if not problem:
                        os.fsync(output.fileno())
                        partial.replace(target)
                        return found
                    output.truncate(0)
                    if not resumed:
                        raise MirrorError(problem)
            except MirrorError as error:
                failures.append(f"\n  {public(str(source))}: {error}")
    kept = partial.stat().st_size if vouched else 0
    if not kept:
        partial.unlink()
    by_hand = f"get {file.name} from {file.page} and put it at {target}"
    if not sources:
        raise BadInputError(f"{target} is missing, and programs cannot fetch it: {by_hand}")
    resume = f" (it continues after the {kept:,} bytes that have arrived)" if kept else ""
    raise BadInputError(
        f"{target} could not be downloaded:{''.join(failures)}\nRun the stage again{resume}, or {by_hand}"
    )


def _chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file in pieces of at most `CHUNK`, with a progress bar."""
    with (
        path.open("rb") as file,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=f"check {path.name}", disable=None) as bar,
    ):
        while chunk := file.read(CHUNK):
            yield chunk
            bar.update(len(chunk))


def _digests(path: Path) -> dict[str, str]:
    """SHA-256 and MD5 of a file as hexadecimal digits, from a single reading."""
    hashes = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    for chunk in _chunks(path):
        for digest in hashes.values():
            digest.update(chunk)
    return {name: digest.hexdigest() for name, digest in hashes.items()}


def _problem(path: Path, file: File, pinned: str | None, found: dict[str, str]) -> str:
    """What is wrong with the file at `path`; empty if it is the published and pinned file. If there is neither a
    checksum nor a pin, the file must pass its `check`."""
    size = path.stat().st_size
    with path.open("rb") as opened:
        head = opened.read(512).lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "it is a web page"
    if head.startswith((b"<?xml", b"{", b"[")):
        return "it is a message in XML or JSON"
    if file.size not in (None, size):
        return f"{file.size:,} bytes expected, {size:,} found"
    for name, expected in (("sha256", file.sha256), ("md5", file.md5), ("sha256", pinned)):
        if expected and not found[name].startswith(expected):
            where = f" (pinned in {CHECKSUMS})" if expected == pinned else ""
            return f"{name.upper()} {expected} expected{where}, {found[name]} found"
    if not size:
        return "it is empty"
    return "" if file.check is None or file.published or pinned else _misfit(path, file.name, file.check)


def _misfit(path: Path, name: str, check: Callable[[Path], object]) -> str:
    """What `check` finds wrong with the file at `path`; empty if nothing. `check` sees the file under its own
    `name`."""
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=path.parent) as folder:
        shown = Path(folder, name)
        shown.symlink_to(path.absolute())
        try:
            check(shown)
        except BadInputError as error:
            return str(error).replace(str(shown), name)
    return ""


def fetch_all(files: Iterable[File], folder: Path) -> None:
    """`fetch` each of `files`. If some fail, one `BadInputError` at the end lists all failures."""
    failures = []
    for file in files:
        try:
            fetch(file, folder)
        except BadInputError as error:
            failures.append(str(error))
    if failures:
        raise BadInputError("\n".join(failures))
