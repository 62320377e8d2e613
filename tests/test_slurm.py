"""The SLURM engine on a real SLURM: runs that are broken off in every way end with the bytes of a sequential run."""

import re
import signal
import subprocess
import time

import pytest

from tests import slurm
from tests.conftest import ENVIRONMENT
from tests.hold import until
from tests.test_run_grid import Grid, files_of

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm.cluster(tmp_path_factory.mktemp("slurm") / "cluster") as made:
        yield made


SETTINGS = {
    "PIPELINE_ENGINE": "slurm",
    "PIPELINE_DEVICE": "cpu",
    "PIPELINE_WORKERS_AT_MOST": "2",
    "PIPELINE_SBATCH": "--gres=gpu:1 --time=60 --comment='two words'",
}


@pytest.fixture
def grid(project, tmp_path, cluster, monkeypatch):
    for key, value in {"SLURM_CONF": cluster.environment["SLURM_CONF"], **SETTINGS}.items():
        monkeypatch.setitem(ENVIRONMENT, key, value)
    return Grid(project, tmp_path / "project")


ALL_OF_IT = ("--gres=gpu:2", "--exclusive", "--output=/dev/null", "--wrap=sleep 100")


def node_of(task: str) -> str:
    """The node on which a task runs."""
    return ask("squeue", "--noheader", f"--jobs={task}", "--format=%N")


def ask(*command: str) -> str:
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout.strip()


def tasks(*states: str) -> list[str]:
    """The ids of the tasks in these states, of all if none is given."""
    wanted = [f"--states={','.join(states)}"] if states else []
    return ask("squeue", "--noheader", "--array", "--format=%i", *wanted).split()


class Held:
    """The grid's command, whose run waits in its first step, and then in every step, until it is let go."""

    def __init__(self, grid):
        self.grid, self.process = grid, None

    def start(self, table="two"):
        self.grid.hold.start()
        self.process = self.grid.start(f"--table={table}")

    def caught(self):
        """Wait until the run is in a step that does not end; gives its task, the only one that is left."""
        self.grid.caught(self.process)
        until(lambda: len(tasks("RUNNING")) == 1, 300, "the other worker does not end", self.process)
        return tasks("RUNNING")[0]

    def let_go(self):
        """Let the run go on when it has been asked to stop."""
        self.grid.asked(self.process)
        self.grid.hold.let_go()

    def soon(self):
        """Requeued tasks wait for two minutes, but for this."""
        until(lambda: tasks("PENDING"), 60, "the task is not requeued", self.process)
        time.sleep(11)  # KillWait: what scancel has cancelled it then kills, be it started again or not
        self.grid.hold.start()
        for task in tasks("PENDING"):
            ask("scontrol", "update", f"JobId={task}", "StartTime=now", "TimeLimit=60")


@pytest.fixture
def held(grid, cluster):
    held = Held(grid)
    yield held
    if held.process and held.process.poll() is None:  # the test has failed
        held.process.kill()
        print(*held.process.communicate())
        cluster.print_logs()
    slurm.cancel_all(ENVIRONMENT)


def test_requeue_time_limit_scancel_and_ctrl_c_end_with_the_bytes_of_a_sequential_run(held, grid, project, tmp_path):
    held.start()
    held.caught()
    held.process.send_signal(signal.SIGINT)
    held.let_go()
    errors = held.process.communicate()[1]
    assert held.process.returncode == 143 and "start this command again to resume them" in errors, errors
    assert tasks() == [] and grid.states() == {"two/moody/0": "stopped in epoch 1", "two/proxy_an/0": "done"}

    held.start()
    for break_off in (
        lambda task: ask("scontrol", "requeue", task),
        lambda task: ask("scontrol", "update", f"JobId={task}", "TimeLimit=1"),
        lambda task: ask("scancel", task),
    ):
        break_off(held.caught())
        held.let_go()
        held.soon()
    held.caught()
    grid.hold.let_go()
    errors = held.process.communicate()[1]
    assert held.process.returncode == 0, errors
    assert "2 runs done" in errors or "1 runs done, 0 left" in errors, errors
    logs = "".join(path.read_text() for path in grid.folder.glob("data/store/slurm/*/*.log"))
    assert logs.count("asked to stop: running runs save") == 4, logs
    resumed = re.findall(r"moody/0: goes on from epoch 1, step (\d+)", logs)
    assert len(resumed) == 4 and sorted(resumed, key=int) == resumed and len(set(resumed)) == 4, logs
    assert tasks() == []

    for key in SETTINGS:
        ENVIRONMENT.pop(key)
    sequential = Grid(project, tmp_path / "sequential")
    sequential.run()
    assert files_of(grid.folder) == files_of(sequential.folder)


def test_what_sites_do_to_tasks_ends_with_the_bytes_of_a_sequential_run(held, grid, project, tmp_path, cluster):
    """More urgent work takes the node, a node is drained, and SLURM kills a task before its run has saved.

    This comes before the test that kills a node: SLURM 22.05 then makes no room there for urgent work.
    """
    held.start()
    urgent = ask("sbatch", "--parsable", "--partition=urgent", f"--nodelist={node_of(held.caught())}", *ALL_OF_IT)
    held.let_go()
    until(lambda: tasks("RUNNING") == [urgent], 60, "the urgent task does not run", held.process)
    ask("scancel", urgent)
    held.soon()

    drained = node_of(task := held.caught())
    ask("scontrol", "update", f"NodeName={drained}", "State=DRAIN", "Reason=tests")
    ask("scontrol", "requeue", task)
    held.let_go()
    held.soon()
    task = held.caught()
    assert node_of(task) != drained
    ask("scontrol", "update", f"NodeName={drained}", "State=RESUME")

    ask("scancel", task)  # and the run saves nothing, so SLURM kills it, and a new array goes on
    until(lambda: tasks("RUNNING") and tasks("RUNNING") != [task], 60, "nothing is submitted again", held.process)
    grid.hold.let_go()
    errors = held.process.communicate(timeout=120)[1]
    assert held.process.returncode == 0 and errors.count("SLURM: job ") == 2, errors
    for key in SETTINGS:
        ENVIRONMENT.pop(key)
    sequential = Grid(project, tmp_path / "sequential")
    sequential.run()
    assert files_of(grid.folder) == files_of(sequential.folder)


def test_a_task_that_stops_requeues_itself_and_no_other(held, grid, project, tmp_path, monkeypatch, cluster):
    """Of four tasks one ends and three wait in a run. Each of them is stopped in turn, then a node dies, the
    controller starts again, and at last SLURM cannot be asked."""
    monkeypatch.setitem(ENVIRONMENT, "PIPELINE_WORKERS_AT_MOST", "4")
    # The tasks begin with an empty environment, as clusters have it, and yet make the runs that are asked for.
    monkeypatch.setitem(ENVIRONMENT, "PIPELINE_INSTRUCTIONS", "native")
    monkeypatch.setitem(ENVIRONMENT, "PIPELINE_SBATCH", "--gres=gpu:1 --time=60 --export=NONE")

    def edit(content):
        rows = {"loss": ["moody", "proxy_an"]}
        content["tables"]["many"] = {"datasets": ["glyphs"], "rows": rows, "seeds": [0, 1, 2]}

    grid.settings(edit)
    held.start("many")
    until(lambda: grid.hold.caught(3) and len(tasks()) == 3, 300, "one has to end, three have to wait", held.process)
    array = sorted(tasks("RUNNING"))
    grid.hold.let_go_asked()
    for task in (array[0], array[-1], array[1]):
        ask("scancel", "--batch", "--signal=TERM", task)
        until(lambda: tasks("PENDING"), 60, "the task is not requeued", held.process)
        assert tasks("PENDING") == [task] and sorted(tasks("RUNNING")) == [other for other in array if other != task]
        ask("scontrol", "update", f"JobId={task}", "StartTime=now")
        until(lambda: sorted(tasks("RUNNING")) == array, 60, "the task does not start again", held.process)

    cluster.stop("slurmctld")  # the command goes on without it
    cluster.start("slurmctld")
    until(lambda: sorted(tasks("RUNNING")) == array, 60, "the controller does not know its tasks", held.process)

    grid.hold.start()
    places = dict(line.split() for line in ask("squeue", "--noheader", "--array", "--format=%i %N").splitlines())
    node = places[array[0]]
    on_it = sorted(task for task, place in places.items() if place == node)
    cluster.kill(node)
    until(lambda: sorted(tasks("PENDING")) == on_it, 120, "the node's tasks are not requeued", held.process)
    cluster.start(node)
    for task in on_it:
        ask("scontrol", "update", f"JobId={task}", "StartTime=now")
    until(lambda: sorted(tasks("RUNNING")) == array, 60, "the node's tasks do not start again", held.process)

    with cluster.another_key():  # so that nobody can ask SLURM
        grid.hold.let_go()
        errors = held.process.communicate(timeout=120)[1]
    assert held.process.returncode == 0 and "SLURM does not answer and will be asked again" in errors, errors
    assert set(grid.states("many").values()) == {"done"}

    for key in SETTINGS:
        monkeypatch.delitem(ENVIRONMENT, key)
    sequential = Grid(project, tmp_path / "sequential")
    sequential.settings(edit)
    sequential.run(table="many")
    assert files_of(grid.folder) == files_of(sequential.folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("PIPELINE_DEVICE", "auto", "machine.device: auto may mean another device"),
        ("PIPELINE_WORKERS_AT_MOST", "null", "machine.workers_at_most: say how many tasks"),
        ("PIPELINE_SBATCH", "--partition=none", "sbatch: error: invalid partition specified: none"),
        ("PIPELINE_SBATCH", "--input=/nowhere", "none made progress: see the logs in data/store/slurm/runs-"),
        ("PATH", "/nowhere", "machine.engine: slurm needs sbatch, which is not here"),
    ],
)
def test_what_slurm_cannot_do_is_one_error(grid, monkeypatch, key, value, message):
    python = subprocess.run(["which", "python"], env=ENVIRONMENT, capture_output=True, text=True).stdout.strip()
    monkeypatch.setitem(ENVIRONMENT, key, value)
    command = grid.command("--table=two")[1:]
    output = grid.project.run(python, *command, fails=2)
    assert message in output and "Traceback" not in output and tasks_left() == ""


@pytest.mark.root
def test_nodes_that_cannot_start_tasks_are_one_error(grid, cluster):
    with cluster.full_spools():
        output = grid.run("--table=two", fails=2)
    assert "SLURM's nodes could not start the tasks" in output and "Traceback" not in output and tasks_left() == ""


def tasks_left() -> str:
    return ask("/usr/bin/squeue", "--noheader")


def test_the_printed_script_is_what_sbatch_takes(grid, tmp_path):
    script = grid.run("--print-script", "--row", "proxy_an")
    (tmp_path / "script").write_text(script)
    ask("sbatch", "--wait", f"--chdir={grid.folder}", str(tmp_path / "script"))
    for key in SETTINGS:
        ENVIRONMENT.pop(key)
    assert grid.states() == {"two/moody/0": "not run", "two/proxy_an/0": "done"}
