"""Ray's tasks: which are started, and what is done when they end (engines/ray.py)."""

import io
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.base.environment import handed
from pipeline.base.files import BadInputError, sha256
from pipeline.base.machine import Machine, variable
from pipeline.engines import ray_node
from pipeline.engines.local import TERMINATED
from pipeline.engines.one_run import keys
from pipeline.engines.watch import Watch
from pipeline.networks.published import file_name
from pipeline.runs import store
from pipeline.runs.grid import GridRun

LOST_AT_MOST = 20
"""A run fails if its node or process dies this often in one call."""

UNREADY_AT_MOST = 3
"""A run fails if code or data cannot be brought to its node this often."""

PAUSE = 2.0
"""Seconds before another try. What a dead process held becomes free only a moment later."""


def needs(machine: Machine, runs: list[GridRun]) -> dict[str, float]:
    """The resources that a task asks Ray for: a GPU or a share of one, or the processors that its runs compute on. As
    in engines/places.py, a run on the processor takes a GPU's place if `machine.gpus` is not all."""
    if machine.device == "cuda" or machine.gpus != "all":
        return {"num_cpus": 1, "num_gpus": 1 / machine.runs_per_gpu}
    return {"num_cpus": max(run.run.recipe.cpu_threads for run in runs)}


def room(ray: Any, wanted: dict[str, float]) -> int:
    """The number of tasks for which the nodes that are alive now have room."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU"}
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # Ray counts in steps of 1/10,000, so three thirds make one.
    return sum(
        min(math.floor(node.get(names[name], 0) / of + 1e-3) for name, of in wanted.items() if of) for node in alive
    )


def environment(machine: Machine) -> dict[str, str]:
    """The environment variables for a run's process: the settings of the machine, with those that make the process use
    what Ray gave its task."""
    given = handed() | {name: os.environ[name] for name in map(variable, Machine.model_fields) if name in os.environ}
    settings = {
        "engine": "local", "gpus": "all", "runs_per_gpu": 1, "workers_at_most": 1, "device": machine.device,
        "workers": machine.workers, "checkpoints": machine.checkpoints or "null",
    }  # fmt: skip
    return given | {variable(key): str(value) for key, value in settings.items()}


class Tasks(ABC):
    """Tasks that Ray has not finished. A subclass decides what is started, and what is done when a task ends."""

    def __init__(self, ray: Any, machine: Machine, watch: Watch):
        self.ray, self.machine, self.watch = ray, machine, watch
        ray.cloudpickle.register_pickle_by_value(ray_node)
        self.running: dict[Any, Any] = {}
        self.wanted = needs(machine, watch.left)
        if machine.workers_at_most is None and not room(ray, self.wanted):
            asked = " and ".join(f"{of:g} {name.removeprefix('num_').upper()[:-1]}" for name, of in self.wanted.items())
            raise BadInputError(
                f"machine.ray_address: no node of this cluster has {asked} for a run; if the cluster can grow, set "
                f"machine.workers_at_most, or {variable('workers_at_most')}, to the most tasks at a time"
            )

    def limit(self) -> int:
        """The number of tasks that may run now."""
        return self.machine.workers_at_most or room(self.ray, self.wanted)

    def submit(self, function: Any, *words: Any) -> Any:
        """Start a task. Ray itself never starts a task again."""
        return self.ray.remote(max_retries=0, **self.wanted)(function).remote(*words)

    @abstractmethod
    def start(self) -> None:
        """Start the tasks for which there is room."""

    @abstractmethod
    def ends(self, task: Any, result: Any) -> None:
        """Handle the result of a task, or the exception with which it ended."""

    def wait(self, seconds: float, count: int = 1) -> bool:
        """Wait until `count` tasks have ended, but no longer than `seconds`. Return whether a task has ended."""
        if not self.running:
            time.sleep(seconds)
            return False
        ended, _ = self.ray.wait(list(self.running), num_returns=count, timeout=seconds)
        for task in ended:
            try:
                result = self.ray.get(task)
            except self.ray.exceptions.TaskCancelledError:
                result = TERMINATED
            except Exception as error:
                # The task's own exception, which Ray wraps, or the error of its process or node.
                result = getattr(error, "cause", None) or error
            self.ends(task, result)
            self.running.pop(task)
        return bool(ended)

    def stop(self, number: int) -> None:
        """Let running tasks save; at the second call, end them."""
        for task in self.running:
            self.ray.cancel(task, force=number > 1)


class Workers(Tasks):
    """Workers that take runs from this store, which their nodes see."""

    def __init__(self, ray: Any, machine: Machine, watch: Watch, words: list[str]):
        super().__init__(ray, machine, watch)
        self.words, self.started, self.in_vain, self.next_start = words, 0, 0, 0.0
        self.footprint = watch.footprint()

    def start(self) -> None:
        """Start workers until there are as many as runs that can be made or are being made."""
        if time.monotonic() < self.next_start:
            return
        states = [self.watch.keys[run.place].state() for run in self.watch.left]
        count = min(self.limit(), sum(state != "waits" for state in states)) - len(self.running)
        own = {"PIPELINE_SHARED_BY": str(self.machine.runs_per_gpu)}
        command = ["-m", "pipeline.run_grid", *self.words, "--worker-since", str(self.watch.since)]
        for _ in range(count):
            number = {"PIPELINE_WORKER": str(self.started)}
            words = (command, str(Path.cwd()), environment(self.machine) | own | number)
            self.running[self.submit(ray_node.worker, *words)] = None
            self.started += 1

    def ends(self, task: Any, result: Any) -> None:
        """Note that a worker has ended. Raises `BadInputError` if too many workers end and no run makes progress."""
        footprint = self.watch.footprint()
        self.in_vain = self.in_vain + 1 if footprint == self.footprint else 0
        self.footprint = footprint
        self.next_start = time.monotonic() + min(30, PAUSE * (1 + self.in_vain))
        if result in (0, 1, TERMINATED):  # 1: one of its runs has failed and has printed why
            return
        said = f"exit code {result}" if isinstance(result, int) else first_line(result)
        print(f"Ray: a worker has ended: {said}", file=sys.stderr, flush=True)
        if self.in_vain > UNREADY_AT_MOST * max(1, self.limit()):
            raise BadInputError(f"Ray's workers end, and no run makes progress; the last worker: {said}")


class Clones(Tasks):
    """Runs, each as a task in a clone on its node."""

    def __init__(self, ray: Any, machine: Machine, watch: Watch, machines: dict[str, Machine]):
        super().__init__(ray, machine, watch)
        self.machines, self.tries, self.claims = machines, dict[Path, dict[int, int]](), dict[Any, ExitStack]()
        self.not_before: dict[Path, float] = {}
        self.code = ray.put(packed_code())

    def start(self) -> None:
        """Start the first runs that can be made and are not being made."""
        for run in self.watch.left:
            if len(self.running) >= self.limit():
                break
            mine = run in self.running.values() or time.monotonic() < self.not_before.get(run.place, 0)
            if not mine and self.watch.keys[run.place].state() not in ("done", "running", "waits"):
                self.start_run(run)

    def start_run(self, run: GridRun) -> None:
        """Hold the run's keys and start its task, unless another process holds them."""
        claims, own = ExitStack(), self.watch.keys[run.place]
        try:
            for key in own.own:
                claims.enter_context(store.claim(key))
        except store.HeldError:
            claims.close()
            return
        given = [key for key in (*own.own, *own.awaited) if store.is_done(key)]
        files = {key: {path.name: path.read_bytes() for path in store.folder(key).iterdir()} for key in given}
        words = (self.code, self.machine.ray_clones, self.request(run), files, environment(self.machine))
        task = self.submit(ray_node.one_run, *words)
        self.running[task], self.claims[task] = run, claims

    def request(self, run: GridRun) -> dict[str, Any]:
        """The description of the run that its task needs."""
        of, own = self.machines[run.grid], keys(run, self.machines[run.grid].device)
        data = run.run.dataset
        targets = [f"data/packed/{data}", f"data/splits/{data}"]
        if run.run.subset:
            targets.append(f"data/subsets/{data}")
        recipe = run.run.recipe
        if recipe.pretrained and run.run.protocol != "raw_pixels":
            targets.append(f"data/weights/{recipe.weights.file if recipe.weights else file_name(recipe.backbone)}")
        names = ("device", "workers", "checkpoints", "cuda_graphs")
        machine = {"workers_at_most": 1} | {name: getattr(of, name) for name in names}
        return {
            "grid": run.grid, "dataset": data, "table": run.table, "place": str(run.place), "targets": targets,
            "keys": [key.digest for key in own], "contents": [key.content for key in own], "machine": machine,
            "shared_by": self.machine.runs_per_gpu,
        }  # fmt: skip

    def ends(self, task: Any, result: Any) -> None:
        """Put a run's files or its error into the store; if there are none, let it be started again."""
        run: GridRun = self.running[task]
        self.claims.pop(task).close()
        self.not_before[run.place] = time.monotonic() + PAUSE
        if result == TERMINATED:
            return
        if not isinstance(result, dict):
            self.again(run, result)
            return
        with store.beside(self.watch.keys[run.place].own[0], "log").open("ab") as log:
            log.write(result["log"])
        for key, files in result["files"].items():
            take_in(key, files)
        for key, error in result["errors"].items():
            store.note_error(key, error)
        if not result["files"] and not result["errors"] and result["code"] != TERMINATED:
            self.again(run, RuntimeError(f"exit code {result['code']}, and nothing was made"))

    def again(self, run: GridRun, problem: Exception | str) -> None:
        """Count how often a run's task died, or its node was not ready. If this happens too often, the run fails."""
        most = UNREADY_AT_MOST if isinstance(problem, str) else LOST_AT_MOST
        counts = self.tries.setdefault(run.place, {})
        counts[most] = counts.get(most, 0) + 1
        if counts[most] < most:
            print(f"{run.place}: started again: {first_line(problem)}", file=sys.stderr, flush=True)
        else:
            store.note_error(self.watch.keys[run.place].own[0], f"{first_line(problem)} ({most} times)")


def first_line(problem: Exception | str) -> str:
    """The first line of a problem's text."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]


def take_in(key: str, files: dict[str, bytes]) -> None:
    """Put the files of a run from a node into the store if they agree with its record; otherwise note an error."""
    with tempfile.TemporaryDirectory(prefix=".from-ray-", dir=store.STORE) as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        if store.key_of(Path(folder)) != key or not (store.take_in(Path(folder)) or store.is_done(key)):
            store.note_error(key, "the files that came back from a node do not agree with their record")


def packed_code() -> dict[str, Any]:
    """This clone's commit, and DVC's locks as they are now, which say what data there are. Raises `BadInputError` if
    changed files are not in the commit."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            raise BadInputError(f"machine.ray_clones: nodes get the code by commit: {done.stderr.strip()}")
        return done.stdout

    changed = [line[3:] for line in git("status", "--porcelain", "--no-renames").splitlines()]
    changed = [path for path in changed if not path.endswith("dvc.lock") and not path.startswith("metrics/")]
    if changed:
        raise BadInputError(
            f"machine.ray_clones: nodes get the code by commit; commit this first: {', '.join(changed[:8])}"
        )
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=packed, mode="w") as archive:
        git("clone", "--quiet", "--depth", "1", "--no-checkout", f"file://{Path.cwd()}", f"{folder}/clone")
        archive.add(f"{folder}/clone/.git", ".git")
    locks = {name: Path(name).read_bytes() for name in ("dvc.lock", "data/dvc.lock") if Path(name).is_file()}
    hashes = [sha256(Path(name))[:8] for name in locks]
    return {"name": "-".join([git("rev-parse", "HEAD").strip(), *hashes]), "git": packed.getvalue(), "locks": locks}
