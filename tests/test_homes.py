"""Unusual homes of a clone: a full disk at every stage, folders that may not be written, two `dvc repro` at once."""

import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest

from tests import swap
from tests.conftest import ENVIRONMENT, ROOT, Project
from tests.test_run_grid import files_of


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


@contextmanager
def mounted(folder, *words: str):
    mount(*words, str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def repro(folder) -> tuple[int, str]:
    # On a full disk, Python before 3.12.8 cuts the file of a compiled module off, and fails when it reads it.
    environment = ENVIRONMENT | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["dvc", "repro"], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.returncode, done.stdout


@pytest.mark.root
def test_a_full_disk_at_every_stage_spoils_nothing(project, tmp_path):
    """Each time as much is free as the list says, in MB. What had been made stays, and the end is the usual one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder, "-t", "tmpfs", "-o", "size=400m", "tmpfs"):
        clone = Project(folder / "clone")
        stages = []
        for free in (0.2, 66, 82, 66, 66.5, 200):
            usage = shutil.disk_usage(folder)
            mount("-o", f"remount,size={int(usage.used + free * 2**20) // 4096 * 4096}", str(folder))
            code, output = repro(clone.folder)
            stages += [line.split("'")[1] for line in output.splitlines() if "failed to reproduce" in line]
            if code:
                assert output.count("error: no room to write") == 1 and "Traceback" not in output, output
        assert code == 0, output
        assert stages[:2] == ["download", "convert"] and {"runs", "tabulate"} & {*stages}, stages
        assert files_of(clone.folder) == files_of(project.folder)


@pytest.mark.root
def test_a_read_only_data_folder_is_one_line(project, tmp_path):
    clone = project.copy(tmp_path / "clone")
    data = clone.folder / "data"
    with mounted(data, "--bind", str(data)):
        mount("-o", "remount,ro,bind", str(data))
        assert repro(clone.folder)[0] == 0  # nothing has to be written
        clone.edit_params(lambda params: params["losses"]["proxy_an"].update(alpha=31.0))
        code, output = repro(clone.folder)
        assert code and "Read-only file system" in output and "Traceback" not in output, output
    assert repro(clone.folder)[0] == 0


def test_the_second_of_two_repros_says_who_is_at_work(project, tmp_path):
    clone = project.copy(tmp_path / "clone")
    shutil.rmtree(clone.folder / "data/packed/glyphs")
    (clone.folder / "dvc.lock").unlink()
    shutil.rmtree(clone.folder / ".dvc/cache/runs")
    begin = "def main() -> None:\n"
    swap(clone.folder / "pipeline/convert.py", begin, f"{begin}    import time; time.sleep(8)\n", 1)
    first = subprocess.Popen(["dvc", "repro"], cwd=clone.folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    for line in first.stdout:
        if "pipeline.convert" in line:
            break
    code, output = repro(clone.folder)
    assert code and "is busy, it is being blocked by" in output and f"(PID {first.pid})" in output, output
    assert first.communicate(timeout=300) and first.returncode == 0
    assert files_of(clone.folder) == files_of(project.folder)


@pytest.mark.parametrize("command", [["status"], ["tabulate", "default"], ["convert", "glyphs"]])
def test_another_folder_is_named(tmp_path, command):
    """As in a notebook, which can import the package from anywhere."""
    done = subprocess.run(
        [sys.executable, "-m", f"pipeline.{command[0]}", *command[1:]],
        cwd=tmp_path,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count(f"{tmp_path} is not the project's folder") == 1 and f"cd {ROOT}" in done.stderr
