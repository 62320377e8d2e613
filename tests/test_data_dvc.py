"""data/dvc.yaml, run by DVC on look-alikes in a copy of the project."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests import lookalikes, swap
from tests.lookalikes import CARS_COUNTS, CUB_COUNTS, INSHOP_COUNTS, SOP_COUNTS, picture, project
from tests.server import Served, serve


def dvc(folder: Path, *arguments: str, **environment: str) -> str:
    """Run DVC in `folder` and return what it printed."""
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_dvc_repro_runs_every_dataset_and_status_is_clean(tmp_path):
    builders = {
        "cub": lookalikes.cub,
        "cars": lookalikes.cars_official,
        "sop": lookalikes.sop,
    }
    for name, build in builders.items():
        build(tmp_path / "mirror/raw" / name)
    for name in ("bn_inception", "resnet50"):
        (tmp_path / "mirror/weights").mkdir(exist_ok=True)
        (tmp_path / f"mirror/weights/{name}.pth").write_bytes(picture(len(name)))
    counts = {"cub": CUB_COUNTS, "cars": CARS_COUNTS, "sop": SOP_COUNTS, "inshop": INSHOP_COUNTS}
    folder = project(tmp_path / "project", counts, weights=True)
    # By hand, as it must be: DVC removes outputs before a run, but not this one.
    lookalikes.inshop(folder / "data/raw/inshop")
    # The look-alikes' classes are too small for a tenth.
    swap(folder / "pipeline/subsets.py", "RATES = [0.1, 0.2, 0.3, 0.4, ", "RATES = [")
    (folder / "papers").mkdir()
    networks = {name: {"name": name, "file": f"{name}.pth"} for name in ("bn_inception", "resnet50")}
    datasets = {name: {"name": name, "module": name} for name in counts}
    names = {"datasets": datasets, "subsets": ["cub", "cars"], "networks": networks}
    (folder / "papers/chosen.yaml").write_text(yaml.safe_dump(names))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    dvc(folder, "init", "-q")
    files = {f"/{path.relative_to(tmp_path / 'mirror')}": path for path in (tmp_path / "mirror").rglob("*.*")}
    with serve({address: Served(path.read_bytes()) for address, path in files.items()}) as base:
        # One dataset is a target of its own.
        dvc(folder, "repro", "data/dvc.yaml:split@sop", PIPELINE_MIRRORS=base)
        assert [path.name for path in (folder / "data/splits").iterdir()] == ["sop"]
        dvc(folder, "repro", "data/dvc.yaml", PIPELINE_MIRRORS=base)
    assert sorted(path.name for path in (folder / "data/splits").iterdir()) == ["cars", "cub", "inshop", "sop"]
    assert len(list((folder / "data/subsets/cars").glob("*.csv"))) == 6 + 5 * 5
    assert json.loads(dvc(folder, "status", "--json", "data/dvc.yaml")) == {}
    untracked = subprocess.run(
        ["git", "status", "--short", "--untracked-files=all", "data"], cwd=folder, capture_output=True, text=True
    )
    assert sorted(line[3:] for line in untracked.stdout.splitlines()) == [
        "data/.gitignore",
        "data/checksums",
        "data/dvc.lock",
        "data/dvc.yaml",
    ]
    assert (folder / "data/.gitignore").read_text() == (lookalikes.REPOSITORY / "data/.gitignore").read_text()
    # Another line in a dataset's file fetches nothing again: no server answers any more.
    with (folder / "pipeline/datasets/cub.py").open("a") as module:
        module.write("# another line\n")
    dvc(folder, "repro", "data/dvc.yaml:split@cub", PIPELINE_MIRRORS="http://127.0.0.1:9")
    assert "Data and pipelines are up to date" in dvc(folder, "repro", "data/dvc.yaml")
