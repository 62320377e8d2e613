"""The stage of many runs: what is done stays, what failed is told, what was changed is run again, and nothing else."""

import json
import re
import shutil
import signal
import subprocess
import time

import pytest
import yaml

from tests.conftest import ENVIRONMENT

WAITING = """
    def forward(self, embeddings, labels):
        if os.path.exists("broken"):
            raise ValueError(f"this is broken on {len(labels)} images")
        if os.path.exists("killed"):
            os.kill(os.getpid(), 9)
        while os.path.exists("wait"):
            open("waiting", "w").close()
            time.sleep(0.05)
"""


@pytest.fixture
def grid(project, tmp_path):
    """A copy of the small project with a loss that can be made to fail, and a grid of two losses; gives its `run`."""
    copy = type(project).__new__(type(project))
    copy.folder = tmp_path / "project"
    shutil.copytree(project.folder, copy.folder, symlinks=True)
    loss = (copy.folder / "pipeline/losses/proxy_nca.py").read_text()
    head, body = re.split(r"\n    def forward.*:\n", loss)
    (copy.folder / "pipeline/losses/moody.py").write_text("import os\nimport time\n" + head + WAITING + body)
    content = yaml.safe_load((copy.folder / "params.yaml").read_text())
    content["tables"] = {
        "two": {"datasets": ["glyphs"], "rows": {"loss": ["moody", "proxy_an"]}, "seeds": [0]},
        "one": {
            "datasets": ["glyphs"],
            "rows": {"dimension": [16]},
            "seeds": [3],
            "loss": "proxy_nca",
            "held_out": True,
        },
    }
    content["losses"]["moody"] = {}
    content["recipes"]["glyphs"] |= {"epochs": 1, "decay_epochs": [1]}
    (copy.folder / "grid").mkdir()
    (copy.folder / "grid/params.yaml").write_text(yaml.safe_dump(content))
    shutil.rmtree(copy.folder / "data/failures", ignore_errors=True)  # of other tests

    def run(*options, table="two", fails=0):
        command = ["python", "-m", "pipeline.run_grid", "--params", "grid/params.yaml", "--dataset", "glyphs"]
        return copy.run(*command, "--table", table, *options, fails=fails)

    run.folder, run.content = copy.folder, content
    return run


def trained(output):
    return re.findall(r"^\$ python -m pipeline\.train .*--out data/runs/grid/\w+/glyphs/(\S+)$", output, re.M)


def test_a_failed_run_is_told_and_leaves_the_others_alone(grid):
    runs, metrics = grid.folder / "data/runs/grid/two/glyphs", grid.folder / "metrics/runs/grid/two/glyphs"
    (grid.folder / "broken").touch()
    output = grid(fails=1)
    assert trained(output) == ["moody/0", "proxy_an/0"]
    assert "error: 1 of 2 runs failed, as told above: data/runs/grid/two/glyphs/moody/0" in output
    assert (metrics / "proxy_an/0.json").is_file() and not (metrics / "moody").exists()
    table = ["python", "-m", "pipeline.tabulate", "--params", "grid/params.yaml", "--table", "two"]
    table += ["--runs", "metrics/runs/grid/two", "--out", "scratch/two"]
    run = subprocess.run(table, cwd=grid.folder, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    assert "Failed: glyphs/moody/0: ValueError: this is broken on 32 images" in run and "| not run" in run

    (grid.folder / "broken").unlink()
    before = (runs / "proxy_an/0/run.json").read_bytes(), (metrics / "proxy_an/0.json").read_bytes()
    (grid.folder / "killed").touch()
    assert trained(grid(fails=1)) == ["moody/0"]
    (note,) = (grid.folder / "data/failures").iterdir()
    assert json.loads(note.read_text())["error"] == "ChildProcessError: killed by SIGKILL"
    (grid.folder / "killed").unlink()
    assert trained(grid()) == ["moody/0"] and not list((grid.folder / "data/failures").iterdir())
    assert before == ((runs / "proxy_an/0/run.json").read_bytes(), (metrics / "proxy_an/0.json").read_bytes())
    lost = metrics / "proxy_an/0_retrievals.json"
    lost.unlink()
    again = grid()
    assert trained(again) == [] and again.count("$ python -m pipeline.evaluate") == 1 and lost.is_file()
    assert "$" not in grid(), "there was something left to do"


def test_a_stop_reaches_the_run_and_the_next_start_goes_on(grid):
    (grid.folder / "wait").touch()
    command = ["python", "-m", "pipeline.run_grid", "--params", "grid/params.yaml", "--table", "two"]
    process = subprocess.Popen(
        [*command, "--dataset", "glyphs", "--row", "moody"], cwd=grid.folder, env=ENVIRONMENT, stderr=subprocess.PIPE
    )
    while not (grid.folder / "waiting").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    time.sleep(3)  # it has been passed on before the run may go on to look at it
    (grid.folder / "wait").unlink()
    _, errors = process.communicate()
    assert process.returncode == 143 and b"told to stop, saved at epoch 1, step 1" in errors
    assert not list(grid.folder.glob("data/failures/*"))
    assert "goes on from epoch 1, step 2" in grid("--row", "moody", "--seed", "0")


def test_what_was_changed_is_run_again_and_nothing_else(grid):
    def states(table="one"):
        return [line.rsplit("glyphs/", 1)[1] for line in grid("--dry-run", table=table).splitlines()]

    def settings(edit):
        edit(grid.content)
        (grid.folder / "grid/params.yaml").write_text(yaml.safe_dump(grid.content))

    rows = ["16/3", "16/3_held_out_choice", "16/3_held_out"]
    assert trained(grid(table="one")) == rows
    runs, metrics = grid.folder / "data/runs/grid/one/glyphs/16", grid.folder / "metrics/runs/grid/one/glyphs/16"
    told = json.loads((metrics / "3_held_out.json").read_text())
    assert told["run"]["protocol"] == "held_out" and told["run"]["recipe"]["dimension"] == 16
    assert states() == [f"{row}: done" for row in rows]
    evaluate = grid.folder / "pipeline/evaluate.py"
    evaluate.write_text(evaluate.read_text() + "\n# Another line.\n")
    assert states() == ["16/3: not evaluated", "16/3_held_out_choice: done", "16/3_held_out: not evaluated"]
    settings(lambda content: content["recipes"]["glyphs"].update(weight_decay=0.5))
    assert states() == [f"{row}: stale" for row in rows]
    assert "choose among the rows 16 and the seeds 3" in grid("--row", "17", table="one", fails=2)
    settings(lambda content: content["tables"]["one"].update(held_out=False, seeds=[3, 4]))
    assert trained(grid("--row", "16", "--seed", "3", table="one")) == ["16/3"]
    kept = [sorted(path.name for path in folder.iterdir()) for folder in (runs, metrics)]
    assert kept == [["3"], ["3.json", "3_retrievals.json"]]
    listed = subprocess.run(
        ["python", "-m", "pipeline.grid", "grid/params.yaml"],
        cwd=grid.folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert re.search(r"^grid +one +2 +1 +0 +0  0\.0 h$", listed, re.M), listed
