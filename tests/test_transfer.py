"""Servers that misbehave in every way that was thought of: the right bytes, or one clear line, and always an end."""

import functools
import gzip
import hashlib
import itertools
import os
import re
import time
from pathlib import Path

import pytest

from pipeline.base.files import BadInputError
from pipeline.data import fetch, transfer
from pipeline.data.checksums import CHECKSUMS, pins
from pipeline.data.contents import archive_with
from pipeline.data.file import File
from tests import lookalikes
from tests.server import Served, serve

FOLDER, SECONDS = Path("data/raw/cub"), 20
TARGET = FOLDER / "birds.tgz"
NEEDED = archive_with("CUB_200_2011/images.txt", "CUB_200_2011/image_class_labels.txt", "CUB_200_2011/images/")


@functools.cache
def archive():
    """The bytes of a look-alike of CUB's archive."""
    return lookalikes.tgz(Path("archive.tgz"), lookalikes.cub_files(range(8))).read_bytes()


@pytest.fixture(autouse=True)
def _workplace(tmp_path, monkeypatch):
    """An empty folder, no pauses, no proxies; a file without a size may have 1 MB."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("PAUSE", 0.001), ("MINUTE", 5.0)):
        monkeypatch.setattr(transfer, name, value)
    monkeypatch.setenv("PIPELINE_TIMEOUT", "5")
    for name in ("http_proxy", "HTTP_PROXY", "PIPELINE_MIRRORS"):
        monkeypatch.delenv(name, raising=False)


# What a server sends in answer to a request, as bytes; `content` is the file.


def head(status="200 OK", *lines):
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1")


def sends(*pieces, every=0.0, repeat=None):
    """A script that writes some pieces, and then the piece `repeat` over and over, a pause after each."""

    def script(handler, content):
        deadline = time.monotonic() + SECONDS
        for piece in itertools.chain(pieces, itertools.repeat(repeat) if repeat else ()):
            handler.wfile.write(piece(content) if callable(piece) else piece)
            handler.wfile.flush()
            time.sleep(every)
            if time.monotonic() > deadline:
                return

    return script


def headed(*lines, status="200 OK"):
    """A script that sends the whole file under these headers."""
    return sends(head(status, *lines), lambda content: content)


def chunked(*pieces):
    return sends(head("200 OK", "Transfer-Encoding: chunked"), *pieces)


def parts(first, second, cut_again=True):
    """A script that breaks off in the middle of the whole file, sent with the headers `first`, and answers what is
    asked for the rest by `second(content, start)`. Asked for the whole once more it breaks off again, or does not."""

    def script(handler, content):
        asked = handler.headers.get("Range")
        if asked:
            handler.wfile.write(second(content, int(asked[6:-1])))
            return
        cut = len(content) // 2 if cut_again or not hasattr(handler.server, "asked") else None
        handler.server.asked = True
        handler.wfile.write(head("200 OK", f"Content-Length: {len(content)}", *first) + content[:cut])

    return script


def part(content, start, *lines, shown=None):
    """The rest of the file from `start` as a 206; `shown` is what Content-Range says."""
    shown = shown or f"bytes {start}-{len(content) - 1}/{len(content)}"
    return head("206 Partial Content", f"Content-Range: {shown}", *lines) + content[start:]


def other(content):
    """Bytes as many as the file's, of another one."""
    return bytes(byte ^ 1 for byte in content)


V1, V2 = 'ETag: "v1"', 'ETag: "v2"'
REFUSED = {
    # Headers
    "a length in words": (headed("Content-Length: many"), "announces a length of 'many'"),
    "a length below 0": (headed("Content-Length: -5"), "announces a length of '-5'"),
    "a hexadecimal length": (headed("Content-Length: 0x10"), "announces a length of '0x10'"),
    "a length of 5,000 digits": (headed("Content-Length: " + "9" * 5000), "announces a length of '99"),
    "an empty length": (headed("Content-Length:"), "announces a length of ''"),
    "two lengths": (headed("Content-Length: 5", "Content-Length: 6"), "Content-Length|announces a length"),
    "a negative chunk": (chunked(b"-5\r\nabcde\r\n0\r\n\r\n"), "."),
    "a chunk of no number": (chunked(b"xyz\r\nabcde\r\n0\r\n\r\n"), "."),
    "a chunk of 10,000 digits": (chunked(b"f" * 10_000 + b"\r\nabc"), "."),
    "chunks without an end": (chunked(b"5\r\nabcde\r\n"), "."),
    "no status": (sends(b"\r\n\r\n"), "."),
    "a status of letters": (sends(b"HTTP/1.1 abc OK\r\n\r\n"), "."),
    "another protocol": (sends(b"220 ftp.example ready\r\n"), "."),
    "bytes of any kind": (sends(bytes(range(256)) * 100), "."),
    "a status of 100 kB": (sends(b"HTTP/1.1 200 " + b"x" * 100_000 + b"\r\n\r\n"), "."),
    "a reason with colours": (sends(head("404 \x1b[31mgone")), "404  \\[31mgone"),
    "10,000 headers": (sends(head("200 OK", *(f"X{n}: 1" for n in range(10_000)))), "."),
    "a header of 1 MB": (sends(head("200 OK", "X: " + "x" * 2**20)), "."),
    "nothing at all": (sends(), "(aborted|closed)"),
    **{
        f"status {status}": (sends(head(status, "Content-Length: 0")), status[:3])
        for status in ("204 No Content", "304 Not Modified", "401 Unauthorized", "407 Proxy", "418 I", "451 L", "599 X")
    },
    "a part that nobody asked for": (sends(lambda content: part(content, 5)), "answers the range from 0 with"),
    # Redirects
    "a redirect to itself": (sends(head("302 Found", "Location: /birds", "Content-Length: 0")), "more than 10 times"),
    "a redirect to a file": (sends(head("302 Found", "Location: file:///etc/passwd")), "No connection adapters"),
    "a redirect to nowhere": (sends(head("302 Found", "Location: http://[")), "."),
    "a redirect that is no text": (sends(head("302 Found", "Location: \xff\xfe")), "."),
    "a redirect without a place": (sends(head("302 Found", "Content-Length: 0")), "302"),
    "a redirect with an endless body": (
        sends(head("302 Found", "Location: /birds"), repeat=b"x" * 10_000), "more than 10 times",
    ),
    # What is no file
    "a page of another kind": (headed("Content-Type: text/html"), "answers with a web page"),
    "JSON": (headed("Content-Type: application/problem+json; charset=utf-8"), "answers with a web page"),
    "encoded": (headed("Content-Encoding: br"), "sends the file in the encoding 'br'"),
    # Lengths
    "less than announced": (headed("Content-Length: 1000000"), "offers 1,000,000 bytes|ended|read"),
    "more than the file has": (sends(head(), lambda content: content + b"more"), "sends more than|damaged|expected"),
    "no end": (sends(head(), repeat=b"x" * 65536), "sends more than"),
    "a length without bound": (
        sends(head("200 OK", f"Content-Length: {10**14}"), repeat=b"x" * 65536), "offers 100,000,000,000,000 bytes",
    ),
    "one byte a request": (
        parts(
            (V1,),
            lambda content, at: part(content[: at + 1], at, V1, shown=f"bytes {at}-{at}/{len(content)}"),
        ),
        "40 attempts brought",
    ),
    "chunks without number": (chunked(*[b"5\r\nabcde\r\n"] * 3, *[b"ffff\r\n" + b"x" * 65535 + b"\r\n"] * 200), "."),
}  # fmt: skip
SLOW = {
    "a byte now and then": sends(
        lambda content: head("200 OK", f"Content-Length: {len(content)}"), repeat=b"x", every=0.05
    ),
    "a header now and then": sends(b"HTTP/1.1 200 OK\r\n", repeat=b"X: y\r\n", every=0.05),
    "a letter of a header now and then": sends(b"HTTP/1.1 200 OK\r\nX: ", repeat=b"x", every=0.05),
    "chunks now and then": sends(head("200 OK", "Transfer-Encoding: chunked"), repeat=b"1\r\nx\r\n", every=0.05),
    "a chunk's number now and then": sends(head("200 OK", "Transfer-Encoding: chunked"), repeat=b"0", every=0.05),
    "100 for ever": sends(repeat=b"HTTP/1.1 100 Continue\r\n\r\n", every=0.01),
    "100 for ever, fast": sends(repeat=b"HTTP/1.1 100 Continue\r\n\r\n"),
    "silence": sends(b"", b"", every=1.0),
    "silence in the body": sends(
        lambda content: head("200 OK", f"Content-Length: {len(content)}"), b"x", b"x", every=1.0
    ),
}
UNVOUCHED = {
    # Only what nothing vouches for: a checksum knows these at once.
    "a page as octets": (sends(head(), b"<!DOCTYPE html><title>Quota exceeded</title>"), "it is a web page"),
    "a page after blanks": (sends(head(), b"\n\n  <html><body>Sign in"), "it is a web page"),
    "XML as octets": (sends(head(), b"<?xml version='1.0'?><Error>AccessDenied</Error>"), "a message in XML or JSON"),
    "JSON as octets": (sends(head(), b'{"error": "quota"}'), "a message in XML or JSON"),
    "text": (sends(head(), b"Quota exceeded, come back tomorrow.\n"), "damaged or cut short"),
    "nothing": (sends(head("200 OK", "Content-Length: 0")), "it is empty"),
    "encoded once more": (sends(head("200 OK", "Content-Encoding: gzip"), gzip.compress), "damaged or cut short"),
    "cut where it has no length": (sends(head(), lambda content: content[:-100]), "damaged or cut short"),
    "another archive": (sends(head(), lambda content: archive_of({"a.txt": b"a"})), "holds no CUB_200_2011/images.txt"),
    "no images": (
        sends(head(), lambda content: archive_of(
            {f"CUB_200_2011/{name}.txt": b"" for name in ("images", "image_class_labels")})),
        "holds no CUB_200_2011/images/: this is another archive",
    ),
    "parts without a tag": (parts((), lambda content, start: part(content, start)), "must come in one piece"),
    "other bytes under one tag": (
        parts((V1,), lambda content, start: part(content, start, V1)[:-len(content[start:])] + other(content)[start:]),
        "damaged or cut short",
    ),
    "a tag that went": (parts((V1,), lambda content, start: part(content, start)), "has changed|IncompleteRead"),
    "another tag": (parts((V1,), lambda content, start: part(other(content), start, V2)), "has changed|IncompleteRead"),
}  # fmt: skip
RANGES = {
    "5,000 digits": lambda content, start: f"bytes {start}-{'9' * 5000}/{'9' * 5000}",
    "none": lambda content, start: "",
    "another unit": lambda content, start: f"items {start}-{len(content) - 1}/{len(content)}",
    "another start": lambda content, start: f"bytes {start - 1}-{len(content) - 1}/{len(content)}",
    "an end before its start": lambda content, start: f"bytes {start}-{start - 1}/{len(content)}",
    "an end beyond the file": lambda content, start: f"bytes {start}-{len(content)}/{len(content)}",
}
REFUSED |= {
    f"a range of {name}": (
        parts((V1,), lambda content, start, shown=shown: part(content, start, V1, shown=shown(content, start) or "-")),
        "answers the range from [0-9]+ with",
    )
    for name, shown in RANGES.items()
}
REFUSED["a part longer than its range"] = (
    parts((V1,), lambda content, start: part(content, start, V1) + b"more"), "sends more than the [0-9,]+ bytes",
)  # fmt: skip
GOOD = {
    "a page that comes right": headed("Content-Type: application/gzip"),
    "a .tgz called gzip-encoded": headed("Content-Encoding: gzip"),
    "chunks": sends(
        head("200 OK", "Transfer-Encoding: chunked"),
        lambda content: b"%x;name=value\r\n" % len(content) + content + b"\r\n0\r\nX: y\r\n\r\n",
    ),
    "chunks and a length": sends(
        head("200 OK", "Transfer-Encoding: chunked", "Content-Length: 7"),
        lambda content: b"%x\r\n" % len(content) + content + b"\r\n0\r\n\r\n",
    ),
    "one 100 before": sends(b"HTTP/1.1 100 Continue\r\n\r\n", head(), lambda content: content),
    "one length twice": sends(lambda content: head("200 OK", *[f"Content-Length: {len(content)}"] * 2) + content),
    "parts of one tag": parts((V1,), lambda content, start: part(content, start, V1)),
    "short parts of one tag": parts(
        (V1,),
        lambda content, start: part(
            content[: start + 3000],
            start,
            V1,
            shown=f"bytes {start}-{min(len(content), start + 3000) - 1}/{len(content)}",
        ),
    ),
    "begun again when it has changed": parts(
        (V1,), lambda content, start: part(other(content), start, V2), cut_again=False
    ),
    "begun again without a tag": parts((), lambda content, start: part(content, start), cut_again=False),
}


def archive_of(files):
    return lookalikes.tgz(Path("other.tgz"), files).read_bytes()


def described(url, content, vouched):
    """The file as a dataset describes it: with a checksum, or without one but with what it must hold."""
    known = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} if vouched else {}
    return File("birds.tgz", (url,), "https://example.org/birds", check=NEEDED, at_most=10**6, **known)


def fetched(script, vouched):
    """Fetch the look-alike from a server that answers by `script`."""
    content = archive()
    served = Served(content, script=lambda handler: script(handler, content))
    with serve({"/birds": served}) as base:
        fetch.fetch(described(f"{base}/birds", content, vouched), FOLDER)
    return content


def left_over():
    return sorted(path.name for path in Path("data").rglob("*") if path.is_file() and not path.name.startswith("."))


@pytest.mark.parametrize("vouched", [True, False], ids=["checksum", "no checksum"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_server_that_misbehaves_is_left_with_one_clear_line(case, vouched):
    script, message = REFUSED[case]
    with pytest.raises(BadInputError) as raised:
        fetched(script, vouched)
    lines = str(raised.value).splitlines()
    assert lines[0] == f"{TARGET} could not be downloaded:" and len(lines) == 3 and all(map(str.isprintable, lines))
    assert re.search(message, lines[1].split("/birds: ", 1)[1]), lines[1]
    assert len(lines[1]) < 700 and left_over() == [] and not CHECKSUMS.exists()


@pytest.mark.parametrize("vouched", [True, False], ids=["checksum", "no checksum"])
@pytest.mark.parametrize("case", SLOW)
def test_a_server_that_is_never_done_is_left(monkeypatch, case, vouched):
    monkeypatch.setattr(transfer, "MINUTE", 0.2)
    monkeypatch.setattr(transfer, "TRIES", 2)
    monkeypatch.setenv("PIPELINE_TIMEOUT", "0.2")
    with pytest.raises(BadInputError, match=r"/birds: (less than 1,000 bytes a second came|.*[Tt]imed out|.* headers)"):
        fetched(SLOW[case], vouched)
    assert left_over() == [] and not CHECKSUMS.exists()


@pytest.mark.parametrize("case", UNVOUCHED)
def test_without_a_checksum_a_file_is_pinned_only_if_it_holds_what_it_must(case):
    script, message = UNVOUCHED[case]
    with pytest.raises(BadInputError, match=rf"/birds: .*({message})"):
        fetched(script, False)
    assert left_over() == [] and not CHECKSUMS.exists()
    assert sorted(path.name for path in Path("data/raw").iterdir()) == ["cub"]


@pytest.mark.parametrize("vouched", [True, False], ids=["checksum", "no checksum"])
@pytest.mark.parametrize("case", GOOD)
def test_an_odd_but_right_answer_is_taken(case, vouched):
    content = fetched(GOOD[case], vouched)
    assert TARGET.read_bytes() == content and left_over() == (["birds.tgz"] if vouched else ["birds.tgz", "checksums"])
    assert pins() == ({} if vouched else {"raw/cub/birds.tgz": hashlib.sha256(content).hexdigest()})


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "-inf", "1e9", "", "long", "1,5"])
def test_a_bad_time_limit_is_named(monkeypatch, given):
    monkeypatch.setenv("PIPELINE_TIMEOUT", given)
    with pytest.raises(
        BadInputError, match=r"PIPELINE_TIMEOUT should be a number of seconds: above 0 and up to 3600, fo"
    ):
        fetch.fetch(described("http://127.0.0.1:9/", archive(), True), FOLDER)


SECRETS = [
    "http://me:hidden@127.0.0.1:9",
    "http://me:hid%40den@127.0.0.1:9/",
    "http://me:hidden@[",
    "me:hidden@127.0.0.1:9",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "PIPELINE_MIRRORS"])
def test_passwords_in_addresses_are_not_printed(monkeypatch, capfd, variable, secret):
    monkeypatch.setenv(variable, secret)
    with pytest.raises(BadInputError) as raised:
        fetch.fetch(described("http://birds.invalid/birds", archive(), True), FOLDER)
    message = str(raised.value) + "".join(capfd.readouterr())
    assert "hid" not in message and "me:" not in message and str(raised.value).count("\n") == 2


def places():
    """What may stand where a file or its part belongs: its kind, how it is put there, and what is said of it."""

    def linked(path):
        Path("theirs").write_bytes(b"theirs")
        path.symlink_to(Path("theirs").absolute())

    def twice(path):
        Path("theirs").write_bytes(b"theirs")
        path.hardlink_to("theirs")

    return {
        "pipe": (os.mkfifo, "is a device or a pipe, not a file"),
        "folder": (Path.mkdir, "is a folder, not a file"),
        "device": (lambda path: path.symlink_to("/dev/zero"), "is a device or a pipe, not a file"),
        "link to nothing": (lambda path: path.symlink_to("none"), "is a link to nothing"),
        "link to itself": (lambda path: path.symlink_to(path.name), "is a link to nothing"),
        "link to a file": (linked, "is a link, and a download would overwrite"),
        "second name of a file": (twice, "is a link, and a download would overwrite"),
    }


@pytest.mark.parametrize("kind", places())
@pytest.mark.parametrize("path", [TARGET, Path("data/raw/.cub.birds.tgz.download")], ids=["file", "part"])
def test_what_is_no_file_is_neither_read_nor_overwritten(path, kind):
    make, message = places()[kind]
    FOLDER.mkdir(parents=True)
    make(path)
    if path == TARGET and "download" in message:
        message = "is not the published file"  # a link is read: DVC's cache may be linked to
    with (
        serve({"/birds": Served(archive())}) as base,
        pytest.raises(BadInputError, match=f"{re.escape(str(path))} {message}"),
    ):
        fetch.fetch(described(f"{base}/birds", archive(), True), FOLDER)
    assert not Path("theirs").exists() or Path("theirs").read_bytes() == b"theirs"


@pytest.mark.parametrize("place", ["data", "data/raw", "data/raw/cub"])
def test_a_file_where_a_folder_belongs_is_named(place):
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Path(place).write_bytes(b"theirs")
    with pytest.raises(BadInputError, match=r"is not a folder: remove it|a folder above it is a file"):
        fetch.fetch(described("http://127.0.0.1:9/", archive(), True), FOLDER)
    assert Path(place).read_bytes() == b"theirs"


def test_a_file_put_there_by_hand_is_pinned_only_if_it_holds_what_it_must():
    FOLDER.mkdir(parents=True)
    file = described("", archive(), False)._replace(urls=())
    for content, said in (
        (archive()[:-9], "damaged or cut short"),
        (archive_of({"a": b""}), "holds no CUB_200_2011/im"),
    ):
        TARGET.write_bytes(content)
        with pytest.raises(BadInputError, match=rf"is not the published file: birds\.tgz .*{said}.* Remove it, or put"):
            fetch.fetch(file, FOLDER)
        assert TARGET.read_bytes() == content and not CHECKSUMS.exists()
    TARGET.write_bytes(archive())
    fetch.fetch(file, FOLDER)
    assert list(pins()) == ["raw/cub/birds.tgz"]


def test_what_nothing_is_known_of_is_kept_and_not_pinned(capsys):
    FOLDER.mkdir(parents=True)
    TARGET.write_bytes(b"anything")
    fetch.fetch(described("", archive(), False)._replace(check=None), FOLDER)
    assert "raw/cub/birds.tgz is not pinned, because nothing says what it must hold" in capsys.readouterr().out
    assert not CHECKSUMS.exists()
