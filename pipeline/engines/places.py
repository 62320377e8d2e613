"""Places of this machine for one run at a time each: a GPU or a share of one, and a share of the cores."""

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
    """What CUDA_VISIBLE_DEVICES names it by; None leaves that as it is."""
    cores: frozenset[int] | None = None
    """The processors that its threads may use; None leaves them free."""
    shared_by: int = 1
    """Runs that share the GPU, or the processor."""

    def enter(self) -> None:
        """Keep this process, and the threads and processes that it starts from now on, to the place. How many threads
        compute, the recipe says: it decides the last bits, and the place does not."""
        if self.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpu
        if self.cores is not None:
            os.sched_setaffinity(0, self.cores)


def visible_gpus() -> list[str]:
    """The ids of the GPUs that this process may use: those that CUDA_VISIBLE_DEVICES names, or all."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip()]
    if device_kind("auto") == "cpu":
        return []
    import torch

    return list(map(str, range(torch.cuda.device_count())))


def _gpus(machine: Machine) -> list[str | None]:
    """The ids of the GPUs that machine.gpus means; [None], the processor, where there is none to use."""
    if isinstance(machine.gpus, list):
        return [*machine.gpus]
    if device_kind(machine.device) == "cpu" and machine.gpus == "all":
        return [None]
    visible = visible_gpus()
    if isinstance(machine.gpus, int):
        if machine.gpus > len(visible):
            raise BadInputError(
                f"machine.gpus: {machine.gpus} are wanted, {len(visible)} are here; write all, or fewer"
            )
        visible = visible[: machine.gpus]
    return [*visible] or [None]


def places(machine: Machine, threads: int = 1, at_most: int = MOST_WORKERS) -> list[Place]:
    """The places that `machine` gives, `at_most` so many: every GPU once, then every GPU for the second time, and so
    on, each with its share of the cores; without a GPU, as many as runs of so many `threads` find cores for. Raises
    `BadInputError` where there are fewer GPUs than it wants."""
    gpus = _gpus(machine)
    cores = sorted(os.sched_getaffinity(0))
    each = machine.runs_per_gpu if gpus != [None] else max(machine.runs_per_gpu, len(cores) // threads)
    count = max(1, min(len(gpus) * each, machine.workers_at_most or MOST_WORKERS, at_most))
    shares: list[frozenset[int] | None] = [None]
    if count > 1:
        # Of more places than cores some share one.
        bounds = [place * len(cores) // count for place in range(count + 1)]
        shares = [frozenset(cores[start:end] or cores[start : start + 1]) for start, end in itertools.pairwise(bounds)]
    sharing = [len(range(number, count, len(gpus))) for number in range(len(gpus))]
    return [Place(gpus[n % len(gpus)], shares[n], sharing[n % len(gpus)]) for n in range(count)]


def mps_is_on() -> bool:
    """Whether NVIDIA's Multi-Process Service runs here, with which the kernels of several processes run side by
    side."""
    try:
        asked = subprocess.run(
            ["nvidia-cuda-mps-control"], input="get_server_list\n", text=True, capture_output=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0
