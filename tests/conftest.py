"""A small copy of the project that the tests may run and break."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from tests import GRID, markers, swap

ROOT = Path(__file__).parent.parent
# No test may fail because the machine is busy: hypothesis would time each example, and how long examples take to make.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
os.environ["PIPELINE_DEVICE"] = "cpu"  # also where there is a GPU: the numbers that tests know are a CPU's
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "GIT_AUTHOR_NAME": "tests",
    "GIT_AUTHOR_EMAIL": "tests@example.org",
    "GIT_COMMITTER_NAME": "tests",
    "GIT_COMMITTER_EMAIL": "tests@example.org",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "PIPELINE_WORKERS_AT_MOST": "1",  # as many tests run at a time as there are cores
}
ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)  # Python writes its bytecode beside the code, as it does by default.


FIRST = ["end_to_end", "run_grid", "checkpoint", "slurm", "ray", "docs", "pipeline", "train", "homes", "papers"]
"""The files that take longest. They begin first, so that no worker is left with one of them at the end."""
APART = {"tests/test_docs.py", "tests/test_homes.py", "tests/test_local.py"}
"""Files of long tests that share nothing but `project`: any worker takes any of their tests."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Called by pytest with all tests that were found."""
    markers.skip_what_cannot_run(items)
    place = {f"test_{name}": number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


class Scheduling(LoadFileScheduling):
    """A worker takes a file at a time, because the tests of a file share fixtures; of the files in APART, a test."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return nodeid if file in APART else file


def pytest_xdist_make_scheduler(config, log) -> Scheduling:
    """Called by pytest-xdist."""
    return Scheduling(config, log)


class Project:
    """A clone of the working tree with a smaller grid: two losses, two seeds, two epochs on glyphs."""

    def __init__(self, folder: Path):
        self.folder = self.untouched = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file() and not name.startswith("metrics/"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        (folder / "dvc.lock").unlink(missing_ok=True)
        shutil.copy(GRID / "params.yaml", folder)
        self.edit_params(
            lambda params: (
                params["tables"]["glyphs"].update(rows={"loss": ["proxy_an", "proxy_nca"]}, seeds=[0, 1]),
                params["recipes"]["glyphs"].update(
                    epochs=2, schedule={"name": "steps", "at": [2], "factor": 0.2}, cpu_threads=1
                ),
            )
        )
        # A map of few images takes a second in place of five.
        swap(folder / "pipeline/reports/maps.py", "MAPPED = 1500", "MAPPED = 200")
        self.run("git", "init", "--quiet")
        self.commit()

    def run(self, *command: str, fails: int = 0) -> str:
        """Run a command in the project, expect its exit code, give stdout and stderr together."""
        done = subprocess.run(
            command, cwd=self.folder, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert done.returncode == fails, f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def repro(self) -> list[str]:
        """The names of the stages that `dvc repro` ran."""
        output = self.run("dvc", "repro")
        return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]

    def commit(self) -> None:
        """Commit everything to git."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "state")

    def copy(self, folder: Path) -> "Project":
        """The project as it was made, with store and DVC's cache, in another folder. What tests have left in this one
        since, such as more runs in the store, is not in the copy."""
        other = type(self).__new__(type(self))
        other.folder = other.untouched = folder
        shutil.copytree(self.untouched, folder, symlinks=True)
        return other

    def edit_params(self, edit) -> None:
        """Change params.yaml by a function of its content."""
        path = self.folder / "params.yaml"
        content = yaml.safe_load(path.read_text())
        edit(content)
        path.write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture(scope="session")
def project(tmp_path_factory, worker_id) -> Project:
    """The small project after one `dvc repro`, committed. It is made once for all of xdist's workers, and each has its
    copy. Tests that change it put it back."""
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "shared"
    stages = shared / "first_repro.json"
    with Path(f"{shared}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stages.exists():
            made = Project(shared / "project")
            names = made.repro()
            made.commit()
            stages.write_text(json.dumps(names))
    made = Project.__new__(Project)
    made.untouched = shared / "project"
    made = made.copy(tmp_path_factory.mktemp("copy") / "project")
    made.untouched = shared / "project"
    made.first_repro = json.loads(stages.read_text())
    return made


@pytest.fixture
def one_thread():
    """On a busy machine small operations split over threads spend seconds waiting for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def browser():
    """Chromium, for tests that are marked so."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()
