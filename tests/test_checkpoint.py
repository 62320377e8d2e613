"""Runs that are killed, told to stop, or started twice: finished, they equal an undisturbed one to the byte."""

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from pipeline.base.files import BadInputError
from pipeline.training import checkpoint
from tests.conftest import ENVIRONMENT

FILES = ("best_test_epoch.pt", "last_epoch.pt", "history.jsonl")


@pytest.fixture(scope="module")
def longer(project):
    """The small project's arguments for a run of ten epochs in a params file of its own, and that run undisturbed."""
    text = (project.folder / "params.yaml").read_text()
    project.edit_params(lambda params: params["recipes"]["glyphs"].update(epochs=10, decay_epochs=[6]))
    (project.folder / "longer.yaml").write_text((project.folder / "params.yaml").read_text())
    (project.folder / "params.yaml").write_text(text)
    arguments = ["--params", "longer.yaml", "--dataset", "glyphs", "--loss", "proxy_an", "--seed", "0", "--out"]
    project.run("python", "-m", "pipeline.train", *arguments, "scratch/undisturbed")
    yield arguments
    shutil.rmtree(project.folder / "scratch")
    (project.folder / "longer.yaml").unlink()


def assert_equal_to_undisturbed(folder: Path, out: str) -> None:
    for name in FILES:
        assert (folder / out / name).read_bytes() == (folder / "scratch/undisturbed" / name).read_bytes(), name
    left = [path.name for path in (folder / "data/checkpoints").iterdir() if path.suffix != ".lock"]
    assert not left, f"checkpoints left behind: {left}"


def test_killed_twenty_times(project, longer):
    script = str(Path(__file__).with_name("kill_training.py"))
    output = project.run("env", "PYTHONPATH=.", "python", script, "1", *longer, "scratch/killed")
    kills = re.findall(r"^killed (.*)", output, re.MULTILINE)
    assert len(kills) == 20 and len(set(kills)) == 3, output
    assert output.count("goes on from epoch") >= 10, output
    assert_equal_to_undisturbed(project.folder, "scratch/killed")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_told_to_stop_it_saves_within_the_epoch_and_goes_on(project, longer, workers):
    command = ["python", "-m", "pipeline.train", *longer, "scratch/stopped", "--workers", workers]
    process = subprocess.Popen(
        command, cwd=project.folder, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE, start_new_session=True
    )
    for line in process.stderr:
        if "epoch 2/10" in line:
            break
    time.sleep(0.1)
    subprocess.run(["kill", "-TERM", "--", f"-{process.pid}"], check=True)  # the whole group, as clusters do
    output = process.stderr.read()
    assert process.wait() == 128 + signal.SIGTERM, output
    assert re.search(r"told to stop, saved at epoch \d, step \d+", output)
    assert not (project.folder / "scratch/stopped").exists()
    output = project.run(*command)
    assert re.search(r"goes on from epoch [3-5], step \d+", output)
    assert_equal_to_undisturbed(project.folder, "scratch/stopped")
    shutil.rmtree(project.folder / "scratch/stopped")


def test_another_configurations_checkpoint_is_not_resumed(tmp_path):
    path = tmp_path / "run.pt"
    first, second = (checkpoint.fingerprint({"alpha": alpha}) for alpha in (32.0, 12.0))
    assert checkpoint.load(path, first) is None
    checkpoint.save(path, first, {"epoch": 3, "weights": {"a": torch.ones(2)}})
    assert checkpoint.load(path, second) is None
    saved = checkpoint.load(path, first)
    assert (
        saved["epoch"] == 3
        and torch.equal(saved["weights"]["a"], torch.ones(2))
        and saved.keys() == {"epoch", "weights"}
    )
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_process_is_told_who_holds_the_run(project, longer, monkeypatch):
    monkeypatch.chdir(project.folder)
    with checkpoint.held(checkpoint.place(Path("scratch/held"))):
        output = project.run("python", "-m", "pipeline.train", *longer, "scratch/held", fails=2)
        assert re.search(r"is being trained by process \d+ on \S+: wait for it", output)
        with pytest.raises(BadInputError, match="process"), checkpoint.held(checkpoint.place(Path("scratch/held"))):
            pass
    with checkpoint.held(checkpoint.place(Path("scratch/held"))):
        pass
