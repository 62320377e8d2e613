"""Where a number comes from: code, data, libraries and machine, in every metrics file."""

import functools
import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.base.files import sha256

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "pytorch-metric-learning",
    "numpy",
    "scipy",
    "scikit-learn",
    "faiss-cpu",
    "pillow",
    "dvc",
)
ROOT = Path(__file__).parents[2]


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def _revision() -> dict[str, Any]:
    """The commit and the changed files, less those that DVC itself rewrites during a repro."""
    status = _git("status", "--porcelain", "--no-renames")
    if status is None:
        return {"revision": None, "reason": "not a git repository, or git is missing"}
    changed = [line[3:] for line in status.splitlines()]
    changed = [path for path in changed if not path.endswith("dvc.lock") and not path.startswith("metrics/")]
    return {"revision": (_git("rev-parse", "HEAD") or "").strip() or None, "clean": not changed, "changed": changed}


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
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
        pass  # nvidia-smi is not in every container; the rest is still worth recording.
    return {
        "name": torch.cuda.get_device_name(device),
        "driver": driver,
        "cuda": torch.version.cuda,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device),
    }


def code() -> dict[str, str]:
    """SHA-256 of every file of this package that the process has imported, by its path in the repository."""
    files = {Path(module.__file__) for name, module in sys.modules.items() if _ours(name) and module.__file__}
    main = sys.modules["__main__"].__file__ or ""
    files |= {Path(main)} if Path(main).resolve().is_relative_to(ROOT / "pipeline") else set()
    return {str(file.resolve().relative_to(ROOT)): sha256(file) for file in sorted(files)}


def _ours(name: str) -> bool:
    return name == "pipeline" or name.startswith("pipeline.")


def provenance(device: torch.device, inputs: list[Path], seconds: float) -> dict[str, Any]:
    """What a metrics file says of its making. `inputs` are the data files read, `seconds` the stage's own time."""
    return {
        "git": _revision(),
        "code": code(),
        "inputs": {str(path): sha256(path) for path in inputs},
        "versions": _versions(),
        "image": os.environ.get("PIPELINE_IMAGE"),
        "machine": {
            "system": platform.platform(),
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": _gpu(device),
        },
        "seconds": round(seconds, 3),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def unchanged(made: dict[str, Any], device: torch.device | None) -> bool:
    """Whether the code that a provenance tells of is still the same; and with a device whether its input files are, the
    versions, and the kind of device, so that the same would come out again here."""
    told = made["code"]
    if device is not None:
        if made["versions"] != _versions() or (made["machine"]["gpu"] is None) != (device.type == "cpu"):
            return False
        told = told | made["inputs"]
    return all(_known_hash(name) == hashed for name, hashed in told.items())


def _known_hash(name: str) -> str | None:
    path = Path(name)
    if not path.is_file():
        return None
    status = path.stat()
    return _hash_once(path, status.st_mtime_ns, status.st_size)


@functools.cache
def _hash_once(path: Path, changed: int, size: int) -> str:
    """A file's hash, computed once while its time and size stay: a grid's runs read the same gigabytes."""
    return sha256(path)


def _versions() -> dict[str, str | None]:
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
