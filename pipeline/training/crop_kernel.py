"""The CUDA kernel of random crops. `crops.plain` computes the same with PyTorch.

NVRTC compiles the kernel when it is first used, in about 0.1 s. PyTorch's wheels for CUDA bring it, so no C compiler is
needed. It and the driver are called through cuda-bindings, NVIDIA's own Python interface to their C functions, which
the wheels require, too. PyTorch's `torch.cuda._compile_kernel` is private and may change.
"""

import ctypes
from functools import lru_cache
from typing import Any

import torch
from cuda.bindings import driver, nvrtc
from torch import Tensor

from pipeline.training.crops import FIELDS, Crops

THREADS = 256
"""The threads of a block. Each computes one value of the result."""

SOURCE = """
extern "C" __global__ void crop(const unsigned char *pixels, const long long *boxes, const int *tables,
                                unsigned char *out, int size, int channels) {
  int place = blockIdx.x * blockDim.x + threadIdx.x;
  if (place >= channels * size * size) return;
  int x = place % size, y = place / size % size, channel = place / (size * size);
  const long long *box = boxes + (long long)blockIdx.y * FIELDS;
  long long stride = box[1];
  const int *across = tables + box[2], *down = tables + box[5];
  int x_taps = (int)box[3], x_bits = (int)box[4], y_taps = (int)box[6], y_bits = (int)box[7];
  const int *x_weights = across + size + x * x_taps, *y_weights = down + size + y * y_taps;
  const unsigned char *row = pixels + box[0] + down[y] * stride + (long long)across[x] * channels + channel;
  int total = 0;
  for (int j = 0; j < y_taps; j++, row += stride) {
    int line = 0;
    for (int i = 0; i < x_taps; i++) line += row[(long long)i * channels] * x_weights[i];
    line = (line + (1 << (x_bits - 1))) >> x_bits;
    total += (line < 255 ? line : 255) * y_weights[j];
  }
  total = (total + (1 << (y_bits - 1))) >> y_bits;
  out[(long long)blockIdx.y * channels * size * size + place] = (unsigned char)(total < 255 ? total : 255);
}
""".replace("FIELDS", str(FIELDS))
"""The kernel. Block (b, i) makes the values from b * THREADS on of crop i."""

KINDS = (*(ctypes.c_void_p,) * 4, *(ctypes.c_int,) * 2)
"""The types of the kernel's arguments."""


def by_kernel(pixels: Tensor, crops: Crops, size: int, channels: int) -> Tensor:
    """The same as `crops.plain`, with all arguments on one GPU. Raises `RuntimeError` with the name that CUDA gives to
    what failed."""
    out = torch.empty(len(crops.boxes), channels, size, size, dtype=torch.uint8, device=pixels.device)
    arguments = (*(part.data_ptr() for part in (pixels, *crops, out)), size, channels)
    blocks = -(-channels * size * size // THREADS)
    with torch.cuda.device(pixels.device):
        stream = torch.cuda.current_stream().cuda_stream
        function = _function(pixels.device)
        _checked(driver.cuLaunchKernel(function, blocks, len(out), 1, THREADS, 1, 1, 0, stream, (arguments, KINDS), 0))
    return out


@lru_cache
def _function(device: torch.device) -> Any:
    """The kernel, loaded on a GPU."""
    code = compiled(*torch.cuda.get_device_capability(device))
    return _checked(driver.cuModuleGetFunction(_checked(driver.cuModuleLoadData(code)), b"crop"))


def compiled(major: int, minor: int) -> bytes:
    """The kernel as machine code for GPUs of a compute capability: that of the nearest older GPU of the same major
    number, if NVRTC does not know this one. Raises `RuntimeError` if NVRTC knows none."""
    known = [kind for kind in _checked(nvrtc.nvrtcGetSupportedArchs()) if kind // 10 == major and kind % 10 <= minor]
    if not known:
        raise RuntimeError(f"NVRTC cannot compile for a GPU of compute capability {major}.{minor}")
    program = _checked(nvrtc.nvrtcCreateProgram(SOURCE.encode(), b"crop.cu", 0, [], []))
    _checked(nvrtc.nvrtcCompileProgram(program, 1, [f"--gpu-architecture=sm_{max(known)}".encode()]))
    code = bytes(_checked(nvrtc.nvrtcGetCUBINSize(program)))
    _checked(nvrtc.nvrtcGetCUBIN(program, code))
    return code


def _checked(result: tuple[Any, ...]) -> Any:
    """What a function of cuda-bindings found. Raises `RuntimeError` if it failed."""
    error, *found = result
    if error.value:
        raise RuntimeError(error.name)
    return found[0] if found else None
