"""The Ray engine: tasks on the nodes of a cluster of Ray's, of which each has the GPU, or the share of one, that Ray
gave it.

Where the nodes see this clone (no `machine.ray_clones`), a task is a worker that takes runs from the store, as on
SLURM. Where they do not, a task makes one run in a clone of its node: the code comes by commit, the data by `dvc pull`,
and the run's files come back and into this store, whole, under their key.

A task whose process or node dies is started again elsewhere, by this side and not by Ray; a run that fails is not. A
stop is passed on by `ray.cancel`: the runs save, and the second one ends them.
"""

import importlib
import os
import socket
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


def package() -> Any:
    """Ray's package. Raises `BadInputError` where it is not installed."""
    # Before the import, which reads them: every line of a run is shown, and no statistics on Ray's use are sent.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise BadInputError(
            f"machine.engine: ray wants the package ray ({error}): make ray, or pip install --require-hashes -r "
            "requirements-ray.lock, here and on the nodes"
        ) from None


@contextmanager
def joined(machine: Machine, show: bool = True) -> Iterator[Any]:
    """Be a part of the cluster at `machine.ray_address` while the block runs, and give it Ray's package; `show` what
    its tasks print. Raises `BadInputError` where there is none."""
    ray = package()
    address = machine.ray_address
    try:
        if address != "auto":
            host, port = address.removeprefix("ray://").rsplit(":", 1)
            socket.create_connection((host, int(port)), timeout=5).close()  # Ray itself asks for minutes
        ray.init(address=address, logging_level="ERROR", log_to_driver=show)
    except (OSError, OverflowError, RuntimeError, ValueError, ImportError) as error:
        raise BadInputError(
            f"machine.ray_address: no cluster of Ray's at {address} ({first_line(error)}): start one (ray start "
            f"--head), or set {variable('ray_address')}"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def check(machine: Machine) -> None:
    """Raise `BadInputError` where the settings of the machine do not do for Ray."""
    if machine.device == "auto":
        raise BadInputError(
            f"machine.device: auto may mean another device here than on Ray's nodes: write cuda or cpu, or set "
            f"{variable('device')}"
        )


def work(machine: Machine, machines: dict[str, Machine], words: list[str], runs: list[GridRun]) -> Outcome:
    """Let Ray do all runs that are not done; returns when each is done or has failed, or after a SIGTERM or Ctrl-C.
    Raises `BadInputError` where there is no cluster, or tasks end and nothing comes of it."""
    check(machine)
    since = time.time()
    with joined(machine) as ray:
        watch = Watch(runs, machines, since)
        clones = machine.ray_clones is not None
        tasks = Clones(ray, machine, watch, machines) if clones else Workers(ray, machine, watch, words)
        with Stop() as stop:
            passed_on, next_look = 0, 0.0
            while tasks.running if stop.came else watch.left:
                if stop.came > passed_on:
                    passed_on += 1
                    tasks.stop(passed_on)
                if time.time() > next_look:
                    watch.look()
                    next_look = time.time() + min(30, 1 + (time.time() - since) / 20)  # the longer, the more seldom
                    if not stop.came:
                        tasks.start()
                if tasks.wait(1):
                    next_look = 0.0
            watch.look()
            if not stop.came and tasks.running:  # workers that find nothing more to take
                tasks.wait(5, len(tasks.running))
    watch.outcome.stopped = stop.came > 0
    return watch.outcome
