"""Runs in progress: the history grows line by line, and TensorBoard gets what it says."""

import signal
import sys
from types import ModuleType

import pytest
import torch

from pipeline import run_grid
from pipeline.base.files import BadInputError
from pipeline.base.machine import Machine
from pipeline.engines import follow
from pipeline.engines.follow import Follower
from pipeline.runs import store
from pipeline.runs.grid import grid_runs
from pipeline.runs.key import training_key
from pipeline.training.loop import Training
from pipeline.training.outputs import write_history


class Writer:
    """In place of TensorBoard's, which is optional: what was written, by folder."""

    written: dict = {}  # noqa: RUF012

    def __init__(self, folder):
        self.lines = Writer.written[folder] = []

    def add_scalar(self, name, value, epoch):
        self.lines.append((epoch, name, value))

    def flush(self):
        pass

    close = flush


@pytest.fixture
def writer(monkeypatch):
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "written", {})
    return Writer


def test_a_history_grows_line_by_line_and_is_the_runs_in_the_end(project, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(project.folder)
    run = next(run for run in grid_runs("default") if run.row == "proxy_an")
    live = tmp_path / "key.history.csv"
    training = Training(run.run, "run", 2, torch.device("cpu"), 0, "0" * 64, tmp_path / "key.checkpoint", live)
    seen = []
    monkeypatch.setattr(training, "report", lambda *words: seen.append(live.read_text().splitlines()))
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    training.train()
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)], "the caller's are gone"
    assert [len(lines) for lines in seen] == [2, 3] and seen[1][:2] == seen[0]
    training.write(tmp_path)
    assert (tmp_path / "history.csv").read_bytes() == live.read_bytes()
    done = store.folder(training_key(run.run, "cpu").digest)
    assert (tmp_path / "history.csv").read_bytes() == (done / "history.csv").read_bytes()
    assert not list(store.STORE.glob(f"{done.name}.history.csv")), "a live history stays when its run is done"


def test_tensorboard_gets_what_histories_say(project, tmp_path, monkeypatch, writer):
    monkeypatch.chdir(project.folder)
    runs = [run for run in grid_runs("default") if run.row in ("proxy_an", "raw_pixels") and run.run.seed == 0]
    monkeypatch.setattr(store, "STORE", tmp_path)
    monkeypatch.setattr(follow, "EVENTS", tmp_path / "events")
    follower = Follower(runs, {run.grid: Machine(device="cpu", workers=0) for run in runs})
    follower.look()
    assert writer.written == {}
    key = training_key(runs[1].run, "cpu").digest
    first = {"epoch": 1, "loss": 3.5, "weights": "a" * 16}
    write_history(store.beside(key, "history.csv"), [first])
    follower.look()
    follower.look()
    folder = str(tmp_path / "events" / runs[1].place)
    assert writer.written == {folder: [(1, "loss", 3.5)]}
    (tmp_path / key).mkdir()
    store.beside(key, "history.csv").unlink()
    write_history(tmp_path / key / "history.csv", [first, first | {"epoch": 2, "loss": 3.0, "recall@1": 0.5}])
    follower.look()
    assert writer.written[folder][1:] == [(2, "loss", 3.0), (2, "recall@1", 0.5)]


def test_without_the_package_it_is_refused_before_a_run_starts(project, tmp_path, monkeypatch):
    copy = project.copy(tmp_path / "project")
    copy.edit_params(lambda params: params["machine"].update(tensorboard=True))
    copy.edit_params(lambda params: params["losses"]["proxy_an"].update(alpha=11.0))
    monkeypatch.chdir(copy.folder)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr("sys.argv", ["run_grid", "default", "glyphs"])
    with pytest.raises(BadInputError, match=r"machine\.tensorboard is true, but .* is not installed"):
        run_grid.main()
