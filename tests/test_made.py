"""Who made a run: what git says stays, and this clone's own note is beside the store. Have both the same bytes?"""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import verify
from pipeline.base.config import read_params
from pipeline.base.files import BadInputError, write_json
from pipeline.bundles import again
from pipeline.reports.runs import ShownRun
from pipeline.runs import made, store
from pipeline.runs.grid import grid_runs
from pipeline.runs.key import Key, digest
from pipeline.runs.record import MetricsRecord, read_record
from tests import GRID
from tests.conftest import ENVIRONMENT
from tests.records import write_metrics

NOTE = {
    "git": {"revision": "a" * 40, "clean": True},
    "machine": {"cpu": "Theirs", "cores": 4, "gpu": None},
    "seconds": 10.0,
    "peak_memory_bytes": 1,
    "epoch_seconds": [5.0],
    "images_per_second": [100.0],
}
OURS = NOTE | {"machine": {"cpu": "Ours", "cores": 2, "gpu": None}, "seconds": 20.0, "epoch_seconds": [9.0]}


def git(*words):
    return subprocess.run(["git", *words], check=True, env=ENVIRONMENT, capture_output=True, text=True).stdout


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A committed run with their note, and ours in the store."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((GRID / "params.yaml").read_bytes())
    run = next(run for run in grid_runs("default") if run.row == "proxy_an")
    write_metrics(tmp_path, run, {"last_epoch": 0.5})
    record = read_record(run.metrics, MetricsRecord)
    keys = {"training": record.run.key, "evaluation": record.key}
    for key in keys.values():
        store.folder(key).mkdir(parents=True)
        (store.folder(key) / "made.json").write_text(json.dumps(OURS))
    write_json(run.made, {work: {"key": key} | NOTE for work, key in keys.items()})
    for words in (("init", "-q"), ("add", "metrics", "params.yaml"), ("commit", "-qm", "runs")):
        git(*words)
    return run


def cpus(run):
    return {work: of["machine"]["cpu"] for work, of in json.loads(run.made.read_text()).items()}


THEIRS = {"training": "Theirs", "evaluation": "Theirs"}


def test_a_clone_that_makes_the_same_bytes_changes_no_file_of_git(run):
    made.keep(run, changed=False)
    made.keep(run, changed=True)  # as after another setting, which was then changed back
    assert cpus(run) == THEIRS and git("status", "--porcelain", "metrics") == ""


def test_the_note_comes_back_with_the_metrics_file(run):
    before = run.metrics.read_bytes()
    write_metrics(Path(), run, {"last_epoch": 0.6})
    made.keep(run, changed=True)
    assert cpus(run) == {"training": "Ours", "evaluation": "Ours"}, "no longer the committed numbers"
    run.metrics.write_bytes(before)
    made.keep(run, changed=True)
    assert cpus(run) == THEIRS and git("status", "--porcelain", "metrics") == ""


def test_what_is_missing_or_of_another_run_is_written(run):
    noted = json.loads(run.made.read_text())
    del noted["evaluation"]
    run.made.write_text(json.dumps(noted))
    made.keep(run, changed=False)
    assert cpus(run) == {"training": "Theirs", "evaluation": "Ours"}
    noted["training"]["key"] = "0" * 64
    run.made.write_text(json.dumps(noted))
    made.keep(run, changed=False)
    assert cpus(run) == {"training": "Ours", "evaluation": "Ours"}
    run.made.write_text("damaged")
    made.keep(run, changed=False)
    assert cpus(run) == {"training": "Ours", "evaluation": "Ours"}


def test_our_note_replaces_theirs_only_if_asked_for(run):
    assert made.adopt(run) and cpus(run) == {"training": "Ours", "evaluation": "Ours"}
    git("checkout", "metrics")
    for path in store.STORE.glob("*/made.json"):
        path.unlink()
    assert not made.adopt(run) and cpus(run) == THEIRS, "this clone made nothing"


def test_without_git_what_was_made_here_is_noted(run):
    Path(".git").rename("no_git")
    write_metrics(Path(), run, {"last_epoch": 0.6})
    made.keep(run, changed=True)
    assert cpus(run) == {"training": "Ours", "evaluation": "Ours"}


def test_the_page_says_who_made_it_and_that_it_was_made_here(run):
    record = read_record(run.metrics, MetricsRecord)
    shown = ShownRun(run, record, made.committed(run, record), made.here(record))
    assert shown.machine == "Theirs, 4 cores" and shown.made_here == "Ours, 2 cores, 40 s"
    made.adopt(run)
    assert ShownRun(run, record, made.committed(run, record), made.here(record)).made_here == ""


def test_the_time_of_runs_is_this_machines_if_it_made_any(run):
    assert made.training(run)["epoch_seconds"] == [9.0]
    for path in store.STORE.glob("*/made.json"):
        path.unlink()
    assert made.training(run)["epoch_seconds"] == [5.0]


# Are a clone's runs those that a commit names, byte by byte?


@pytest.fixture
def stored(run, monkeypatch):
    """The committed run, whose metrics file is also in the store, checked."""
    key = json.loads(run.metrics.read_text())["key"]
    (store.folder(key) / "metrics.json").write_bytes(run.metrics.read_bytes())
    monkeypatch.setattr(verify, "keys_of", lambda run, device: SimpleNamespace(own=(key,)))
    monkeypatch.setattr(store, "check", lambda key: store.folder(key).is_dir())
    monkeypatch.setattr(verify, "grid_runs", lambda grid: [run])
    return run, store.folder(key)


def said(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["verify", "default", *words])
    try:
        verify.main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().out


def test_the_same_bytes_are_said_with_both_machines(stored, monkeypatch, capsys):
    code, text = said(monkeypatch, capsys)
    names = f"commit {git('rev-parse', 'HEAD')[:7]} names (Ours here, Theirs there)"
    assert code == 0 and text.startswith(
        f"default: 1 of 1 runs were made here, 1 of 1 have the bytes that {names}\ndefault: 1 of 13 runs have a metrics"
    )


def test_bytes_from_elsewhere_are_not_said_to_be_made_here(stored, monkeypatch, capsys):
    for path in store.STORE.glob("*/made.json"):
        path.unlink()
    code, text = said(monkeypatch, capsys)
    assert (
        code == 0
        and text.startswith("default: 0 of 1 runs were made here, 1 of 1 have")
        and "(" not in text.splitlines()[0]
    )


def test_other_bytes_under_the_same_key_are_a_failure(stored, monkeypatch, capsys):
    run, folder = stored
    write_metrics(Path(), run, {"last_epoch": 0.6})
    (folder / "metrics.json").write_bytes(run.metrics.read_bytes())
    code, text = said(monkeypatch, capsys)
    assert code == 1 and "0 of 1 have the bytes" in text
    assert f"1 other bytes: {run.place}: the same settings, code and data gave something else" in text


def test_another_run_a_missing_one_and_one_without_commit_are_told_apart(stored, monkeypatch, capsys):
    run, folder = stored
    text = run.metrics.read_text().replace(folder.name, digest("another"))
    run.metrics.write_text(text)
    git("commit", "-qam", "another")
    assert "1 another run: " in said(monkeypatch, capsys)[1]
    assert said(monkeypatch, capsys, "--revision", "HEAD~1")[1].count("1 of 1 ") == 2
    git("rm", "-q", "--cached", str(run.metrics))
    git("commit", "-qm", "none")
    assert "1 not in the commit: " in said(monkeypatch, capsys)[1]
    folder.rename("elsewhere")
    code, text = said(monkeypatch, capsys)
    assert "1 not made: " in text and "0 of 1 have the bytes" in text
    assert code == 1 and f"wrong: {run.metrics} is not a record: its key is not the hash of its content" in text
    with pytest.raises(BadInputError, match="--run nobody/0: no such run has a metrics file"):
        said(monkeypatch, capsys, "--run", "nobody/0")
    with pytest.raises(BadInputError, match="give 1 or more"):
        said(monkeypatch, capsys, "--remake", "0")


def test_runs_made_again_are_compared(stored, monkeypatch, capsys):
    run, _ = stored
    monkeypatch.setattr(again, "make_again", lambda known, machine: again.Again(known.run, "Ours"))
    code, text = said(monkeypatch, capsys, "--remake", "5")
    assert code == 0 and text.endswith("1 of 1 runs made again: same bytes (Ours here, Theirs there)\n")
    monkeypatch.setattr(again, "make_again", lambda known, machine: again.Again(known.run, "", ["last_epoch.pt"]))
    code, text = said(monkeypatch, capsys, "--run", f"{run.row}/{run.place.name}")
    assert code == 1 and f"0 of 1 runs made again: same bytes\n{run.place}: other bytes in last_epoch.pt\n" in text


def test_on_another_device_metrics_are_compared_with_the_spread(run, monkeypatch):
    """Its run is made in the store under the key that it has here; another code is another run, which is not made."""
    write_metrics(Path(), replace(run, run=replace(run.run, seed=1)), {"last_epoch": 0.52})
    known = next(of for of in again.known_runs("default") if of.run.place == run.place)

    def keys(**changes):
        for name, record in (("training_key", known.record.run), ("evaluation_key", known.record)):
            content = record.content | changes
            monkeypatch.setattr(again, name, lambda *words, content=content: Key(digest(content), content, {}))

    keys(device="cuda")
    here = known.record.model_copy(update={"metrics": {"last_epoch": {"recall@1": 0.51, "map@r": 0.5}}})
    monkeypatch.setattr(store, "entry", lambda key, kind: here)
    made_here = []
    monkeypatch.setattr(again, "_make", lambda run, machine: made_here.append(run))
    monkeypatch.setattr(again, "_compare", lambda known, folders, found: found.differ.append("metrics.json"))
    found = again.make_again(known, read_params(Path("params.yaml")).machine)
    assert (
        made_here == [known.run]
        and not found.differ
        and found.said
        == [
            "made again with other: device",
            "last_epoch Recall@1: 50.00 there, 51.00 here, +1.00; the 2 seeds have a standard deviation of 1.41",
            "last_epoch MAP@R: 50.00 there, 50.00 here, +0.00; the 2 seeds have a standard deviation of 1.41",
        ]
    )
    keys(device="cuda", code="1" * 64)
    found = again.make_again(known, read_params(Path("params.yaml")).machine)
    assert found.other and found.said == ["another run here, by its code, and not made"] and len(made_here) == 1


def test_a_run_made_again_has_the_same_bytes_and_a_changed_one_has_not(project):
    text = project.run("python", "-m", "pipeline.verify", "default", "--run", "proxy_nca/0")
    assert "5 of 5 have the bytes that commit" in text and "1 of 1 runs made again: same bytes" in text
    assert project.run("git", "status", "--porcelain") == ""
