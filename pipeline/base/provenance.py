"""Where and when something was made: revision, machine, time. What decided its bytes is in the run's record instead."""

import os
import platform
import re
import resource
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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


def _cpu() -> str:
    try:
        found = re.search(
            r"^model name\s*:\s*(.+)$",
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"),
            re.MULTILINE,
        )
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _gpu(device: torch.device) -> dict[str, Any] | None:
    if device.type != "cuda":
        return None
    driver = None
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        pass  # Not every container has nvidia-smi. The rest is still worth recording.
    return {
        "name": torch.cuda.get_device_name(device),
        "driver": driver,
        "cuda": torch.version.cuda,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device),
    }


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


def provenance(device: torch.device, spent: Spent, **more: Any) -> dict[str, Any]:
    """The content of made.json: revision, machine, and the time and energy `spent` in all. It differs each time that
    something is made, so nothing is compared with it. `more` are additional entries."""
    return {
        "git": _revision(),
        "image": os.environ.get("PIPELINE_IMAGE"),
        "python": platform.python_version(),
        "machine": {
            "system": platform.platform(),
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": _gpu(device),
        },
        "seconds": round(spent.seconds, 3),
        "gpu_joules": None if spent.gpu_joules is None else round(spent.gpu_joules),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **more,
    }
