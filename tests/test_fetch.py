"""Fetching from servers that misbehave: whole and right under its name, or not there at all."""

import hashlib
import os
import random
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.base.files import BadInputError, sha256
from pipeline.data import fetch, transfer
from pipeline.data.checksums import CHECKSUMS, pins
from pipeline.data.file import File
from tests import lookalikes
from tests.lookalikes import CUB_COUNTS, project, stage
from tests.server import Served, serve

CONTENT = random.Random(0).randbytes(400_000)
FOLDER = Path("data/raw/cub")
TARGET = FOLDER / "birds.tgz"


@pytest.fixture(autouse=True)
def _workplace(tmp_path, monkeypatch):
    """An empty folder, no pauses, no proxies."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transfer, "PAUSE", 0.001)
    for name in ("http_proxy", "HTTP_PROXY", "PIPELINE_MIRRORS"):
        monkeypatch.delenv(name, raising=False)


def published(*urls: str, **fields: object) -> File:
    """A file as a dataset describes it, with its true size and SHA-256; without one it may hold anything."""
    known = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest(), "check": lambda path: None} | fields
    return File("birds.tgz", urls, "https://example.org/birds", **known)  # type: ignore[arg-type]


def left_over() -> list[str]:
    """What the folders hold besides the file itself."""
    return sorted(path.name for path in Path("data/raw").rglob("*") if path.is_file() and path != TARGET)


def test_mirrors_are_tried_in_order_and_a_good_one_ends_it():
    files = {
        "/good": Served(CONTENT),
        "/wrong": Served(CONTENT[:-1] + b"?"),
        "/html": Served(b"x", content_type="text/html"),
    }
    with serve(files) as base:
        fetch.fetch(published(f"{base}/gone", f"{base}/html", f"{base}/wrong", f"{base}/good", f"{base}/never"), FOLDER)
    assert TARGET.read_bytes() == CONTENT
    assert left_over() == []


def test_an_error_says_what_each_mirror_said_and_what_to_do_by_hand():
    flipped = bytearray(CONTENT)
    flipped[200_000] ^= 1
    files = {
        "/flipped": Served(bytes(flipped)),
        "/page": Served(b"<!DOCTYPE html><title>Sign in</title>".ljust(len(CONTENT)), content_type="application/zip"),
        "/short": Served(CONTENT[:-1]),
        "/html": Served(b"<html>", content_type="text/html; charset=utf-8"),
    }
    with serve(files) as base, pytest.raises(BadInputError) as error:
        fetch.fetch(published(*(f"{base}/{name}" for name in ("gone", "flipped", "page", "short", "html"))), FOLDER)
    expected, found = hashlib.sha256(CONTENT).hexdigest(), hashlib.sha256(flipped).hexdigest()
    assert str(error.value) == (
        f"{TARGET} could not be downloaded:\n"
        f"  {base}/gone: 404 Not Found\n"
        f"  {base}/flipped: SHA256 {expected} expected, {found} found\n"
        f"  {base}/page: it is a web page\n"
        f"  {base}/short: the server offers 399,999 bytes, but 400,000 are expected\n"
        f"  {base}/html: the server answers with a web page, not with the file\n"
        f"Run the stage again, or get birds.tgz from https://example.org/birds and put it at {TARGET}"
    )
    assert not TARGET.exists()
    assert left_over() == []


def test_md5_is_checked_where_it_is_all_that_is_published():
    file = published(size=None, sha256=None, md5=hashlib.md5(CONTENT).hexdigest())
    with serve({"/good": Served(CONTENT), "/wrong": Served(CONTENT[1:])}) as base:
        with pytest.raises(BadInputError, match=r"MD5 \w{32} expected, \w{32} found"):
            fetch.fetch(file._replace(urls=(f"{base}/wrong",)), FOLDER)
        fetch.fetch(file._replace(urls=(f"{base}/good",)), FOLDER)
    assert TARGET.read_bytes() == CONTENT


def test_503_then_good():
    served = Served(CONTENT, statuses=[503, 429, 500])
    with serve({"/birds": served}) as base:
        fetch.fetch(published(f"{base}/birds"), FOLDER)
    assert TARGET.read_bytes() == CONTENT
    assert len(served.requests) == 4


def test_503_for_ever_is_given_up():
    with (
        serve({"/birds": Served(CONTENT, statuses=[503] * 99)}) as base,
        pytest.raises(BadInputError, match="birds: 503"),
    ):
        fetch.fetch(published(f"{base}/birds"), FOLDER)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("etag", ["", '"v1"', 'W/"v1"'])
@pytest.mark.parametrize("known", [True, False], ids=["published", "unpublished"])
def test_cut_at_random_offsets_it_is_resumed_until_whole(seed, etag, known):
    generator = random.Random(seed)
    served = Served(CONTENT, cuts=[generator.randrange(0, 60_000) for _ in range(30)] + [None], etag=etag)
    with serve({"/birds": served}) as base:
        file = published(f"{base}/birds") if known else published(f"{base}/birds", size=None, sha256=None)
        if not known and not etag.startswith('"'):
            with pytest.raises(
                BadInputError, match="a file without a checksum must come in one piece, or in parts with one strong"
            ):
                fetch.fetch(file, FOLDER)
            assert not any(served.requests) and left_over() == [] and not CHECKSUMS.exists()
            return
        fetch.fetch(file, FOLDER)
    assert TARGET.read_bytes() == CONTENT
    starts = [int(asked[6:-1]) for asked in served.requests[1:] if asked]
    assert starts == sorted(starts)
    assert len(starts) > 5


@pytest.mark.parametrize("etag", ["", 'W/"v1"'])
def test_a_download_without_checksum_restarts_until_it_comes_whole(etag):
    served = Served(CONTENT, cuts=[100_000, 50_000, None], etag=etag)
    with serve({"/birds": served}) as base:
        fetch.fetch(published(f"{base}/birds", size=None, sha256=None), FOLDER)
    assert served.requests == ["", "", ""] and TARGET.read_bytes() == CONTENT
    assert pins() == {"raw/cub/birds.tgz": hashlib.sha256(CONTENT).hexdigest()}


def test_a_server_that_ignores_ranges_is_survived():
    served = Served(CONTENT, cuts=[100_000, 50_000, 200_000, None], ranges=False)
    with serve({"/birds": served}) as base:
        fetch.fetch(published(f"{base}/birds"), FOLDER)
    assert TARGET.read_bytes() == CONTENT
    assert "" not in served.requests[1:]


def test_a_server_that_always_cuts_and_ignores_ranges_is_given_up():
    served = Served(CONTENT, cuts=[50_000], ranges=False)
    with (
        serve({"/birds": served}) as base,
        pytest.raises(BadInputError, match="it continues after the 50,000 bytes that have arrived"),
    ):
        fetch.fetch(published(f"{base}/birds"), FOLDER)
    assert not TARGET.exists()


def test_an_end_without_a_length_is_noticed_by_the_published_size():
    served = Served(CONTENT, cuts=[70_000, None], content_length=False)
    with serve({"/birds": served}) as base:
        fetch.fetch(published(f"{base}/birds"), FOLDER)
    assert TARGET.read_bytes() == CONTENT


def test_a_file_that_changes_on_the_server_is_not_spliced():
    """The etag changes after the first answer, so If-Range gives the new file whole."""
    old, new = Served(bytes(len(CONTENT)), cuts=[100_000], etag='"old"'), Served(CONTENT, etag='"new"')
    files = {"/birds": old}
    with serve(files) as base:

        def swap(seconds: float) -> None:
            files["/birds"] = new

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transfer.time, "sleep", swap)
            fetch.fetch(published(f"{base}/birds", size=None, sha256=None), FOLDER)
    assert TARGET.read_bytes() == CONTENT


def test_a_stalled_server_is_left(monkeypatch):
    monkeypatch.setenv("PIPELINE_TIMEOUT", "0.3")
    stalled = Served(CONTENT, cuts=[30_000, 0], silent=5)
    with serve({"/stalled": stalled, "/good": Served(CONTENT)}) as base:
        began = time.monotonic()
        with pytest.raises(BadInputError, match=r"/stalled: .*[Tt]imed out"):
            fetch.fetch(published(f"{base}/stalled"), FOLDER)
        assert len(stalled.requests) > 1
        assert time.monotonic() - began < 5, "the silent server was waited for"
        fetch.fetch(published(f"{base}/stalled", f"{base}/good"), FOLDER)
    assert TARGET.read_bytes() == CONTENT


def test_a_wrong_part_left_by_an_earlier_run_is_given_up_for_a_fresh_start():
    FOLDER.mkdir(parents=True)
    Path("data/raw/.cub.birds.tgz.download").write_bytes(b"?" * 1000)
    served = Served(CONTENT)
    with serve({"/birds": served}) as base:
        fetch.fetch(published(f"{base}/birds"), FOLDER)
    assert TARGET.read_bytes() == CONTENT
    assert served.requests == ["bytes=1000-", ""]


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 7])
@pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
def test_a_part_as_long_as_the_file_or_longer(length, known):
    FOLDER.mkdir(parents=True)
    Path("data/raw/.cub.birds.tgz.download").write_bytes(CONTENT.ljust(length))
    with serve({"/birds": Served(CONTENT)}) as base:
        fetch.fetch(published(f"{base}/birds", **({} if known else {"size": None})), FOLDER)
    assert TARGET.read_bytes() == CONTENT


def test_a_file_put_in_place_by_hand_is_taken_if_right_and_kept_if_wrong():
    FOLDER.mkdir(parents=True)
    TARGET.write_bytes(CONTENT)
    fetch.fetch(published(), FOLDER)
    TARGET.write_bytes(CONTENT[:-1])
    with pytest.raises(BadInputError, match="is not the published file: 400,000 bytes expected, 399,999 found"):
        fetch.fetch(published(), FOLDER)
    assert TARGET.read_bytes() == CONTENT[:-1]


def test_the_first_good_download_is_pinned_and_the_next_must_match(capsys):
    file = published(size=None, sha256=hashlib.sha256(CONTENT).hexdigest()[:8])
    with serve({"/birds": Served(CONTENT)}) as base:
        fetch.fetch(file._replace(urls=(f"{base}/birds",)), FOLDER)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    assert pins() == {"raw/cub/birds.tgz": sha256}
    assert "is now pinned in data/checksums: commit that file" in capsys.readouterr().out
    done = subprocess.run(["sha256sum", "--check", "--ignore-missing", "checksums"], cwd="data", capture_output=True)
    assert done.returncode == 0
    TARGET.write_bytes(CONTENT[:-1])
    with pytest.raises(BadInputError, match=rf"SHA256 {sha256[:8]} expected"):
        fetch.fetch(file, FOLDER)
    with pytest.raises(BadInputError, match=rf"SHA256 {sha256} expected \(pinned in data/checksums\)"):
        fetch.fetch(file._replace(sha256=None), FOLDER)


def test_a_broken_line_of_checksums_is_named():
    CHECKSUMS.parent.mkdir()
    CHECKSUMS.write_text("# a comment\nabc  raw/cub/birds.tgz\n")
    with pytest.raises(BadInputError, match=r"data/checksums: the line 'abc  raw/cub/birds\.tgz' is not"):
        fetch.fetch(published(), FOLDER)


def test_two_downloads_of_a_file_do_not_mix():
    FOLDER.mkdir(parents=True)
    with Path("data/raw/.cub.birds.tgz.download").open("ab") as other:
        fetch.fcntl.flock(other, fetch.fcntl.LOCK_EX)
        with pytest.raises(BadInputError, match="is being downloaded by another process"):
            fetch.fetch(published("http://127.0.0.1:9/"), FOLDER)


def test_a_proxy_is_used(monkeypatch):
    """A proxy is asked for the whole address."""
    served = Served(CONTENT)
    with serve({"http://birds.invalid/birds.tgz": served}) as base:
        monkeypatch.setenv("http_proxy", base)
        fetch.fetch(published("http://birds.invalid/birds.tgz"), FOLDER)
    assert len(served.requests) == 1


@pytest.mark.openssl
def test_certificates_are_checked(tmp_path, monkeypatch):
    """A server with a certificate of its own is refused, unless the usual variable says to trust it."""
    names = [
        "-subj",
        "/CN=birds",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        "key.pem",
        "-out",
        "certificate.pem",
    ]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *names], check=True, capture_output=True
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain("certificate.pem", "key.pem")
    with serve({"/birds": Served(CONTENT)}, tls) as base:
        with pytest.raises(BadInputError, match="certificate verify failed"):
            fetch.fetch(published(f"{base}/birds"), FOLDER)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "certificate.pem"))
        fetch.fetch(published(f"{base}/birds"), FOLDER)
    assert TARGET.read_bytes() == CONTENT


def test_a_bad_address_is_named(monkeypatch):
    monkeypatch.setattr(transfer.time, "sleep", lambda seconds: pytest.fail("tried again"))
    monkeypatch.setenv("PIPELINE_MIRRORS", "mirror.example")
    with pytest.raises(BadInputError, match=r"mirror\.example/raw/cub/birds\.tgz: Invalid URL"):
        fetch.fetch(published(), FOLDER)


def test_without_a_checksum_a_part_of_one_mirror_is_not_ended_by_another():
    files = {"/a": Served(bytes(len(CONTENT)), cuts=[100_000, 0]), "/b": Served(CONTENT)}
    with serve(files) as base:
        fetch.fetch(published(f"{base}/a", f"{base}/b", size=None, sha256=None), FOLDER)
    assert TARGET.read_bytes() == CONTENT
    assert files["/b"].requests == [""]
    TARGET.unlink()
    pins_before = CHECKSUMS.read_text()
    CHECKSUMS.unlink()
    with serve({"/a": Served(CONTENT, cuts=[100_000, 0])}) as base, pytest.raises(BadInputError) as error:
        fetch.fetch(published(f"{base}/a", size=None, sha256=None), FOLDER)
    assert "that have arrived" not in str(error.value)
    assert left_over() == []
    assert not CHECKSUMS.exists()
    assert "birds.tgz" in pins_before


@pytest.mark.root
@pytest.mark.parametrize("name", ["download", "convert"])
@pytest.mark.parametrize("limit", ["mount -t tmpfs -o size=100k none {}", "ulimit -f 100 # {}"], ids=["tmpfs", "limit"])
def test_a_full_disk_is_said_and_costs_nothing(monkeypatch, tmp_path, name, limit):
    archive = lookalikes.tgz(tmp_path / "CUB_200_2011.tgz", lookalikes.cub_files(range(100)))
    folder = project(tmp_path / "project", {"cub": CUB_COUNTS}, {archive.name: sha256(archive)})
    output = {"download": f"raw/cub/{archive.name}", "convert": "packed/cub"}[name]
    place = folder / "data" / output.split("/")[0]
    place.mkdir()
    if name == "convert":
        (folder / "data/raw/cub").mkdir(parents=True)
        shutil.copy(archive, folder / "data/raw/cub")
    run = f"{sys.executable} -m pipeline.{name} cub; code=$?; ls -A {place}; exit $code"
    with serve({f"/raw/cub/{archive.name}": Served(archive.read_bytes())}) as base:
        monkeypatch.setenv("PIPELINE_MIRRORS", base)
        command = ["unshare", "--mount", "bash", "-c", f"{limit.format(place)}\n{run}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 1
        file = {"download": f"raw/.cub.{archive.name}.download", "convert": "packed/cub"}[name]
        assert re.fullmatch(
            rf"error: no room to write \(\[Errno \d+\] [\w ]+: 'data/{re.escape(file)}'\): "
            r"free some space and run the stage again\n",
            done.stderr,
        )
        # What came of a download is kept to go on from, beside its folder; of a conversion nothing is.
        assert done.stdout.split() == {"download": [".cub.CUB_200_2011.tgz.download", "cub"], "convert": []}[name]
        assert stage(folder, f"pipeline.{name}", "cub").returncode == 0
    assert (folder / "data" / output).exists()


def temporary(folder):
    """The temporary files and folders of cub under `folder`; os.walk passes over what vanishes while it looks."""
    return {
        f"{parent}/{name}"
        for parent, folders, files in os.walk(folder)
        for name in folders + files
        if name.startswith(".cub.")
    }


def test_killed_at_random_moments_then_finished(tmp_path):
    """Download and convert: each killed twenty times, the next run gives the same bytes as an undisturbed one."""
    archive = lookalikes.tgz(tmp_path / "source/CUB_200_2011.tgz", lookalikes.cub_files(range(500)))
    content = archive.read_bytes()
    folder = project(tmp_path / "project", {"cub": CUB_COUNTS}, {archive.name: sha256(archive)})
    generator = random.Random(7)
    served = Served(content, rate=600_000)
    outputs = {"download": folder / "data/raw/cub" / archive.name, "convert": folder / "data/packed/cub"}
    with serve({f"/raw/cub/{archive.name}": served}) as base:
        for name, output in outputs.items():
            left = 0
            for turn in range(20):
                process = subprocess.Popen(
                    [sys.executable, "-m", f"pipeline.{name}", "cub"],
                    cwd=folder,
                    env=os.environ | {"PIPELINE_MIRRORS": base},
                    stdout=subprocess.DEVNULL,
                )
                # Every other time from the start, so that it may still be importing; else once it writes.
                before = temporary(output.parents[1])
                deadline = time.monotonic() + 30
                while turn % 2 and process.poll() is None and time.monotonic() < deadline:
                    if temporary(output.parents[1]) - before or (name == "download" and before):
                        break
                    time.sleep(0.01)
                time.sleep(generator.uniform(0, 0.4))
                process.send_signal(signal.SIGKILL)
                process.wait()
                left += not output.exists() and bool(temporary(output.parents[1]))
                if output.is_dir():
                    shutil.rmtree(output)  # it was too fast
                output.unlink(missing_ok=True)
            assert stage(folder, f"pipeline.{name}", "cub", PIPELINE_MIRRORS=base).returncode == 0
            assert output.exists()
            assert left >= 5, "hardly a run was killed while it wrote"
            assert not list((folder / "data").rglob(".*.partial")) + list((folder / "data").rglob(".*.download"))
    assert outputs["download"].read_bytes() == content
    other = project(tmp_path / "other", {"cub": CUB_COUNTS})
    (other / "data/raw/cub").mkdir(parents=True)
    (other / "data/raw/cub" / archive.name).write_bytes(content)
    assert stage(other, "pipeline.convert", "cub").returncode == 0
    for file in ("images.bin", "index.csv"):
        assert (outputs["convert"] / file).read_bytes() == (other / "data/packed/cub" / file).read_bytes()
