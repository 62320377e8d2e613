"""The local engine: places for runs, what is said of them, and how they are stopped."""

import json
import os
import pty
import re
import signal
import subprocess
import termios
from pathlib import Path

import pytest

from pipeline.base.files import BadInputError, read_json
from pipeline.base.machine import Machine
from pipeline.engines.places import places
from pipeline.engines.server import in_server
from tests.conftest import ENVIRONMENT
from tests.hold import until
from tests.test_run_grid import Grid, children, files_of, started

PLACES = [
    # What machine says, CUDA_VISIBLE_DEVICES, cores: GPU, cores and sharing of each place.
    ({}, None, 7, [(None, None, 1)]),
    ({}, None, 8, [(None, {0, 1, 2, 3}, 2), (None, {4, 5, 6, 7}, 2)]),
    ({"workers_at_most": 1}, None, 8, [(None, None, 1)]),
    ({"runs_per_gpu": 2}, None, 4, [(None, {0, 1}, 2), (None, {2, 3}, 2)]),
    ({"gpus": ["0", "2"]}, None, 5, [("0", {0, 1}, 1), ("2", {2, 3, 4}, 1)]),
    ({"gpus": 1}, "GPU-8a,GPU-9b", 4, [("GPU-8a", None, 1)]),
    ({"device": "cuda"}, "3,5", 2, [("3", {0}, 1), ("5", {1}, 1)]),
    (
        {"device": "cuda", "runs_per_gpu": 2, "workers_at_most": 3},
        "3,5",
        2,
        [("3", {0}, 2), ("5", {0}, 1), ("3", {1}, 2)],
    ),
]


def test_the_server_answers_or_says_that_it_cannot(tmp_path):
    assert in_server(int, "5") == 5
    with pytest.raises(BadInputError, match=r"nothing\.json is missing"):
        in_server(read_json, tmp_path / "nothing.json")
    with pytest.raises(RuntimeError, match="_exit failed: its error is above"):
        in_server(os._exit, 3)


@pytest.mark.parametrize(("settings", "visible", "cores", "expected"), PLACES)
def test_places(monkeypatch, tmp_path, settings, visible, cores, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr("pipeline.base.cores.SYSTEM", tmp_path)
    monkeypatch.setattr("pipeline.engines.places.numa_node", lambda gpu: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    machine = Machine.model_validate({"device": "cpu", "workers": 0} | settings)
    assert [(place.gpu, place.cores, place.shared_by) for place in places(machine, threads=4, at_most=5)] == expected


def test_more_gpus_than_there_are_is_bad_input(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(BadInputError, match=r"machine\.gpus: 2 GPUs are asked for, but there are 1"):
        places(Machine(device="cpu", workers=0, gpus=2))


@pytest.fixture
def grid(project, tmp_path):
    return Grid(project, tmp_path / "project")


SIDE_BY_SIDE = """
        if os.path.exists("together"):
            import json
            from torch import get_num_threads
            place = [os.environ["CUDA_VISIBLE_DEVICES"], sorted(os.sched_getaffinity(0)), get_num_threads()]
            with open(f"seen-{place[0]}", "w") as file:
                json.dump(place, file)
            while not (os.path.exists("seen-a") and os.path.exists("seen-b")):
                time.sleep(0.05)
"""


def test_two_places_make_two_runs_at_a_time_with_the_bytes_of_one(grid, project, tmp_path, monkeypatch):
    def both(grid):
        loss = grid.folder / "pipeline/losses/moody.py"
        loss.write_text(re.sub(r"(\n    def forward.*\n)", r"\1" + SIDE_BY_SIDE.lstrip("\n"), loss.read_text()))
        rows = {"rows": {"loss": ["moody"]}, "seeds": [0, 1]}
        grid.settings(lambda content: content["tables"]["two"].update(rows))

    both(grid)
    (grid.folder / "together").touch()
    monkeypatch.setitem(ENVIRONMENT, "PIPELINE_GPUS", "[a, b]")
    monkeypatch.delitem(ENVIRONMENT, "PIPELINE_WORKERS_AT_MOST")
    output = grid.run()
    assert "2 runs at a time" in output and sorted(started(output)) == ["two/moody/0", "two/moody/1"]
    assert "1 runs done, 1 left" in output and "2 runs done, 0 left" in output
    seen = [json.loads((grid.folder / f"seen-{gpu}").read_text()) for gpu in "ab"]
    cores = sorted(os.sched_getaffinity(0))
    assert [gpu for gpu, _, _ in seen] == ["a", "b"] and {threads for _, _, threads in seen} == {1}
    if len(cores) > 1:
        assert sorted(seen[0][1] + seen[1][1]) == cores
    monkeypatch.delitem(ENVIRONMENT, "PIPELINE_GPUS")
    monkeypatch.setitem(ENVIRONMENT, "PIPELINE_WORKERS_AT_MOST", "1")
    sequential = Grid(project, tmp_path / "sequential")
    both(sequential)
    sequential.run()
    assert files_of(grid.folder) == files_of(sequential.folder)
    made = json.loads((grid.folder / "metrics/made/mine/glyphs/two/moody/0.json").read_text())
    assert all(of["runs_on_device"] == 1 and of["mps"] is False for of in made.values())


def test_a_second_stop_ends_at_once(grid):
    grid.hold.start()
    process = grid.start("--row", "moody")
    grid.caught(process)
    runs = children(process.pid)
    process.send_signal(signal.SIGINT)
    grid.asked(process)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]  # though its run still waits, and cannot save
    assert process.returncode == 143 and errors.count("asked to stop: running runs save") == 1
    assert "saved at" not in errors and grid.states()["two/moody/0"] == "not run"
    until(lambda: not any(Path(f"/proc/{run}").exists() for run in runs), 20, "its run goes on")


def test_a_stop_that_everything_hears_several_times_saves(grid):
    """As on SLURM, which signals each process of a task, or a terminal's Ctrl-C."""
    grid.hold.start()
    process = subprocess.Popen(
        grid.command("--row", "moody"),
        cwd=grid.folder,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    grid.caught(process)
    os.killpg(process.pid, signal.SIGTERM)
    grid.asked(process)
    for run in children(process.pid):
        os.kill(run, signal.SIGINT)
    grid.hold.let_go()
    errors = process.communicate()[1]
    assert process.returncode == 143 and "asked to stop, saved at epoch 1, step 1" in errors, errors
    assert "goes on from epoch 1, step 2" in grid.run("--row", "moody")


def test_all_grids_longest_first_and_dvc_finds_everything_done(grid, tmp_path):
    def edit(content):
        content["tables"] = {
            "two": {"datasets": ["glyphs"], "rows": {"epochs": [1, 2]}, "seeds": [0], "loss": "proxy_nca"}
        }

    grid.settings(edit)
    grid.project.run("python", "-m", "pipeline.choose", "mine")
    (grid.folder / "data/splits/glyphs/held_out_train.csv").unlink()  # of no run here
    driver, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 200))
    process = subprocess.Popen(
        ["python", "-m", "pipeline.run_grid", "--all"], cwd=grid.folder, env=ENVIRONMENT, stderr=terminal
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(driver, 4096)
        except OSError:  # the other end is closed
            break
    assert process.wait() == 0, shown
    text = shown.decode()
    assert text.index("two/2/0: started") < text.index("two/1/0: started") and "2 runs done, 0 left" in text
    assert "two/2/0 epoch 1/2: loss" in text and "1 runs done, 1 left, about 0" in text
    output = grid.project.run("dvc", "repro", "papers/dvc.yaml")
    assert "Running stage 'papers/dvc.yaml:runs@mine-glyphs'" in output and started(output) == []


@pytest.mark.parametrize(
    ("words", "message"), [((), "or --all"), (("mine",), "or --all"), (("mine", "--all"), "leave out")]
)
def test_all_is_all(project, words, message):
    assert message in project.run("python", "-m", "pipeline.run_grid", *words, fails=2)
