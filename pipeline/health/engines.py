"""Which engines this machine can use, and how long a grid would take on them."""

import importlib.metadata
import multiprocessing
import shutil
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from typing import Literal, NamedTuple

from pipeline.base.files import BadInputError
from pipeline.base.machine import Machine
from pipeline.engines import ray, slurm
from pipeline.engines.places import mps_is_on, places
from pipeline.runs import store
from pipeline.runs.cost import modelled_seconds
from pipeline.runs.grid import GridRun


def _hold(key: str, held: Event, enough: Event) -> None:
    with store.claim(key):
        held.set()
        enough.wait(30)


def lock_problem(key: str = "0" * 64) -> str:
    """Claim a key of no run from two processes. Return what is wrong with the locks, or "". Takes a second."""
    context = multiprocessing.get_context("spawn")
    held, enough = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(key, held, enough))
    other.start()
    try:
        if not held.wait(30):
            return "a process could not lock a file there"
        try:
            with store.claim(key):
                return "two processes hold the same lock there: a run would be made twice"
        except store.HeldError:
            pass
        enough.set()
        other.join(30)
        try:
            with store.claim(key):
                return ""
        except store.HeldError:
            return "a lock there outlives its process: a run that was killed could never be started again"
    except OSError as error:
        return f"locking a file there fails: {error.strerror}"
    finally:
        enough.set()
        other.join(30)
        store.beside(key, "lock").unlink(missing_ok=True)


class Engine(NamedTuple):
    """What an engine can do here. `problem` says why it cannot be used; it is empty if it can."""

    name: str
    found: str
    problem: str = ""
    gpus: int = 0
    """The number of GPUs that it uses at a time."""


def engines(machine: Machine) -> list[Engine]:
    """The local engine as `machine` describes it, and those of SLURM and Ray if they are installed."""
    try:
        here = places(machine)
        gpus = {place.gpu for place in here if place.gpu is not None}
        shared = max(place.shared_by for place in here)
        sharing = f", up to {shared} share one, MPS is {'on' if mps_is_on() else 'off'}" if gpus and shared > 1 else ""
        where = f"{len(gpus)} GPUs" if gpus else "processors"
        local = Engine("local", f"up to {len(here)} runs at a time on {where}{sharing}", "", len(gpus))
    except BadInputError as error:
        local = Engine("local", "no place for a run", str(error))
    return [local, *_slurm(machine), *_ray(machine)]


def _slurm(machine: Machine) -> Iterator[Engine]:
    if not shutil.which("sbatch"):
        return
    try:
        slurm.check(machine)
    except BadInputError as error:
        yield Engine("slurm", "sbatch is here", str(error))
        return
    tasks = machine.workers_at_most or 1
    yield Engine("slurm", f"sbatch is here, at most {tasks} tasks at a time", "", tasks)


def _ray(machine: Machine) -> Iterator[Engine]:
    try:
        found = f"{importlib.metadata.version('ray')} is here"
    except importlib.metadata.PackageNotFoundError:
        found = "not installed"
    if machine.engine != "ray":
        if found != "not installed":
            yield Engine("ray", f"{found}; its cluster is checked only if machine.engine is ray")
        return
    try:
        ray.check(machine)
        with ray.joined(machine, show=False) as package:
            nodes, gpus = sum(node["Alive"] for node in package.nodes()), int(package.cluster_resources().get("GPU", 0))
    except BadInputError as error:
        yield Engine("ray", found, str(error))
        return
    at_a_time = min(gpus, machine.workers_at_most or gpus)
    yield Engine("ray", f"{found}, with a cluster of {nodes} nodes and {gpus} GPUs", "", at_a_time)


def hours(runs: list[GridRun], at_a_time: int) -> float:
    """Hours that a grid would take on `at_a_time` H100 in float32, by the model of docs/scale.md. They are never less
    than those of its longest run."""
    seconds = [modelled_seconds(run) for run in runs]
    return max(sum(seconds) / at_a_time, max(seconds)) / 3600


def lines(
    machine: Machine, grids: dict[str, list[GridRun]]
) -> Iterator[tuple[str, Literal["ok", "warn", "fail"], str, str]]:
    """The lines of doctor's report on locks, engines and times: name, state, what was found, and the fix."""
    problem = lock_problem()
    fix = "put data on a file system with file locks, such as NFS 4, or Lustre mounted with flock" if problem else ""
    yield "File lock", "fail" if problem else "ok", problem or f"held by one of two processes in {store.STORE}", fix
    found = engines(machine)
    for engine in found:
        yield f"Engine {engine.name}", "warn" if engine.problem else "ok", engine.found, engine.problem
    counts = sorted({1, *(engine.gpus for engine in found if engine.gpus)})
    for grid, runs in grids.items():
        times = ", ".join(f"{hours(runs, count):.1f} h on {count}" for count in counts)
        yield f"Time of {grid}", "ok", f"on H100 in float32, by a model, not measured: {times}", ""
