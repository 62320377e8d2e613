"""The Ray engine: tasks on the nodes of a Ray cluster. Each task has the GPU, or the share of one, that Ray gave it.

If the nodes see this clone (no `machine.ray_clones`), a task is a worker that takes runs from the store, as on SLURM.
Otherwise a task makes one run in a clone on its node: the code comes as a commit, the data come by `dvc pull`, and the
run's files come back into this store, whole, under their key.

If the process or the node of a task dies, this side, not Ray, starts the task again elsewhere. A run that fails is not
started again. A stop is passed on by `ray.cancel`: at the first stop the runs save, the second stop ends them.
"""

import importlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.base.files import BadInputError
from pipeline.base.machine import Machine, variable
from pipeline.engines.local import Outcome
from pipeline.engines.ray_tasks import Clones, Workers, first_line
from pipeline.engines.watch import Stop, Watch
from pipeline.runs.grid import GridRun

HEAD_AWAY = 30
"""The head may be out of reach for this number of seconds. Ray itself would abort this process after 60."""


def package() -> Any:
    """Ray's package. Raises `BadInputError` if it is not installed."""
    # Set before the import, which reads them: show every line of a run, and send no statistics on the use of Ray.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise BadInputError(
            f"machine.engine: ray needs the package ray ({error}): make ray, or pip install --require-hashes -r "
            "requirements-ray.lock, here and on the nodes"
        ) from None


def reach(address: str) -> None:
    """Connect to the head of a cluster. Raises `OSError` or `ValueError` if nothing answers there."""
    host, port = address.removeprefix("ray://").rsplit(":", 1)
    socket.create_connection((host, int(port)), timeout=5).close()


class HeadAwayError(BadInputError):
    """The head of the cluster does not answer. Nothing may be asked of Ray any more, not even to leave the cluster."""


class Head:
    """The head of the cluster that this process has joined."""

    def __init__(self, ray: Any, address: str):
        self.address = address if address.startswith("ray://") else ray.get_runtime_context().gcs_address
        self.heard = time.monotonic()

    def answers(self, left: int) -> bool:
        """Whether the head answers now. If it does not, nothing may be asked of Ray, which would wait or abort. Raises
        `HeadAwayError` if it has not answered for too long; `left` runs are left then."""
        try:
            reach(self.address)
        except OSError as error:
            if time.monotonic() > self.heard + HEAD_AWAY:
                raise HeadAwayError(
                    f"Ray's head at {self.address} has not answered for {HEAD_AWAY} s ({first_line(error)}): {left} "
                    "runs are left. Start this command again when the cluster is up: runs go on from their checkpoints"
                ) from None
            return False
        self.heard = time.monotonic()
        return True


@contextmanager
def quiet_threads(ray: Any) -> Iterator[None]:
    """While the block runs, Ray's own threads do not print a traceback when the connection to the head breaks: `Head`
    says that, in one sentence."""
    usual = threading.excepthook

    def show(error: threading.ExceptHookArgs) -> None:
        if not issubclass(error.exc_type, ray.exceptions.RpcError):
            usual(error)

    threading.excepthook = show
    try:
        yield
    finally:
        threading.excepthook = usual


@contextmanager
def joined(machine: Machine, show: bool = True) -> Iterator[Any]:
    """Join the cluster at `machine.ray_address` while the block runs, and yield Ray's package. `show` says whether the
    output of tasks is shown. Raises `BadInputError` if there is no cluster. After a `HeadAwayError` in the block the
    process ends with exit code 2."""
    ray = package()
    address = machine.ray_address
    try:
        if address != "auto":
            reach(address)  # Ray itself would try for minutes
        ray.init(address=address, logging_level="ERROR", log_to_driver=show)
    except (OSError, OverflowError, RuntimeError, ValueError, ImportError) as error:
        raise BadInputError(
            f"machine.ray_address: there is no Ray cluster at {address} ({first_line(error)}): start one (ray start "
            f"--head), or set {variable('ray_address')}"
        ) from None
    try:
        with quiet_threads(ray):
            yield ray
    except HeadAwayError as error:
        # To leave the cluster, Ray would wait for the head, and abort this process after a minute, often before this
        # message. Without that Python's own end crashes, because of Ray's threads. So this is the end.
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2)
    except BaseException:
        ray.shutdown()
        raise
    ray.shutdown()


def check(machine: Machine) -> None:
    """Raise `BadInputError` if the settings of the machine cannot be used with Ray."""
    if machine.device == "auto":
        raise BadInputError(
            f"machine.device: auto may mean another device here than on Ray's nodes: write cuda or cpu, or set "
            f"{variable('device')}"
        )


def work(machine: Machine, machines: dict[str, Machine], words: list[str], runs: list[GridRun]) -> Outcome:
    """Let Ray make all runs that are not done. Return when each is done or has failed, or after a SIGTERM or Ctrl-C.
    Raises `BadInputError` if there is no cluster, if its head goes away, or if tasks end and no run makes progress."""
    check(machine)
    since = time.time()
    with joined(machine) as ray:
        watch, head = Watch(runs, machines, since), Head(ray, machine.ray_address)
        clones = machine.ray_clones is not None
        tasks = Clones(ray, machine, watch, machines) if clones else Workers(ray, machine, watch, words)
        with Stop() as stop:
            passed_on, next_look = 0, 0.0
            while tasks.running if stop.came else watch.left:
                if not head.answers(len(watch.left)):
                    time.sleep(1)
                    watch.look()
                    continue
                if stop.came > passed_on:
                    passed_on += 1
                    tasks.stop(passed_on)
                if time.time() > next_look:
                    watch.look()
                    next_look = time.time() + min(30, 1 + (time.time() - since) / 20)  # less and less often
                    if not stop.came:
                        tasks.start()
                if tasks.wait(1):
                    next_look = 0.0
            watch.look()
            if not stop.came and tasks.running:  # workers that find no more run to take
                tasks.wait(5, len(tasks.running))
    watch.outcome.stopped = stop.came > 0
    return watch.outcome
