"""Where and when something was made: revision, machine, time. What decided its bytes is in the run's record instead."""

import functools
import os
import platform
import re
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.base.environment import held
from pipeline.base.gpu import driver_version, gpu_text

ROOT = Path(__file__).parents[2]


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace", check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def _revision() -> dict[str, Any]:
    """The commit and the changed files, without those that DVC itself rewrites during a repro."""
    status = _git("status", "--porcelain", "--no-renames")
    if status is None:
        return {"revision": None, "reason": "not a git repository, or git is missing"}
    changed = [line[3:] for line in status.splitlines()]
    changed = [path for path in changed if not path.endswith("dvc.lock") and not path.startswith("metrics/")]
    return {"revision": (_git("rev-parse", "HEAD") or "").strip() or None, "clean": not changed, "changed": changed}


FLAGS = re.compile(r"sse4_2|avx.*|fma|f16c|bmi2|amx_.*|neon|asimd|sve.*")
"""Instructions that kernels may choose by; their names are Linux's."""


def _cpu() -> dict[str, Any]:
    """The name of the processor, which of the maker's models it is, and the instructions that kernels may choose by.
    Cloud machines give many models one name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    found = {name.strip(): value.strip() for name, _, value in lines}
    flags = found.get("flags") or found.get("Features") or ""
    return {
        "cpu": found.get("model name") or platform.processor() or platform.machine(),
        "cpu_model": {key: found[key] for key in ("vendor_id", "cpu family", "model", "stepping") if key in found},
        "cpu_flags": sorted(filter(FLAGS.fullmatch, flags.split())),
    }


@functools.cache
def machine(device: torch.device) -> dict[str, Any]:
    """What may decide a result's last bits and is in no key: the processor, and the GPU with its model, driver and
    cuDNN, or None for a CPU."""
    gpu = None
    if device.type == "cuda":
        gpu = {
            "name": torch.cuda.get_device_name(device),
            "driver": driver_version(),
            "cudnn": torch.backends.cudnn.version(),
        }
    return {"cpu": _cpu()["cpu"], "cores": os.cpu_count(), "gpu": gpu}


def worked_on(before: list[dict[str, Any]], here: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Every machine that has worked on a run, the last one last: those `before` and this one. If this one has another
    GPU than the one before it, a line on stderr says so; `name` is the run's name in it."""
    if before and before[-1]["gpu"] != here["gpu"]:
        print(
            f"{name}: earlier steps were taken on {gpu_text(before[-1]['gpu'])}, the next ones are taken on "
            f"{gpu_text(here['gpu'])}: its last bits may differ from those of a run on one GPU, and its tables say so",
            file=sys.stderr,
        )
    return [*(machine for machine in before if machine != here), here]


def _gpu(device: torch.device) -> dict[str, Any] | None:
    """The GPU, and what was used of it."""
    gpu: dict[str, Any] | None = machine(device)["gpu"]
    if gpu is None:
        return None
    return gpu | {"cuda": torch.version.cuda, "peak_memory_bytes": torch.cuda.max_memory_allocated(device)}


def gpu_joules(device: torch.device) -> float | None:
    """The energy in joules that a GPU has used since its driver was loaded, by the GPU's own counter. None for a CPU,
    and if there is no counter (GPUs before Volta, or a part of a GPU)."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None  # A GPU machine with its own set of packages may lack it. The rest is still worth recording.
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except pynvml.NVMLError:
        return None


@dataclass(frozen=True)
class Spent:
    """What it cost to make something: seconds, and joules of the GPU, including what other runs on that GPU used at the
    same time. The joules are None if they are not known."""

    seconds: float = 0.0
    gpu_joules: float | None = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        joules = None
        if self.gpu_joules is not None and other.gpu_joules is not None:
            joules = self.gpu_joules + other.gpu_joules
        return Spent(self.seconds + other.seconds, joules)


class Meter:
    """Measures the time and the energy that are spent from its creation on."""

    def __init__(self, device: torch.device):
        self.device, self.started, self.joules = device, time.monotonic(), gpu_joules(device)

    def read(self) -> Spent:
        """What has been spent so far."""
        now = gpu_joules(self.device)
        joules = None if now is None or self.joules is None else now - self.joules
        return Spent(time.monotonic() - self.started, joules)


def provenance(
    device: torch.device, spent: Spent, machines: list[dict[str, Any]] | None = None, **more: Any
) -> dict[str, Any]:
    """The content of made.json: revision, machine, and the time and energy `spent` in all. It differs each time that
    something is made, so nothing is compared with it. `machines` are all that worked on it, if there were others than
    this one. `more` are additional entries."""
    return {
        "git": _revision(),
        "image": os.environ.get("PIPELINE_IMAGE"),
        "python": platform.python_version(),
        "machine": {
            "system": platform.platform(),
            **_cpu(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": _gpu(device),
        },
        "machines": machines or [machine(device)],
        "environment": held(),
        "seconds": round(spent.seconds, 3),
        "gpu_joules": None if spent.gpu_joules is None else round(spent.gpu_joules),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **more,
    }
