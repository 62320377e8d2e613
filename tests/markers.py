"""Markers: what a test needs that not every machine has.

A test that needs what is missing is skipped and says how to get it. Where CI is set it is not, so that what is missing
there makes it fail; a GPU alone may be missing there too.
"""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import GRID, ray_cluster, slurm


def _chromium() -> str:
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        return "chromium missing: apt-get install chromium"
    missing = [name for name in ("playwright", "axe_playwright_python") if not importlib.util.find_spec(name)]
    return f"{', '.join(missing)} missing: make .venv/tests" if missing else ""


def _program(name: str, package: str) -> Callable[[], str]:
    return lambda: "" if shutil.which(name) else f"{name} missing: apt-get install {package}"


def _gpu() -> str:
    return "" if torch.cuda.is_available() else "there is no GPU"


def _onnx() -> str:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]
    return f"{', '.join(missing)} missing: make .venv/tests" if missing else ""


def _root() -> str:
    mounts = (
        shutil.which("unshare") and not subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode
    )
    return "" if mounts else "may not mount here: wants root, in a container CAP_SYS_ADMIN"


def _shipped() -> str:
    own = (Path(__file__).parents[1] / "params.yaml").read_bytes() != (GRID / "params.yaml").read_bytes()
    return "params.yaml is not the default any more, whose table README shows" if own else ""


LACKS: dict[str, Callable[[], str]] = {
    "chromium": _chromium,
    "gcc": _program("gcc", "gcc libc6-dev"),
    "gpu": _gpu,
    "onnx": _onnx,
    "openssl": _program("openssl", "openssl"),
    "qemu": _program("qemu-x86_64", "qemu-user"),
    "ray": ray_cluster.lacks,
    "root": _root,
    "shipped": _shipped,
    "slurm": slurm.lacks,
}
"""By marker, why what it names cannot be had here; empty where it can."""


def skip_what_cannot_run(tests: list[pytest.Item]) -> None:
    """Skip the tests that need what is missing here, with the reason."""
    for name, lacks in LACKS.items():
        needing = [test for test in tests if test.get_closest_marker(name)]
        if needing and (name == "gpu" or not os.environ.get("CI")) and (reason := lacks()):
            for test in needing:
                test.add_marker(pytest.mark.skip(reason=reason))
