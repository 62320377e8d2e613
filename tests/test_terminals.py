"""Terminals and pipes that cannot show our signs: every command prints what they can, and its files stay UTF-8."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.base.command import IN_ASCII
from tests.conftest import ENVIRONMENT, ROOT

COMMANDS = sorted(path.stem for path in (ROOT / "pipeline").glob("[!_]*.py"))
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
UTF_8 = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}

HELP = """
import importlib, os, runpy, sys
for name in sys.argv[1:]:
    importlib.import_module(f"pipeline.{name}")
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        del sys.modules[f"pipeline.{name}"]
        sys.argv = [name, "--help"]
        out = os.open(f"{name}.help", os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(out, 2)
        runpy.run_module(f"pipeline.{name}", run_name="__main__", alter_sys=True)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(name, code)
"""


def run(folder: Path, environment: dict[str, str], *words: str | bytes) -> tuple[int, bytes]:
    """The exit code of a Python in a folder, and what it prints, both streams together."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def helped(tmp_path_factory):
    """A folder with what each command's --help prints; and the exit codes. All are children of one process, in which
    what they import is imported once."""
    folder = tmp_path_factory.mktemp("help")
    code, printed = run(folder, ASCII, "-c", HELP, *COMMANDS)
    assert code == 0, printed.decode()
    return folder, dict(line.split() for line in printed.decode().splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_helps_in_ascii(helped, name):
    folder, codes = helped
    shown = (folder / f"{name}.help").read_bytes().decode("ascii")
    assert codes[name] == "0", shown
    assert f"usage: python -m pipeline.{name}" in shown
    assert "\\u" not in shown


@pytest.mark.parametrize("environment", [ASCII, LOCALE], ids=["stream", "locale"])
@pytest.mark.parametrize(("words", "sign"), [(["tabulate", "default"], "±"), (["status"], None), (["diff"], None)])
def test_a_command_prints_the_same_in_ascii(project, words, sign, environment):
    """But for the signs: the same words, exit code and files as on a terminal that shows all."""
    tables = project.folder / "metrics/tables/default"
    files = {path: path.read_bytes() for path in tables.iterdir()}
    assert any("±".encode() in content for content in files.values())
    expected_code, in_utf_8 = run(project.folder, UTF_8, "-m", f"pipeline.{words[0]}", *words[1:])
    expected = in_utf_8.decode()
    assert "Traceback" not in expected
    assert sign is None or sign in expected
    for own, plain in IN_ASCII.items():
        expected = expected.replace(own, plain)
    code, printed = run(project.folder, environment, "-m", f"pipeline.{words[0]}", *words[1:])
    assert (code, printed.decode("ascii")) == (expected_code, expected)
    assert {path: path.read_bytes() for path in tables.iterdir()} == files


def test_the_doctor_speaks_ascii(project):
    code, printed = run(project.folder, ASCII, "-m", "pipeline.doctor")
    assert code in (0, 1)
    assert printed.decode("ascii").startswith("ok")
    assert b"Traceback" not in printed


@pytest.mark.parametrize("environment", [ASCII, LOCALE, UTF_8], ids=["stream", "locale", "UTF-8"])
def test_what_is_no_sign_of_ours_is_escaped(project, environment):
    """A letter of another language, and a byte that is no letter in any."""
    code, printed = run(project.folder, environment, "-m", "pipeline.choose", os.fsencode("é\udcff"))
    assert code == 2
    assert printed.startswith(b"error: ") and b"\\udcff' cannot be the name of a grid" in printed
    assert printed.decode("utf-8" if environment == UTF_8 else "ascii").count("\n") == 1
