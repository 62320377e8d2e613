"""Runs that are killed, asked to stop, or started twice: finished, they equal an undisturbed one to the byte."""

import json
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch

from pipeline.runs import store
from pipeline.training import checkpoint
from tests.conftest import ENVIRONMENT

KEY = "a" * 64
FILES = ("best_test_epoch.pt", "last_epoch.pt", "history.csv", "run.json")


@pytest.fixture(scope="module")
def longer(project):
    """The small project's arguments for a run of six epochs in a params file of its own, and that run undisturbed."""
    text = (project.folder / "params.yaml").read_text()
    project.edit_params(lambda params: params["recipes"]["glyphs"].update(epochs=6))
    (project.folder / "longer.yaml").write_text((project.folder / "params.yaml").read_text())
    (project.folder / "params.yaml").write_text(text)
    arguments = ["--params", "longer.yaml", "--dataset", "glyphs", "--loss", "proxy_an", "--seed", "0", "--out"]
    project.run("python", "-m", "pipeline.train", *arguments, "scratch/undisturbed")
    forget(project.folder)
    yield arguments
    shutil.rmtree(project.folder / "scratch")
    (project.folder / "longer.yaml").unlink()


def forget(folder: Path) -> Path:
    """Take the undisturbed run out of the store, and say where it was."""
    key = json.loads((folder / "scratch/undisturbed/run.json").read_text())["key"]
    shutil.rmtree(folder / "data/store" / key)
    return folder / "data/store" / key


def assert_equal_to_undisturbed(folder: Path, out: str) -> None:
    for name in FILES:
        assert (folder / out / name).read_bytes() == (folder / "scratch/undisturbed" / name).read_bytes(), name
    stored = forget(folder)
    left = sorted(path.suffix for path in stored.parent.glob(f"{stored.name}.*"))
    assert left == [".checked", ".lock"], f"left behind: {left}"
    shutil.rmtree(folder / out)


def test_killed_twenty_times(project, longer):
    script = str(Path(__file__).with_name("kill_training.py"))
    output = project.run("env", "PYTHONPATH=.", "python", script, "1", *longer, "scratch/killed")
    kills = re.findall(r"killed (before a rename|after a step|half way through a write)\n", output)
    assert len(kills) == 20 and len(set(kills)) == 3, output
    assert output.count("goes on from epoch") >= 10, output
    assert_equal_to_undisturbed(project.folder, "scratch/killed")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_asked_to_stop_it_saves_within_the_epoch_and_goes_on(project, longer, workers):
    command = ["python", "-m", "pipeline.train", *longer, "scratch/stopped", "--workers", workers]
    process = subprocess.Popen(
        command, cwd=project.folder, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE, start_new_session=True
    )
    for line in process.stderr:
        if "epoch 2/6" in line:
            break
    time.sleep(0.1)
    subprocess.run(["kill", "-TERM", "--", f"-{process.pid}"], check=True)  # the whole group, as clusters do
    output = process.stderr.read()
    assert process.wait() == 128 + signal.SIGTERM, output
    assert re.search(r"asked to stop, saved at epoch \d, step \d+", output)
    assert not (project.folder / "scratch/stopped").exists()
    output = project.run(*command)
    assert re.search(r"goes on from epoch [3-5], step \d+", output)
    assert_equal_to_undisturbed(project.folder, "scratch/stopped")


def test_a_checkpoint_is_whole_or_absent(tmp_path):
    path = tmp_path / "run.checkpoint"
    assert checkpoint.load(path, KEY) is None
    checkpoint.save(path, KEY, {"epoch": 3, "weights": {"a": torch.ones(2)}})
    saved = checkpoint.load(path, KEY)
    assert saved["epoch"] == 3 and torch.equal(saved["weights"]["a"], torch.ones(2))
    with pytest.raises(TypeError, match="pickle"):
        checkpoint.save(path, KEY, {"epoch": 4, "lock": threading.Lock()})
    assert checkpoint.load(path, KEY)["epoch"] == 3 and list(tmp_path.iterdir()) == [path]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


def fill_with_zeros(path: Path) -> None:
    """The weights of a good checkpoint, without its head."""
    torch.save({"epoch": 3, "weights": {"a": torch.zeros(2)}}, path)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        fill_with_zeros,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"0"),
        lambda path: path.write_bytes(b"[]\n" + path.read_bytes()),
        lambda path: checkpoint.save(path, "b" * 64, {"epoch": 3}),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["bit", "zeros", "empty", "cut", "longer", "head", "other run", "folder"],
)
def test_a_checkpoint_that_is_damaged_or_another_runs_is_set_aside(tmp_path, capsys, damage):
    path = tmp_path / "run.checkpoint"
    checkpoint.save(path, KEY, {"epoch": 3, "weights": {"a": torch.ones(2)}})
    damage(path)
    assert checkpoint.load(path, KEY) is None
    assert [file.name for file in tmp_path.iterdir()] == ["run.checkpoint.damaged"]
    assert re.fullmatch(
        r"\S+: it is (damaged|another run's): set aside as run\.checkpoint\.damaged, and the run starts anew\n",
        capsys.readouterr().err,
    )


def test_a_run_whose_checkpoint_is_damaged_starts_anew(project, longer):
    process = subprocess.Popen(
        ["python", "-m", "pipeline.train", *longer, "scratch/damaged"],
        cwd=project.folder, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE,
    )  # fmt: skip
    for line in process.stderr:
        if "epoch 2/6" in line:
            process.terminate()
            break
    process.communicate()
    key = json.loads((project.folder / "scratch/undisturbed/run.json").read_text())["key"]
    saved = project.folder / f"data/store/{key}.checkpoint"
    flip(saved)
    output = project.run("python", "-m", "pipeline.train", *longer, "scratch/damaged")
    assert "it is damaged: set aside" in output and "goes on from" not in output
    saved.with_name(f"{saved.name}.damaged").unlink()
    assert_equal_to_undisturbed(project.folder, "scratch/damaged")


def test_another_settings_checkpoint_is_not_resumed(project, longer):
    """Its key is another one, so its checkpoint lies elsewhere."""
    command = ["python", "-m", "pipeline.train", *longer, "scratch/other"]
    process = subprocess.Popen(command, cwd=project.folder, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE)
    for line in process.stderr:
        if "epoch 2/6" in line:
            process.send_signal(signal.SIGINT)
            break
    output = process.stderr.read()
    assert process.wait() == 128 + signal.SIGTERM and "asked to stop" in output and "Traceback" not in output
    assert "goes on" not in project.run(*command, "--set", "loss.margin=0.3")
    shutil.rmtree(project.folder / "scratch/other")
    assert "goes on from epoch" in project.run(*command)
    assert_equal_to_undisturbed(project.folder, "scratch/other")


def test_a_second_process_says_who_holds_the_run(project, longer, monkeypatch):
    monkeypatch.chdir(project.folder)
    key = json.loads(Path("scratch/undisturbed/run.json").read_text())["key"]
    with store.claim(key):
        output = project.run("python", "-m", "pipeline.train", *longer, "scratch/held", fails=2)
        assert re.search(r"is being trained by process \d+ on \S+: wait for it", output)
        assert store.holder(key).startswith("process") and store.failure(key) is None
        with pytest.raises(store.HeldError, match="process"), store.claim(key):
            pass
    assert store.holder(key) is None
    with store.claim(key):
        pass


def test_checkpoints_are_written_in_the_background_one_at_a_time(tmp_path, monkeypatch):
    path, begun, go = tmp_path / "checkpoint", [], threading.Event()
    save = checkpoint.save

    def slowly(path, key, state):
        begun.append(state["epoch"])
        go.wait(60)
        save(path, key, state)

    monkeypatch.setattr(checkpoint, "save", slowly)
    writer, weights = checkpoint.Writer(path, KEY), torch.ones(2)
    writer.save({"epoch": 1, "weights": [weights]})
    weights.zero_()  # the next step, while the file is not written yet
    assert not path.exists()
    second = threading.Thread(target=writer.save, args=({"epoch": 2, "weights": [weights]},))
    second.start()
    second.join(0.2)
    assert second.is_alive() and begun == [1], "the second waits for the first"
    go.set()
    second.join(60)
    writer.close()
    assert begun == [1, 2] and checkpoint.load(path, KEY)["epoch"] == 2


def test_a_copy_of_a_state_is_not_changed_by_later_steps(tmp_path):
    weights = torch.ones(2)
    writer = checkpoint.Writer(tmp_path / "checkpoint", KEY)
    writer.save({"weights": {"a": [weights]}})
    weights.zero_()
    writer.close()
    assert checkpoint.load(tmp_path / "checkpoint", KEY)["weights"]["a"][0].tolist() == [1, 1]


def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path):
    (tmp_path / "file").touch()
    writer = checkpoint.Writer(tmp_path / "file/checkpoint", KEY)
    writer.save({"epoch": 1})
    with pytest.raises(OSError):
        writer.save({"epoch": 2})
    writer.close()
