"""Whether this machine has a GPU of NVIDIA's, and whether PyTorch can use it."""

import functools
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIGNS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/proc/driver/nvidia/version")
"""One of these is there if the system has a driver for a GPU."""

DRIVERS = {12: 525, 13: 580}
"""The first NVIDIA driver branch that runs programs of a CUDA major version (NVIDIA's table of minor version
compatibility)."""

INSTEAD = "or choose the processor: machine.device: cpu in the params file, PIPELINE_DEVICE=cpu, or --device cpu"


def visible() -> list[str] | None:
    """The ids of CUDA_VISIBLE_DEVICES as CUDA reads them, which ends the list at the first id that is not there: at -1,
    and at a word such as NoDevFiles. An id that comes twice makes CUDA see no GPU at all. None if it is not set."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return None
    found: list[str] = []
    for gpu in named.split(","):
        gpu = gpu.strip()
        if not re.fullmatch(r"\d+|GPU-[\w-]+|MIG-[\w/-]+", gpu):
            break
        if gpu in found:
            return []
        found.append(gpu)
    return found


def is_there() -> bool:
    """Whether the system has a GPU that the user has not hidden with CUDA_VISIBLE_DEVICES. Asks no library."""
    return visible() != [] and any(Path(sign).exists() for sign in SIGNS)


def runs_on(capability: tuple[int, int], compiled: Sequence[str]) -> bool:
    """Whether a GPU of this compute capability runs code that was compiled for `compiled`, such as "sm_86". Code runs
    on GPUs of its major number with its minor number or a higher one."""
    built = [divmod(int(number[1]), 10) for name in compiled if (number := re.fullmatch(r"sm_(\d+)[af]?", name))]
    return any(major == capability[0] and minor <= capability[1] for major, minor in built)


@functools.cache
def problem() -> str:
    """Why PyTorch cannot use the first GPU that is there, with the fix; empty if it can, or if there is none."""
    if not is_there():
        return ""
    import torch

    cuda = torch.version.cuda
    if cuda is None:
        return f"there is a GPU, but this PyTorch is built without CUDA: install the locked packages, {INSTEAD}"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if not usable:
        why = " ".join(str(warning.message).split("\n")[0] for warning in said) or "it sees none"
        first = DRIVERS.get(int(cuda.split(".")[0]), "of that version")
        return (
            f"there is a GPU, but PyTorch cannot use it: {why} PyTorch is built for CUDA {cuda}, which needs the "
            f"NVIDIA driver {first} or newer: update the driver, {INSTEAD}"
        )
    # Asked without CUDA, because processes are forked from this one, and that must be before CUDA is used.
    capability = _from_nvml((visible() or ["0"])[0], "nvmlDeviceGetCudaComputeCapability")
    return "" if capability is None else capability_problem(tuple(capability), torch.cuda.get_arch_list())


def capability_problem(capability: tuple[int, int], compiled: Sequence[str]) -> str:
    """Why a GPU of this compute capability cannot run code that was compiled for `compiled`; empty if it can."""
    if runs_on(capability, compiled):
        return ""
    have = f"the GPU has the compute capability {capability[0]}.{capability[1]}"
    return f"{have}, and PyTorch is compiled for {', '.join(compiled)}: use another GPU, {INSTEAD}"


def _from_nvml(gpu: str, question: str) -> Any:
    """What NVML answers to a question about a GPU, given by its id in CUDA_VISIBLE_DEVICES; None without an answer."""
    try:
        import pynvml

        pynvml.nvmlInit()
        by_number = gpu.isdigit()
        handle = (pynvml.nvmlDeviceGetHandleByIndex if by_number else pynvml.nvmlDeviceGetHandleByUUID)(
            int(gpu) if by_number else gpu
        )
        return getattr(pynvml, question)(handle)
    except Exception:  # no NVML, no such GPU, or a part of one: the question stays open
        return None


def gpu_text(gpu: dict[str, Any] | None) -> str:
    """The GPU of a machine (`provenance.machine`) as text."""
    if gpu is None:
        return "no GPU"
    return f"{gpu['name']}, driver {gpu['driver'] or 'unknown'}, cuDNN {gpu['cudnn'] or 'unknown'}"


def driver_version() -> str | None:
    """The version of NVIDIA's driver, such as "580.65.06"; None if NVML does not say it."""
    try:
        import pynvml

        pynvml.nvmlInit()
        found = pynvml.nvmlSystemGetDriverVersion()
    except Exception:  # A GPU machine with its own set of packages may lack NVML. The rest is still worth recording.
        return None
    return found.decode() if isinstance(found, bytes) else str(found)


def numa_node(gpu: str, devices: Path = Path("/sys/bus/pci/devices")) -> int | None:
    """The NUMA node that a GPU is connected to, given by its id in CUDA_VISIBLE_DEVICES; None if it is not known."""
    pci = _from_nvml(gpu, "nvmlDeviceGetPciInfo")
    if pci is None:
        return None
    address = pci.busId.decode() if isinstance(pci.busId, bytes) else pci.busId
    domain, _, rest = address.lower().partition(":")
    try:
        node = int((devices / f"{domain[-4:]}:{rest}" / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None
