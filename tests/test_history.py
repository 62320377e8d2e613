"""Runs in progress: the history grows line by line."""

import signal

import torch

from pipeline.runs import store
from pipeline.runs.grid import grid_runs
from pipeline.runs.key import training_key
from pipeline.training.loop import Training


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
