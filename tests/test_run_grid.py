"""The stage of many runs: each is done once, whoever works on it and whatever is killed; nothing is lost."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests import swap
from tests.conftest import ENVIRONMENT
from tests.hold import LOSS, Hold, until

WAITING = """
    def forward(self, embeddings, labels):
        if os.path.exists("broken"):
            raise ValueError(f"this is broken on {len(labels)} images")
        if os.path.exists("killed"):
            os.kill(os.getpid(), 9)
        hold(self)
"""
KEPT = ("best_test_epoch.pt", "last_epoch.pt", "code.json", "history.csv", "run.json")


class Grid:
    """A copy of the small project with a loss that can be made to fail, and a grid `mine` of a few short runs."""

    def __init__(self, project, folder: Path):
        self.project = project.copy(folder)
        self.folder, self.hold = folder, Hold(folder)
        loss = (folder / "pipeline/losses/proxy_nca.py").read_text()
        head, body = re.split(r"\n    def forward.*:\n", loss)
        (folder / "pipeline/losses/moody.py").write_text(LOSS + head + WAITING + body)
        content = yaml.safe_load((folder / "params.yaml").read_text())
        content["tables"] = {
            "two": {"datasets": ["glyphs"], "rows": {"loss": ["moody", "proxy_an"]}, "seeds": [0]},
            "one": {
                "datasets": ["glyphs"],
                "rows": {"dimension": [16]},
                "seeds": [3],
                "loss": "proxy_nca",
                "protocols": ["test", "held_out"],
            },
        }
        content["losses"]["moody"] = {}
        content["recipes"]["glyphs"] |= {"epochs": 1, "schedule": {"name": "constant"}}
        (folder / "papers/mine").mkdir()
        self.settings(lambda new: new.update(content))

    def settings(self, edit) -> None:
        path = self.folder / "papers/mine/params.yaml"
        content = yaml.safe_load(path.read_text()) if path.is_file() else {}
        edit(content)
        path.write_text(yaml.safe_dump(content))

    def command(self, *options: str) -> list[str]:
        return ["python", "-m", "pipeline.run_grid", "mine", "glyphs", *options]

    def run(self, *options: str, table: str | None = "two", fails: int = 0) -> str:
        return self.project.run(*self.command(*(["--table", table] if table else []), *options), fails=fails)

    def start(self, *options: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(*options), cwd=self.folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        )

    def caught(self, process: subprocess.Popen) -> None:
        """Wait until a run of this command is in a step that does not end."""
        until(self.hold.caught, 300, "no run is in a step", process)

    def asked(self, process: subprocess.Popen | None = None) -> None:
        """Wait until that run knows that it has been asked to stop."""
        until(self.hold.asked, 300, "no run is asked to stop", process)

    def states(self, table: str | None = "two") -> dict[str, str]:
        lines = self.run("--dry-run", table=table).splitlines()
        return dict(line.removeprefix("mine/glyphs/").rsplit(": ", 1) for line in lines)

    def shown(self, place: str) -> Path:
        return self.folder / "data/runs/mine/glyphs" / place


def written(folder: Path) -> dict[str, tuple[int, int]]:
    """When each file of a run was written, and which file it is."""
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}


def started(output: str) -> list[str]:
    return re.findall(r"^mine/glyphs/(\S+): started$", output, re.M)


@pytest.fixture
def grid(project, tmp_path):
    return Grid(project, tmp_path / "project")


def test_a_failed_run_is_named_and_leaves_the_others_alone(grid):
    metrics = grid.folder / "metrics/runs/mine/glyphs/two"
    (grid.folder / "broken").touch()
    output = grid.run(fails=1)
    assert started(output) == ["two/moody/0", "two/proxy_an/0"]
    assert "error: 1 of 2 runs failed, see above: mine/glyphs/two/moody/0" in output
    assert (metrics / "proxy_an/0.json").is_file() and not (metrics / "moody/0.json").exists()
    assert grid.states() == {"two/moody/0": "failed", "two/proxy_an/0": "done"}
    printed = grid.project.run("python", "-m", "pipeline.tabulate", "mine")
    assert "Failed: glyphs/moody/0: ValueError: this is broken on 32 images" in printed and "| not run" in printed
    assert "1 of 2 planned runs are in this table" in printed
    (grid.folder / "broken").unlink()
    (grid.folder / "killed").touch()
    output = grid.run(fails=1)
    assert output.count("killed by SIGKILL, started again") == 2
    note = json.loads((metrics / "moody/0.error.json").read_text())
    assert note["error"] == "killed by SIGKILL 3 times"
    (grid.folder / "killed").unlink()
    before = written(grid.shown("two/proxy_an/0"))
    assert started(grid.run()) == ["two/moody/0"]
    assert written(grid.shown("two/proxy_an/0")) == before
    assert not (metrics / "moody/0.error.json").exists() and set(grid.states().values()) == {"done"}


def test_a_finished_run_outranks_any_note_of_a_failure(grid):
    """A try by hand that fails, such as on a GPU that is not there, takes nothing out of a table."""
    # The driver does not import torch, which takes seconds, except to ask for a GPU where there may be one.
    used = "'torch' not in sys.modules or sys.modules['torch'].cuda.is_available()"
    script = f"import sys; from pipeline.run_grid import main; main(); assert {used}"
    grid.project.run("python", "-c", script, *grid.command("--table", "two")[3:])
    words = ["--params", "papers/mine/params.yaml", "--dataset", "glyphs", "--loss", "proxy_an", "--seed", "0"]
    words += ["--out", "scratch/run"]
    grid.project.run("python", "-m", "pipeline.train", *words, "--device", "cuda", fails=2)
    key = json.loads((grid.shown("two/proxy_an/0") / "run.json").read_text())["key"]
    (grid.folder / f"data/store/{key}.error.json").write_text(json.dumps({"error": "old", "time": time.time()}))
    assert set(grid.states().values()) == {"done"} and started(grid.run()) == []
    printed = grid.project.run("python", "-m", "pipeline.tabulate", "mine")
    assert "Failed" not in printed and "old" not in printed


def test_what_a_run_lost_is_made_again_and_nothing_else(grid):
    grid.run()
    lost = grid.folder / "metrics/runs/mine/glyphs/two/proxy_an/0.json"
    key = json.loads(lost.read_text())["key"]
    shutil.rmtree(grid.folder / "data/store" / key)
    lost.unlink()
    assert grid.states()["two/proxy_an/0"] == "done", "the queries' folder holds it, too"
    shutil.rmtree(grid.folder / "data/store" / key)
    for place in ("data/queries", "data/cached/queries"):
        shutil.rmtree(grid.folder / place)
    weights = written(grid.shown("two/proxy_an/0"))
    assert grid.states()["two/proxy_an/0"] == "not evaluated"
    assert started(grid.run()) == ["two/proxy_an/0"] and lost.is_file()
    assert written(grid.shown("two/proxy_an/0")) == weights


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_reaches_the_run_and_the_next_start_goes_on(grid, number):
    grid.hold.start()
    process = grid.start("--row", "moody")
    grid.caught(process)
    assert grid.states() == {"two/moody/0": "running in epoch 1", "two/proxy_an/0": "not run"}
    process.send_signal(number)
    grid.asked(process)
    grid.hold.let_go()
    errors = process.communicate()[1]
    assert process.returncode == 143 and "asked to stop, saved at epoch 1, step 1" in errors
    assert "Traceback" not in errors and grid.states()["two/moody/0"] == "stopped in epoch 1"
    status = ("python", "-m", "pipeline.status", "mine")
    assert "; 1 were stopped and go on" in grid.project.run(*status)
    grid.settings(lambda content: content["losses"]["proxy_an"].update(alpha=-3.0))
    wrong = r"error: papers/mine/params.yaml:\n  losses.proxy_an.alpha: input should be greater than 0, found -3.0\n$"
    for said in (grid.run("--dry-run", fails=2), grid.project.run(*status, fails=2)):
        assert re.search(wrong, said) and "Traceback" not in said
    grid.settings(lambda content: content["losses"]["proxy_an"].update(alpha=32.0))
    assert "goes on from epoch 1, step 2" in grid.run("--row", "moody", "--seed", "0")


def test_the_held_out_protocol_and_what_a_changed_setting_runs(grid):
    rows = ["one/16/3_choose_epoch", "one/16/3", "one/16/3_held_out"]
    assert sorted(started(grid.run(table="one"))) == sorted(rows)
    record = json.loads((grid.folder / "metrics/runs/mine/glyphs/one/16/3_held_out.json").read_text())
    settings = record["run"]["content"]["settings"]
    assert settings["protocol"] == "held_out" and settings["recipe"]["dimension"] == 16
    choice = json.loads((grid.shown("one/16/3_choose_epoch") / "run.json").read_text())
    assert record["run"]["content"]["data"]["chosen_by"] == choice["key"] and set(record["metrics"]) == {"held_out"}
    read = choice["content"]["data"]
    assert not any("test" in name for name in read if name != "data/splits/glyphs/held_out_test.csv")
    assert sorted(path.name for path in grid.shown("one/16/3_choose_epoch").iterdir()) == [
        "code.json",
        "history.csv",
        "run.json",
    ]
    assert sorted(path.name for path in grid.shown("one/16/3_held_out").iterdir()) == [
        "code.json",
        "held_out.pt",
        "history.csv",
        "run.json",
    ]
    assert set(grid.states("one").values()) == {"done"}
    grid.settings(
        lambda content: content["recipes"]["glyphs"].update(
            metrics=["recall", "map_at_r", {"name": "nmi", "kmeans": "scikit-learn"}]
        )
    )
    # A run that only chooses an epoch clusters nothing.
    assert grid.states("one") == dict.fromkeys(rows[1:], "not evaluated") | {rows[0]: "done"}
    grid.settings(lambda content: content["recipes"]["glyphs"].update(clip_value=0.5, metrics=["recall", "nmi"]))
    assert grid.states("one") == dict.fromkeys(rows[:2], "not run") | {rows[2]: "waits"}
    assert "choose among the rows 16 and the seeds 3" in grid.run("--row", "17", table="one", fails=2)
    printed = grid.project.run("python", "-m", "pipeline.tabulate", "mine")
    assert "Run with other settings than now, and not shown: glyphs/16/3_choose_epoch, glyphs/16/3" in printed
    before = {"clip_value": None, "metrics": ["recall", "map_at_r", "nmi", "other_groups"]}
    grid.settings(lambda content: content["recipes"]["glyphs"].update(before))
    assert set(grid.states("one").values()) == {"done"}


def test_a_cell_that_two_tables_share_is_trained_once(grid):
    def edit(content):
        same = {"datasets": ["glyphs"], "rows": {"margin": [0.1]}, "loss": "proxy_an", "seeds": [0]}
        content["tables"] = {"two": content["tables"]["two"], "again": same}
        content["tables"]["two"]["rows"] = {"loss": ["proxy_an"]}

    grid.settings(edit)
    output = grid.run(table=None)
    assert len(started(output)) == 1
    files = [grid.shown(place) / "last_epoch.pt" for place in ("two/proxy_an/0", "again/0.1/0")]
    assert files[0].stat().st_ino == files[1].stat().st_ino


def test_nothing_is_removed_but_by_the_command_that_is_asked_for_it(grid):
    grid.run()
    grid.project.run(
        "python", "-m", "pipeline.prune", "--yes"
    )  # what other tests have left in the store that this began with
    by_hand = grid.shown("two/by_hand/0")
    by_hand.mkdir(parents=True)
    (by_hand / "notes.txt").write_text("mine")
    grid.settings(lambda content: content["tables"]["two"].update(rows={"loss": ["proxy_an"]}))
    before = {path: path.stat().st_mtime_ns for path in grid.folder.glob("data/runs/mine/**/*")}
    assert started(grid.run()) == []
    assert before == {path: path.stat().st_mtime_ns for path in grid.folder.glob("data/runs/mine/**/*")}
    printed = grid.project.run("python", "-m", "pipeline.prune")
    assert "0 files and folders" in printed, "what a name shows is kept"
    for place in ("runs", "queries", "cached/runs", "cached/queries"):
        shutil.rmtree(grid.folder / "data" / place / "mine/glyphs/two/moody")
    printed = grid.project.run("env", "PIPELINE_INSTRUCTIONS=native", "python", "-m", "pipeline.prune")
    about = r"\w+ on glyphs, loss moody, seed 0, protocol test, [\d.]+ MB, 0 days old"
    would = re.findall(rf"would remove (data/store/\w{{64}}): {about}$", printed, re.M)
    assert len(would) == 2 and all((grid.folder / path).is_dir() for path in would)
    splits = grid.folder / "data/splits"
    splits.rename(grid.folder / "data/away")
    printed = grid.project.run("python", "-m", "pipeline.prune", "--yes", fails=2)
    assert re.search(
        r"nothing is removed: it is not known whether a grid means data/store/\w+: data/splits/gl", printed
    )
    (grid.folder / "data/away").rename(splits)
    grid.project.run("python", "-m", "pipeline.prune", "--yes")
    assert not any((grid.folder / path).exists() for path in would) and set(grid.states().values()) == {"done"}


def test_a_name_that_somebody_else_uses_is_refused(grid):
    grid.run("--row", "proxy_an")
    place = grid.shown("two/proxy_an/0")
    shutil.rmtree(place)
    place.mkdir()
    (place / "thesis.tex").write_text("years of work")
    assert "is a folder that this stage did not make" in grid.run("--row", "proxy_an", fails=2)
    assert (place / "thesis.tex").read_text() == "years of work"


def many(grid) -> None:
    """Eight short runs."""

    def edit(content):
        content["tables"] = {
            "many": {"datasets": ["glyphs"], "rows": {"loss": ["proxy_an", "proxy_nca"]}, "seeds": [0, 1, 2, 3]}
        }
        content["recipes"]["glyphs"] |= {"batch_size": 512, "epochs": 2}

    grid.settings(edit)


def files_of(folder: Path) -> dict[str, bytes]:
    """What the runs kept, and their metrics, by place."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("data/runs/mine/**/*.*")}
    metrics = folder.glob("metrics/runs/mine/**/*.json")
    return found | {str(path.relative_to(folder)): path.read_bytes() for path in metrics}


@pytest.fixture(scope="module")
def sequential(project, tmp_path_factory):
    grid = Grid(project, tmp_path_factory.mktemp("sequential") / "project")
    many(grid)
    grid.run(table=None)
    found = files_of(grid.folder)
    assert len(found) == 8 * (len(KEPT) + 1)
    return found


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_without_a_partition_do_every_run_once(grid, sequential, workers):
    many(grid)
    processes = [grid.start() for _ in range(workers)]
    errors = [process.communicate()[1] for process in processes]
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == 0, error[-2000:]
    trained = [re.findall(r"^(\S+) epoch 2/2", text, re.M) for text in errors]
    names = [name for of_worker in trained for name in of_worker]
    assert len(names) == len(set(names)) == 8
    assert files_of(grid.folder) == sequential


AT_THE_SAME_TIME = """
import multiprocessing, shutil, sys
from pathlib import Path
from pipeline.runs.grid import grid_runs
from pipeline.runs.names import show, tidy

def name(barrier):
    runs = grid_runs("mine", "glyphs")
    for round in range(5):
        if barrier.wait(60) == 0:
            for folder in ("data/runs", "data/queries", "data/cached", "metrics/runs"):
                shutil.rmtree(folder)
        for run in runs:
            barrier.wait(60)
            show(run, "cpu")
        barrier.wait(60)
        tidy(runs)

if __name__ == "__main__":
    barrier = multiprocessing.Barrier(4)
    processes = [multiprocessing.Process(target=name, args=(barrier,), daemon=True) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    sys.exit(any(process.exitcode != 0 for process in processes))
"""


def test_commands_that_end_at_the_same_time_show_the_same_names(grid, sequential):
    many(grid)
    grid.run(table=None)
    (grid.folder / "same_time.py").write_text(AT_THE_SAME_TIME)
    output = grid.project.run("python", "same_time.py")
    assert "damaged" not in output and "not taken" not in output
    assert files_of(grid.folder) == sequential


def children(process: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True).stdout
    direct = [int(pid) for pid in listed.split()]
    return direct + [grandchild for child in direct for grandchild in children(child)]


def running(process: int) -> bool:
    """Whether a process is there and is not one that has ended and that nobody has waited for."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_kill_9_of_a_worker_its_child_or_both_twenty_times(grid, sequential):
    many(grid)
    generator, kills = random.Random(0), 0

    def kill(worker: int, which: str) -> None:
        nonlocal kills
        kills += 1
        time.sleep(generator.uniform(0, 1.5))
        below = children(worker)
        for victim in {"run": below[-1:], "worker": [worker], "both": [worker, *below]}[which]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)

    while kills < 20:
        process = grid.start()
        for line in process.stderr:  # so that a busy machine changes nothing
            if ": started" in line:
                break
        else:  # all runs are done, so there is nothing to kill: begin again
            assert process.wait() == 0
            for place in ("data/store", "data/runs", "data/queries", "data/cached", "metrics/runs"):
                shutil.rmtree(grid.folder / place)
            continue
        for _ in range(generator.randint(0, 2)):
            kill(process.pid, "run")  # its worker starts it again
        kill(process.pid, generator.choice(["worker", "both"]))
        process.communicate()
    output = grid.run(table=None)
    assert "error" not in output
    assert files_of(grid.folder) == sequential


def test_a_run_whose_driver_was_killed_saves_and_ends(grid):
    grid.hold.start()
    process = grid.start("--row", "moody")
    grid.caught(process)
    runs = children(process.pid)
    process.kill()
    process.wait()  # and not for the end of its output: the run holds that, too
    grid.asked()
    grid.hold.let_go()
    until(lambda: not any(map(running, runs)), 20, "its run goes on")
    assert "goes on from epoch 1" in grid.run("--row", "moody")


def test_runs_of_other_code_are_taken_over_where_they_compute_the_same(grid):
    many(grid)
    grid.run("--row", "proxy_an", "--seed", "0", table=None)
    grid.run("--row", "proxy_an", "--seed", "1", table=None)
    loss = grid.folder / "pipeline/losses/proxy_an.py"
    adopt = ["python", "-m", "pipeline.adopt", "mine", "many", "--because", "margin is only written in another way"]
    swap(loss, "cosine + self.margin", "cosine + 2 * self.margin")
    assert "nothing is taken over" in grid.project.run(*adopt, fails=2)
    swap(loss, "cosine + 2 * self.margin", "cosine + 1 * self.margin")
    assert grid.states("many")["many/proxy_an/0"] == "not run"
    output = grid.project.run(*adopt, "--epochs", "1")
    assert output.count("taken over from") == 2
    assert started(grid.run("--row", "proxy_an", "--seed", "0", table=None)) == ["many/proxy_an/0"]  # to evaluate it
    record = json.loads((grid.shown("many/proxy_an/0") / "run.json").read_text())
    assert record["taken_over"]["because"] == "margin is only written in another way"
    assert record["taken_over"]["compared"].endswith(", 1 of 2 epochs")
    printed = grid.project.run("python", "-m", "pipeline.tabulate", "mine")
    assert "Taken over from other code: glyphs/proxy_an/0: margin is only written in another way" in printed
    assert "every run is done, or the store has no run" in grid.project.run(*adopt, fails=2)
