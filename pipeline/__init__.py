"""Deep metric learning experiments as a reproducible pipeline: stages and tools at the top, packages below them.

This file sets what must be set before torch, numpy or faiss are imported. The settings therefore hold wherever the code
is started from: a stage, a test or a Python prompt.
"""

import ctypes
import os
import sys
import warnings

# A PyTorch thread that waits for another one sleeps and does not spin. When they spun, two threads on two busy cores
# trained the small network at a twentieth of the speed. The setting changes no result.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's own kernels
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # PyTorch's convolutions
    # PyTorch's matrix products. MKL has different kernels for Intel's and AMD's processors; this one runs on both.
    "MKL_CBWR": "COMPATIBLE",
    # Matrix products of numpy, scipy and faiss. For faiss's own kernels see metrics/clustering.py.
    "OPENBLAS_CORETYPE": "Haswell",
}
INSTRUCTIONS = "native" if os.environ.get("PIPELINE_INSTRUCTIONS") == "native" else "portable"
"""Which processor instructions the CPU kernels use. Portable ones give the same bits on every x86-64 processor that has
AVX2. With PIPELINE_INSTRUCTIONS=native each library chooses by the processor and its maker: matrix products are then
faster, and give other bits on another machine. The setting is part of every run's key."""

if INSTRUCTIONS == "portable" and "torch" in sys.modules and not os.environ.items() >= PORTABLE.items():
    INSTRUCTIONS = "native"  # The key must say what really runs.
    warnings.warn("torch was imported before pipeline: its instructions are native, not portable", stacklevel=2)
if INSTRUCTIONS == "portable":
    os.environ |= PORTABLE

# glibc returns large blocks of memory to the system whenever they are freed, and the next training step asks for blocks
# of the same size again. These settings make glibc keep the blocks. On a 2-core AMD EPYC a run of the default then has
# 117,000 page faults instead of 255,000 or more, and gives the same bytes.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""As in glibc's malloc.h."""

_libc = ctypes.CDLL(None)
if hasattr(_libc, "mallopt"):
    _libc.mallopt(M_MMAP_MAX, 0)
    _libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
