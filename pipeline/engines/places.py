"""Places of this machine, each for one run at a time: a GPU or a share of one, and a share of the cores."""

import os
import subprocess
from dataclasses import dataclass

from pipeline.base.cores import divided, shares, usable
from pipeline.base.files import BadInputError
from pipeline.base.gpu import numa_node, visible
from pipeline.base.machine import MOST_WORKERS, Machine
from pipeline.runs.key import device_kind


@dataclass(frozen=True)
class Place:
    """Where a run's process may compute."""

    gpu: str | None = None
    """The GPU's id for CUDA_VISIBLE_DEVICES; None leaves this variable as it is."""
    cores: frozenset[int] | None = None
    """The processors that its threads may use; None does not restrict them."""
    shared_by: int = 1
    """The number of runs that share the GPU, or the processor."""

    def enter(self) -> None:
        """Restrict this process, and the threads and processes that it starts from now on, to the place. The number of
        threads that compute comes from the recipe, not from the place, because it decides the last bits."""
        if self.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpu
        if self.cores is not None:
            os.sched_setaffinity(0, self.cores)


def visible_gpus() -> list[str]:
    """The ids of the GPUs that this process may use: those in CUDA_VISIBLE_DEVICES if it is set, otherwise all."""
    if (named := visible()) is not None:
        return named
    if device_kind("auto") == "cpu":
        return []
    import torch

    return list(map(str, range(torch.cuda.device_count())))


def _gpus(machine: Machine) -> list[str | None]:
    """The ids of the GPUs that machine.gpus means; [None], which means the processor, if there is no GPU to use."""
    if isinstance(machine.gpus, list):
        return [*machine.gpus]
    if device_kind(machine.device) == "cpu" and machine.gpus == "all":
        return [None]
    seen = visible_gpus()
    if isinstance(machine.gpus, int):
        if machine.gpus > len(seen):
            raise BadInputError(
                f"machine.gpus: {machine.gpus} GPUs are asked for, but there are {len(seen)}: write all, or fewer"
            )
        seen = seen[: machine.gpus]
    return [*seen] or [None]


def places(machine: Machine, threads: int = 1, at_most: int = MOST_WORKERS) -> list[Place]:
    """The places that `machine` gives, but no more than `at_most`: every GPU once, then every GPU a second time, and so
    on, each with its share of the cores: whole physical cores near its GPU. Without a GPU, there are as many places as
    runs of `threads` threads fit on the cores, but at least `machine.runs_per_gpu`. Raises `BadInputError` if there are
    fewer GPUs than `machine` asks for."""
    gpus = _gpus(machine)
    cores = sorted(os.sched_getaffinity(0))
    each = machine.runs_per_gpu if gpus != [None] else max(machine.runs_per_gpu, usable() // threads)
    count = max(1, min(len(gpus) * each, machine.workers_at_most or MOST_WORKERS, at_most))
    own: list[frozenset[int] | None] = [None]
    if count > 1 and gpus == [None]:
        own = [*divided([[core] for core in cores], count)]
    elif count > 1:
        nodes = {gpu: numa_node(gpu) for gpu in gpus if gpu is not None}
        own = [*shares([nodes[gpus[n % len(gpus)] or ""] for n in range(count)], cores)]
    sharing = [len(range(number, count, len(gpus))) for number in range(len(gpus))]
    return [Place(gpus[n % len(gpus)], own[n], sharing[n % len(gpus)]) for n in range(count)]


def mps_is_on() -> bool:
    """Whether NVIDIA's Multi-Process Service runs here. With it, kernels of several processes run at the same time."""
    try:
        asked = subprocess.run(
            ["nvidia-cuda-mps-control"], input="get_server_list\n", text=True, capture_output=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0
