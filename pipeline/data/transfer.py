"""One file from one address over HTTP. A broken transfer is resumed; an address that does not work is given up.

`requests` does HTTP, TLS checks, proxies and time-outs. Its time-out measures silence, however, and a server that sends
a byte now and then is never silent. A clock therefore ends an attempt that brings almost nothing in a minute, whether
in the headers, in redirects or in the body.
"""

import math
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import BinaryIO
from urllib.parse import urljoin

import requests
import urllib3
from tqdm import tqdm

from pipeline.base.files import BadInputError

TRIES = 4
"""An address is given up after this many attempts in a row that bring nothing new, or too little."""

PAUSE = 1.0
"""Seconds before a transfer is resumed; doubled after each attempt that brought nothing."""

MINUTE = 60.0
"""Seconds over which an attempt must bring `FLOOR` bytes per second on average; PIPELINE_TIMEOUT if that is longer."""

FLOOR = 1000
"""Bytes per second."""

CHUNK = 1 << 14
"""Bytes that are collected before they are written. They are few, so that a slow transfer shows progress."""

REDIRECTS = 10

LEAST = 20 * CHUNK
"""Bytes that `ROUNDS` attempts in a row must bring together. Otherwise the server gives the file in crumbs, and would
go on for months."""

ROUNDS = 40

LONGEST_TIMEOUT = 3600


class MirrorError(Exception):
    """This address cannot give the file. The caller tries the next one."""


class _SlowError(Exception):
    """This attempt has brought almost nothing for a minute."""


UNKNOWN_HOST = "the name of this server is not known here: is there a network?"


def _reason(error: Exception) -> str:
    """What went wrong with a connection, in one sentence. The errors of requests and urllib3 hold each other, as their
    first argument or as their reason, and their texts repeat all of it."""
    inner: object = error
    while isinstance(inner, Exception):
        if isinstance(inner, urllib3.exceptions.NameResolutionError):
            return UNKNOWN_HOST
        for system in (inner, inner.__cause__):
            if isinstance(system, OSError) and system.strerror:
                return public(system.strerror)
        last, inner = inner, getattr(inner, "reason", None) or (inner.args[0] if inner.args else None)
    return public(str(inner or last)) or type(error).__name__


def public(text: str) -> str:
    """`text` without the names and passwords in its addresses, without characters that cannot be printed, and short."""
    text = re.sub(r"[^/\s'\"@]+@", "", text[:2000])
    return "".join(letter if letter.isprintable() else " " for letter in text[:300])


def patience() -> float:
    """Seconds that a server may be silent, from PIPELINE_TIMEOUT. Raises `BadInputError` for a value that is none."""
    given = os.environ.get("PIPELINE_TIMEOUT", "60")
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise BadInputError(
            f"PIPELINE_TIMEOUT should be a number of seconds: above 0 and up to {LONGEST_TIMEOUT}, found {given!r}"
        )
    return seconds


@contextmanager
def _floor(output: BinaryIO, seconds: float) -> Iterator[None]:
    """Raise `_SlowError` in the block as soon as `output` grows by less than `FLOOR` bytes per second over
    `seconds`."""
    before = os.fstat(output.fileno()).st_size

    def look(number: int, frame: FrameType | None) -> None:
        nonlocal before
        size = os.fstat(output.fileno()).st_size
        if before <= size < before + FLOOR * seconds:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise _SlowError(f"less than {FLOOR:,} bytes a second came for {seconds:g} seconds")
        before = size

    handler = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@dataclass
class Transfer:
    """Write what `url` serves to `output`, which is opened for appending. `size` is that of the whole file in bytes,
    None if it is not known; then the file may have `at_most` bytes.

    `vouched` says whether the file has a checksum or a pin. If it has neither, it must come in one transfer, or in
    parts to which the server gives the same strong ETag. The earlier content of `output` is then discarded.
    """

    url: str
    output: BinaryIO
    name: str
    size: int | None
    vouched: bool
    at_most: int
    etag: str = ""
    """The strong ETag of the content of `output`."""
    modified: str = ""
    """The time of that content on the server (Last-Modified)."""

    def run(self) -> None:
        """Append to `output` until it is complete, and resume broken transfers. Raises `MirrorError` if the address
        does not give the file."""
        timeout, output = patience(), self.output
        furthest, attempt = output.seek(0, os.SEEK_END) if self.vouched else 0, 0
        reached: list[int] = []
        if not self.vouched or (self.size is not None and furthest > self.size):
            output.truncate(0)
        while output.seek(0, os.SEEK_END) != self.size:
            slow = False
            try:
                with _floor(output, max(MINUTE, timeout)):
                    reason = self._attempt(timeout)
                if not reason:
                    return
            except _SlowError as error:
                reason, slow = str(error), True
            except (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
                if isinstance(error, ValueError):
                    # requests and urllib3 raise ValueErrors for invalid addresses and headers.
                    raise MirrorError(public(str(error))) from None
                reason = _reason(error)
                if reason == UNKNOWN_HOST and not furthest:
                    raise MirrorError(reason) from None
            except ValueError as error:
                raise MirrorError(f"the server's answer cannot be read ({public(str(error))})") from None
            length = output.seek(0, os.SEEK_END)
            attempt = 0 if length > furthest and not slow else attempt + 1
            furthest = max(furthest, length)
            if not self.vouched and not self.etag:
                output.truncate(0)
                reason += "; a file without a checksum must come in one piece, or in parts with one strong ETag"
            reached.append(furthest)
            if len(reached) > ROUNDS and furthest - reached[-ROUNDS - 1] < LEAST:
                raise MirrorError(f"{ROUNDS} attempts brought {furthest - reached[-ROUNDS - 1]:,} bytes; {reason}")
            if attempt == TRIES:
                raise MirrorError(reason)
            print(f"{self.name}: {reason}; tried again in {PAUSE * 2**attempt:g} s", file=sys.stderr, flush=True)
            time.sleep(PAUSE * 2**attempt)

    def _attempt(self, timeout: float) -> str:
        """Make one request. Return why another request is needed, or "" if `output` is complete."""
        offset = self.output.seek(0, os.SEEK_END)
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if version := self.etag or self.modified:
                headers["If-Range"] = version
        with _answer(self.url, headers, timeout) as response:
            total, end = _extent(response, offset, self.name)
            if self.size is not None and total not in (self.size, None):
                raise MirrorError(f"the server offers {total:,} bytes, but {self.size:,} are expected")
            if total is not None and total > self.at_most and self.size is None:
                raise MirrorError(f"the server offers {total:,} bytes, but the file has at most {self.at_most:,}")
            if response.status_code == 416:
                if total == offset:
                    return ""
                self.output.truncate(0)
                return "416: the part that came before is longer than the file"
            if response.status_code == 200:
                self.output.truncate(0)
                offset = 0
            elif self._has_changed(response):
                self.output.truncate(0)
                self.etag = self.modified = ""
                return "the file changed on the server during the transfer"
            self.etag, self.modified = _etag(response), response.headers.get("Last-Modified", "")
            end = self.size if end is None else end
            _write(response, self.output, offset, end, self.at_most if end is None else end, self.name)
            wanted, length = total or self.size, self.output.tell()
            return "" if wanted in (None, length) else f"the connection ended after {length:,} of {wanted:,} bytes"

    def _has_changed(self, response: requests.Response) -> bool:
        """Whether, according to the server's headers, this part belongs to another file than the earlier parts."""
        etag, modified = _etag(response), response.headers.get("Last-Modified", "")
        if self.etag and etag != self.etag and (etag or not self.vouched):
            return True
        return bool(self.modified and modified and modified != self.modified)


def _etag(response: requests.Response) -> str:
    """The strong ETag of an answer, otherwise "". A weak ETag does not promise the same bytes, so If-Range must not use
    it."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else ""


def _answer(url: str, headers: dict[str, str], timeout: float) -> requests.Response:
    """The answer to a request, after redirects. Raises `MirrorError` for more than `REDIRECTS` redirects."""
    with requests.Session() as session:
        for _ in range(REDIRECTS):
            request = session.prepare_request(requests.Request("GET", url, headers))
            settings = session.merge_environment_settings(request.url or "", {}, True, None, None)
            # Not session.send, which reads the whole body of a redirect, whether it is followed or not.
            response = session.get_adapter(request.url or "").send(request, timeout=timeout, **settings)
            target = session.get_redirect_target(response)
            if target is None:
                return response
            response.close()
            url = urljoin(url, target)
    raise MirrorError(f"the server redirects more than {REDIRECTS} times")


def _extent(response: requests.Response, offset: int, name: str) -> tuple[int | None, int | None]:
    """The size in bytes of the whole file, and the position in the file at which the body ends, both by the server's
    headers; None if the headers do not say. Raises `MirrorError` for an answer that is no file, and
    `requests.HTTPError` for an answer that may be different next time."""
    status, reason = response.status_code, public(response.reason or "")[:80]
    if status in (408, 425, 429) or status >= 500:
        raise requests.HTTPError(f"{status} {reason}")
    if status not in (200, 206, 416):
        raise MirrorError(f"{status} {reason}")
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if status != 416 and (kind in ("text/html", "application/xhtml+xml") or kind.endswith("json")):
        raise MirrorError("the server answers with a web page, not with the file")
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    # Some servers declare a .tgz file to be gzip-encoded although they send it unchanged.
    if encoding not in ("", "identity") and not (encoding in ("gzip", "x-gzip") and name.endswith((".tgz", ".gz"))):
        raise MirrorError(
            f"the server sends the file in the encoding {public(encoding)!r}, but no encoding was asked for"
        )
    if status == 200:
        given = response.headers.get("Content-Length")
        if given is None or "chunked" in response.headers.get("Transfer-Encoding", "").lower():
            return None, None
        lengths = {length.strip() for length in given.split(",")}
        if len(lengths) > 1 or not re.fullmatch(r"[0-9]{1,15}", given := lengths.pop()):
            raise MirrorError(f"the server announces a length of {public(given)[:80]!r}")
        return int(given), int(given)
    content_range = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (?:([0-9]{1,15})-([0-9]{1,15})|\*)/([0-9]{1,15}|\*)", content_range)
    total = int(match[3]) if match and match[3] != "*" else None
    if status == 416:
        return total, None
    end = int(match[2]) + 1 if match and match[2] else 0
    if not match or match[1] != str(offset) or end <= offset or (total is not None and end > total):
        raise MirrorError(f"the server answers the range from {offset} with {public(content_range)[:80]!r}")
    return total, end


def _write(
    response: requests.Response, output: BinaryIO, offset: int, end: int | None, at_most: int, name: str
) -> None:
    """Append the body of `response` to `output` piece by piece, with a progress bar up to `end`, if that is known.
    Raises `MirrorError` if the file grows beyond `at_most` bytes. Errors of writing are not caught."""
    with tqdm(total=end, initial=offset, unit="B", unit_scale=True, desc=name, disable=None) as bar:
        # Not iter_content, which would unpack a .tgz that is served with Content-Encoding: gzip.
        for chunk in response.raw.stream(CHUNK, decode_content=False):
            offset += len(chunk)
            if offset > at_most:
                output.truncate(0)
                raise MirrorError(f"the server sends more than the {at_most:,} bytes that the file can have")
            try:
                output.write(chunk)
                output.flush()
            except OSError as error:
                error.filename = output.name
                raise
            bar.update(len(chunk))
