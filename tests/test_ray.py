"""The Ray engine on a real Ray whose nodes are killed: the bytes are those of a sequential run, be there a common file
system or not."""

import ast
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.base.files import BadInputError
from pipeline.base.machine import Machine
from pipeline.engines import ray_node
from pipeline.engines.one_run import differences
from pipeline.engines.ray import quiet_threads, work
from pipeline.engines.ray_tasks import Clones, Workers, needs, packed_code, room
from pipeline.health.engines import engines
from pipeline.runs.grid import grid_runs
from tests import GRID, ray_cluster, swap
from tests.conftest import ENVIRONMENT, ROOT
from tests.hold import Hold
from tests.test_run_grid import Grid, files_of

BROKEN = """
    def forward(self, embeddings, labels):
        raise ValueError("this is broken")
"""
SETTINGS = {"PIPELINE_ENGINE": "ray", "PIPELINE_DEVICE": "cpu", "PIPELINE_GPUS": "1"}
"""A run takes a GPU's place, though it computes on the processor."""


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    with ray_cluster.cluster(tmp_path_factory.mktemp("ray") / "cluster") as started:
        yield started


class Command:
    """The grid's command, and what it has said so far."""

    def __init__(self, grid, *options):
        self.path = grid.folder.with_name(f"said-{time.monotonic_ns()}")
        with self.path.open("w") as file:
            words = {"cwd": grid.folder, "env": ENVIRONMENT, "stdout": file, "stderr": file}
            self.process = subprocess.Popen(grid.command(*options), **words)

    def said(self) -> str:
        return self.path.read_text(errors="replace")

    def until(self, true):
        """Wait until a function gives something true; gives that."""
        deadline = time.monotonic() + 180
        while not (found := true()):
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.05)
        return found

    def ends(self, code: int) -> str:
        assert self.process.wait(240) == code, self.said()
        return self.said()


class Broken(Grid):
    """A grid with one more loss, which fails; ten steps or so are an epoch."""

    def __init__(self, project, folder):
        super().__init__(project, folder)
        loss = (folder / "pipeline/losses/proxy_nca.py").read_text()
        head, _ = re.split(r"\n    def forward.*:\n", loss)
        (folder / "pipeline/losses/broken.py").write_text(head + BROKEN)
        of = {"datasets": ["glyphs"], "seeds": [0]}
        recipe = {"batch_size": 512, "epochs": 2, "schedule": {"name": "constant"}}

        def edit(content):
            content["losses"]["broken"] = {}
            content["recipes"]["glyphs"] |= recipe
            content["tables"] = {
                "two": of | {"rows": {"loss": ["moody", "broken"]}},
                "one": of | {"rows": {"dimension": [16]}, "loss": "proxy_nca", "protocols": ["held_out"]},
            }

        self.settings(edit)


@pytest.fixture
def start():
    """Start a grid's command; what a failed test leaves running ends with the test."""
    commands = []

    def start(grid, *options):
        commands.append(Command(grid, *options))
        return commands[-1]

    yield start
    for command in commands:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()


@pytest.fixture
def by_ray(monkeypatch, ray):
    for key, value in {**SETTINGS, "PIPELINE_RAY_ADDRESS": ray.address}.items():
        monkeypatch.setitem(ENVIRONMENT, key, value)


@pytest.fixture(scope="module")
def sequential(project, tmp_path_factory):
    """What the grid keeps when this machine makes one run after another."""
    grid = Broken(project, tmp_path_factory.mktemp("sequential") / "project")
    grid.run(table=None, fails=1)
    return files_of(grid.folder)


@pytest.mark.ray
def test_workers_on_a_common_file_system(project, tmp_path, ray, sequential, by_ray, start):
    grid, nodes = Broken(project, tmp_path / "project"), ray.up()
    found = engines(Machine(device="cpu", workers=0, engine="ray", ray_address=ray.address))[-1]
    assert "is here, with a cluster of 3 nodes and 2 GPUs" in found.found and found.gpus == 2 and not found.problem
    hold = Hold(*nodes)
    hold.start()
    command = start(grid, "--row=moody")
    (node,) = command.until(hold.caught)
    assert [path.read_text() for path in node.glob("waiting-*")] == ["0"]  # the GPU that Ray gave it
    command.process.send_signal(signal.SIGINT)
    command.until(hold.asked)
    hold.let_go()
    assert "start this command again to resume them" in (said := command.ends(143))
    assert "asked to stop: running runs save" in said

    hold.start()
    command = start(grid, "--row=moody")
    (node,) = command.until(hold.caught)
    ray.kill(node)
    hold.let_go()
    said = command.ends(0)
    assert "Ray: a worker has ended: " in said and "1 runs done, 0 left" in said, said
    logs = "".join(path.read_text() for path in grid.folder.glob("data/store/*.log"))
    assert logs.count("moody/0: goes on from epoch 1, step 2") == 2, logs
    assert files_of(grid.folder) == {name: of for name, of in sequential.items() if "/moody/" in name}


@pytest.mark.ray
def test_clones_without_a_common_file_system(project, tmp_path, ray, sequential, by_ray, start, monkeypatch):
    """Code, data and results go over the network; a run of a node that dies goes on elsewhere from the copy of its
    checkpoint; a run that fails is not made again."""
    grid, nodes = Broken(project, tmp_path / "project"), ray.up()
    monkeypatch.setitem(ENVIRONMENT, "PIPELINE_RAY_CLONES", "$NODE_FOLDER/clones")
    monkeypatch.setitem(ENVIRONMENT, "PIPELINE_RUNS_PER_GPU", "2")  # though a node has but one processor
    monkeypatch.setitem(ENVIRONMENT, "PIPELINE_CHECKPOINTS", f"file://{tmp_path}/copies")
    with monkeypatch.context() as here, pytest.raises(BadInputError, match=r"commit this first: .*losses/moody\.py"):
        here.chdir(grid.folder)
        packed_code()
    config = grid.folder / ".dvc/config"
    remote = f"['remote \"folder\"']\n    url = {tmp_path}/remote\n"
    swap(config, "[core]\n", f"{remote}[core]\n    remote = folder\n")
    grid.project.run("dvc", "push", "data/packed/glyphs", "data/splits/glyphs")
    grid.project.commit()

    hold = Hold(*nodes)
    hold.start(10)
    command = start(grid)
    (node,) = command.until(hold.caught)
    (copy,) = command.until(lambda: list(tmp_path.glob("copies/*.checkpoint")))
    ray.kill(node)
    hold.let_go()
    said = command.ends(1)
    assert "mine/glyphs/two/moody/0: started again: " in said, said
    assert said.count("two/broken/0: started\n") == 1, said
    assert "two/broken/0: failed: ValueError: this is broken" in said, said
    log = (grid.folder / "data/store" / copy.with_suffix(".log").name).read_text()
    assert "checkpoint taken from file://" in log and "moody/0: goes on from epoch 2, step 1" in log, log
    assert list(tmp_path.glob("copies/*")) == []
    made = json.loads((grid.folder / "metrics/made/mine/glyphs/two/moody/0.json").read_text())
    assert made["training"]["runs_on_device"] == 2 and made["training"]["git"]["clean"] is True
    for place in nodes:
        (clone,) = place.glob("clones/*-*")
        assert (clone / "data/packed/glyphs/images.bin").is_file()
    left = {path.name for path in nodes[nodes.index(node) - 1].glob("clones/store/*") if path.is_dir()}
    chosen = grid.shown("one/16/0_choose_epoch")
    assert left <= {json.loads((chosen / "run.json").read_text())["key"]}, "a node keeps what it has handed over"
    assert files_of(grid.folder) == sequential


AWAY = """
import sys
import time
from pipeline.base.command import exit_with
from pipeline.base.machine import Machine
from pipeline.engines.ray import Head, joined

def main():
    with joined(Machine(device="cpu", workers=0, engine="ray", ray_address=sys.argv[1])) as package:
        head = Head(package, sys.argv[1])
        while True:
            print(head.answers(3), flush=True)
            time.sleep(0.5)

exit_with(main)
"""
"""Waits for a head, as a command does."""


@pytest.mark.ray
def test_a_head_that_goes_away_is_one_error(ray):
    """The last test on this cluster. Ray itself would wait, and abort the process after a minute."""
    command = [sys.executable, "-c", AWAY, ray.address]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == "True\n"
    ray.ask("kill head")
    _, errors = process.communicate(timeout=240)
    assert re.search(r"^error: .*head at \S+ has not answered for 30 s .*: 3 runs are left\. Start this", errors, re.M)
    assert process.returncode == 2 and "Traceback" not in errors, errors


@pytest.mark.ray
def test_rays_threads_are_silent_when_the_connection_breaks(monkeypatch):
    import ray

    shown = []
    monkeypatch.setattr(threading, "excepthook", lambda error: shown.append(error.exc_type))

    def fail(error):
        raise error

    with quiet_threads(ray):
        for error in (ray.exceptions.RpcError("Connection reset by peer"), ZeroDivisionError("of ours")):
            thread = threading.Thread(target=fail, args=[error])
            thread.start()
            thread.join()
    assert shown == [ZeroDivisionError]


NODES = [
    {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 2.0}},
    {"Alive": True, "Resources": {"CPU": 2.0}},
    {"Alive": False, "Resources": {"CPU": 16.0, "GPU": 8.0}},
]


def test_without_rays_package_it_is_one_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        BadInputError, match=r"machine\.engine: ray needs the package ray \(.*\): make ray, or pip install"
    ):
        work(Machine(device="cpu", workers=0, engine="ray"), {}, [], [])


def test_a_cluster_without_room_is_one_error(monkeypatch):
    monkeypatch.chdir(GRID)
    ray = SimpleNamespace(nodes=lambda: NODES[1:], cloudpickle=SimpleNamespace(register_pickle_by_value=print))
    watch = SimpleNamespace(left=grid_runs("default"), footprint=list)
    with pytest.raises(BadInputError, match="no node of this cluster has 1 CPU and 1 GPU for a run"):
        Workers(ray, Machine(device="cuda", workers=0), watch, [])
    assert Workers(ray, Machine(device="cuda", workers=0, workers_at_most=4), watch, []).limit() == 4


def test_a_device_that_may_differ_is_one_error():
    with pytest.raises(BadInputError, match=r"machine\.device: auto may mean another device"):
        work(Machine(device="auto", workers=0, engine="ray"), {}, [], [])


@pytest.mark.ray
def test_an_address_without_a_cluster_is_one_error():
    machine = Machine(device="cpu", workers=0, engine="ray", ray_address="127.0.0.1:1")
    with pytest.raises(BadInputError, match=r"there is no Ray cluster at 127\.0\.0\.1:1 \("):
        work(machine, {}, [], [])
    assert "there is no Ray cluster at" in engines(machine)[-1].problem


@pytest.mark.parametrize(
    ("settings", "expected", "count"),
    [
        ({"device": "cuda"}, {"num_cpus": 1, "num_gpus": 1}, 2),
        ({"device": "cuda", "runs_per_gpu": 3}, {"num_cpus": 1, "num_gpus": 1 / 3}, 6),
        ({"device": "cpu"}, {"num_cpus": 1}, 18),
    ],
)
def test_what_a_task_asks_for_and_how_many_there_are(monkeypatch, settings, expected, count):
    monkeypatch.chdir(GRID)
    found = needs(Machine.model_validate({"workers": 0} | settings), grid_runs("default"))
    assert found == expected
    assert room(SimpleNamespace(nodes=lambda: NODES), found) == count


def test_what_is_sent_to_a_node_needs_no_clone_there():
    tree = ast.parse(Path(ray_node.__file__).read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert names and all(name.split(".")[0] in sys.stdlib_module_names for name in names)


def test_what_differs_between_two_nodes_is_named():
    there = {"packages": {"torch": "2.14.1", "numpy": "2"}, "data": {"a": "1"}}
    here = {"packages": {"torch": "2.11.0", "numpy": "2"}, "data": {}}
    assert list(differences(there, here)) == [
        "data.a is 1 there and None here",
        "packages.torch is 2.14.1 there and 2.11.0 here",
    ]


def pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), re.MULTILINE))


def test_rays_lock_changes_no_package_that_computes():
    """So a run has the same key with and without Ray."""
    own, computing = pins(ROOT / "requirements-ray.lock"), pins(ROOT / "requirements.lock")
    assert "ray" in own and "ray" not in computing
    assert {name: own[name] for name in own.keys() & computing.keys()} == {
        name: computing[name] for name in own.keys() & computing.keys()
    }


def test_a_node_gets_what_the_grid_says_of_the_machine(project, monkeypatch):
    monkeypatch.chdir(project.folder)
    run = grid_runs("default", "glyphs")[0]
    machine = Machine(device="cpu", workers=3, cuda_graphs="never", runs_per_gpu=2)
    asked = Clones.request(SimpleNamespace(machine=machine, machines={"default": machine}), run)
    made = Machine.model_validate(asked["machine"])
    assert (made.device, made.workers, made.cuda_graphs, asked["shared_by"]) == ("cpu", 3, "never", 2)
