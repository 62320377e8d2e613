"""Fetch published files: several mirrors, broken transfers resumed, every file checked before it gets its name.

`requests` does HTTP, TLS checks, redirects, proxies (HTTPS_PROXY, NO_PROXY …) and time-outs. Libraries made for data
sets (pooch, torch.hub) neither resume nor go on to another mirror, so that part is here.

Two environment variables:

- `PIPELINE_MIRRORS`: base addresses, separated by spaces, tried in order in place of the published ones. A mirror
  serves the `data` folder of a machine that has the files: `$PIPELINE_MIRRORS/raw/cub/CUB_200_2011.tgz`. So one machine
  can serve a cluster without a way out: `python -m http.server --directory data`.
- `PIPELINE_TIMEOUT`: seconds that a server may be silent before the transfer is broken off and resumed, 60 if not set.
"""

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import requests
import urllib3
from tqdm import tqdm

from pipeline.base.files import BadInputError
from pipeline.data.checksums import CHECKSUMS, DATA, pin, pins

TRIES = 4
"""Attempts in a row that bring nothing new before a mirror is given up."""

PAUSE = 1.0
"""Seconds before a transfer goes on; doubled after each attempt that brought nothing."""

CHUNK = 1 << 20


class File(NamedTuple):
    """A published file. `page` says where a person finds it; `sha256` may be its first digits only, as torch.hub puts
    them into file names; `size` is in bytes; what is None was never published."""

    name: str
    urls: tuple[str, ...]
    page: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None


class _MirrorError(Exception):
    """This mirror cannot give the file: go on to the next one."""


def fetch(file: File, folder: Path) -> Path:
    """Put `file`, verified, into `folder` (somewhere under `data`) and return its path.

    A file that is there already, by an earlier run or by hand, is taken if it verifies and left alone if it does not.
    Raises `BadInputError` with what each mirror said and how to put the file in place by hand.
    """
    target = folder / file.name
    key = target.relative_to(DATA).as_posix()
    pinned = pins().get(key)
    if target.exists():
        found = _digests(target)
        problem = _problem(target, file, pinned, found)
        if problem:
            raise BadInputError(f"{target} is not the published file: {problem}. Remove it, or put the right one there")
    else:
        found = _download(file, target, pinned)
    if not pinned and len(file.sha256 or "") < 64:
        pin({key: found["sha256"]})
    return target


def _download(file: File, target: Path, pinned: str | None) -> dict[str, str]:
    """Fetch `file` to `target` from the first mirror that gives it whole and right; return its digests."""
    bases = os.environ.get("PIPELINE_MIRRORS", "").split()
    urls = [f"{base.rstrip('/')}/{target.relative_to(DATA).as_posix()}" for base in bases] or file.urls
    # Beside the folder, not in it: DVC takes the folder as it is.
    partial = target.parent.with_name(f".{target.parent.name}.{file.name}.download")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Without a checksum nobody would notice a file begun on one mirror, or one day, and ended on another.
    resumable = bool(file.sha256 or file.md5 or pinned)
    failures = []
    with partial.open("ab") as output:
        try:
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInputError(f"{target} is being downloaded by another process: wait for it") from None
        for url in urls:
            if not resumable:
                output.truncate(0)
            try:
                # A part that an earlier run or another mirror left may be wrong: then once more from the start.
                for resumed in (output.seek(0, os.SEEK_END) > 0, False):
                    _transfer(url, output, file)
                    found = _digests(partial)
                    problem = _problem(partial, file, pinned, found)
                    if not problem:
                        os.fsync(output.fileno())
                        partial.replace(target)
                        return found
                    output.truncate(0)
                    if not resumed:
                        raise _MirrorError(problem)
            except _MirrorError as error:
                failures.append(f"\n  {url}: {error}")
    kept = partial.stat().st_size if resumable else 0
    if not kept:
        partial.unlink()
    by_hand = f"get {file.name} from {file.page} and put it at {target}"
    if not urls:
        raise BadInputError(f"{target} is missing, and programs cannot fetch it: {by_hand}")
    resume = f" (it goes on from the {kept:,} bytes that came)" if kept else ""
    raise BadInputError(
        f"{target} could not be downloaded:{''.join(failures)}\nRun the stage again{resume}, or {by_hand}"
    )


def _transfer(url: str, output: BinaryIO, file: File) -> None:
    """Append to `output` until it holds what `url` serves, going on where a broken transfer stopped."""
    size = file.size
    try:
        timeout = float(os.environ.get("PIPELINE_TIMEOUT", "60"))
    except ValueError as error:
        raise BadInputError(f"PIPELINE_TIMEOUT should be a number of seconds: {error}") from None
    version, furthest, attempt = "", output.tell(), 0
    if size is not None and furthest > size:
        output.truncate(0)
    while output.seek(0, os.SEEK_END) != size:
        offset = output.tell()
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if version:
                headers["If-Range"] = version
        try:
            with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
                total = _total(response, offset)
                if size is not None and total not in (size, None):
                    raise _MirrorError(f"offers {total:,} bytes where {size:,} are expected")
                if response.status_code == 416 and total == offset:
                    return
                if response.status_code != 206:
                    output.truncate(0)
                    offset = 0
                if response.status_code == 416:
                    raise requests.HTTPError("416: what came before is longer than the file")
                version = response.headers.get("ETag", "")
                if not version or version.startswith("W/"):
                    # A weak tag does not promise the same bytes, so If-Range may not carry it.
                    version = response.headers.get("Last-Modified", "")
                _write(response, output, offset, total, file.name)
                end = total or size
                if end in (None, output.tell()):
                    return
                reason = f"the connection ended at {output.tell():,} of {end:,} bytes"
        except (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
            if isinstance(error, ValueError):
                # requests' word for an address that is none
                raise _MirrorError(str(error)) from None
            # Its first argument is the message; others repeat it as objects.
            reason = str(error.args[0] if error.args else "") or type(error).__name__
        length = output.seek(0, os.SEEK_END)
        attempt = 0 if length > furthest else attempt + 1
        furthest = max(furthest, length)
        if attempt == TRIES:
            raise _MirrorError(reason)
        time.sleep(PAUSE * 2**attempt)


def _total(response: requests.Response, offset: int) -> int | None:
    """Bytes of the whole file as the server tells them, None where it does not. Raises `_MirrorError` for an answer
    that is no file, and `requests.HTTPError` for one that may be another next time."""
    status = response.status_code
    if status in (408, 425, 429) or status >= 500:
        raise requests.HTTPError(f"{status} {response.reason}")
    if status not in (200, 206, 416):
        raise _MirrorError(f"{status} {response.reason}")
    if status != 416 and response.headers.get("Content-Type", "").startswith("text/html"):
        raise _MirrorError("answers with a web page, not with the file")
    if status == 200:
        length = response.headers.get("Content-Length")
        return int(length) if length else None
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if status == 206 and (not match or match[1] != str(offset)):
        raise _MirrorError(f"answers the range from {offset} with {response.headers.get('Content-Range')!r}")
    return int(match[2]) if match and match[2] != "*" else None


def _write(response: requests.Response, output: BinaryIO, offset: int, total: int | None, name: str) -> None:
    """Append the body of `response` to `output` as it comes, with a progress bar; an error in writing is not caught."""
    with tqdm(total=total, initial=offset, unit="B", unit_scale=True, desc=name, disable=None) as bar:
        # Not iter_content: it would unpack a .tgz that is served with Content-Encoding: gzip.
        for chunk in response.raw.stream(CHUNK, decode_content=False):
            try:
                output.write(chunk)
                output.flush()
            except OSError as error:
                error.filename = output.name
                raise
            bar.update(len(chunk))


def _chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, piece by piece, with a progress bar."""
    with (
        path.open("rb") as file,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=f"check {path.name}", disable=None) as bar,
    ):
        while chunk := file.read(CHUNK):
            yield chunk
            bar.update(len(chunk))


def _digests(path: Path) -> dict[str, str]:
    """SHA-256 and MD5 of a file in one reading, as hexadecimal digits."""
    hashes = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    for chunk in _chunks(path):
        for digest in hashes.values():
            digest.update(chunk)
    return {name: digest.hexdigest() for name, digest in hashes.items()}


def _problem(path: Path, file: File, pinned: str | None, found: dict[str, str]) -> str:
    """What is wrong with the file at `path`; empty where it is what was published and pinned."""
    size = path.stat().st_size
    with path.open("rb") as opened:
        head = opened.read(512).lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "it is a web page"
    if file.size not in (None, size):
        return f"{file.size:,} bytes expected, {size:,} found"
    for name, expected in (("sha256", file.sha256), ("md5", file.md5), ("sha256", pinned)):
        if expected and not found[name].startswith(expected):
            where = f" (pinned in {CHECKSUMS})" if expected == pinned else ""
            return f"{name.upper()} {expected} expected{where}, {found[name]} found"
    return "" if size else "it is empty"


def fetch_all(files: Iterable[File], folder: Path) -> None:
    """`fetch` each of `files`; where several fail, one `BadInputError` tells all."""
    failures = []
    for file in files:
        try:
            fetch(file, folder)
        except BadInputError as error:
            failures.append(str(error))
    if failures:
        raise BadInputError("\n".join(failures))
