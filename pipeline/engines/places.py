"""Places of this machine, each for one run at a time: a GPU or a share of one, and a share of the cores."""

import itertools
import os
import subprocess
from dataclasses import dataclass

from pipeline.base.files import BadInputError
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
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip()]
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
    visible = visible_gpus()
    if isinstance(machine.gpus, int):
        if machine.gpus > len(visible):
            raise BadInputError(
                f"machine.gpus: {machine.gpus} GPUs are asked for, but there are {len(visible)}: write all, or fewer"
            )
        visible = visible[: machine.gpus]
    return [*visible] or [None]


def places(machine: Machine, threads: int = 1, at_most: int = MOST_WORKERS) -> list[Place]:
    """The places that `machine` gives, but no more than `at_most`: every GPU once, then every GPU a second time, and so
    on, each with its share of the cores. Without a GPU, there are as many places as runs of `threads` threads fit on
    the cores, but at least `machine.runs_per_gpu`. Raises `BadInputError` if there are fewer GPUs than `machine` asks
    for."""
    gpus = _gpus(machine)
    cores = sorted(os.sched_getaffinity(0))
    each = machine.runs_per_gpu if gpus != [None] else max(machine.runs_per_gpu, len(cores) // threads)
    count = max(1, min(len(gpus) * each, machine.workers_at_most or MOST_WORKERS, at_most))
    shares: list[frozenset[int] | None] = [None]
    if count > 1:
        # If there are more places than cores, some places share a core.
        bounds = [place * len(cores) // count for place in range(count + 1)]
        shares = [frozenset(cores[start:end] or cores[start : start + 1]) for start, end in itertools.pairwise(bounds)]
    sharing = [len(range(number, count, len(gpus))) for number in range(len(gpus))]
    return [Place(gpus[n % len(gpus)], shares[n], sharing[n % len(gpus)]) for n in range(count)]


def mps_is_on() -> bool:
    """Whether NVIDIA's Multi-Process Service runs here. With it, kernels of several processes run at the same time."""
    try:
        asked = subprocess.run(
            ["nvidia-cuda-mps-control"], input="get_server_list\n", text=True, capture_output=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0
