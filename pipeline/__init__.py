"""Deep metric learning experiments as a reproducible pipeline: stages and tools on top, what they share in rooms below.

What has to be set before torch, numpy or faiss are imported is set here, so that it holds wherever the code is started
from: a stage, a test, a Python prompt.
"""

import ctypes
import os
import sys
import warnings

# A thread of PyTorch's that waits for another sleeps and does not spin. Spinning, two threads on two busy cores trained
# the small network at a twentieth of the speed. It changes no result.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's own kernels
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # its convolutions
    # Its matrix products. MKL has other kernels for Intel's processors than for AMD's; this is what both have.
    "MKL_CBWR": "COMPATIBLE",
    "OPENBLAS_CORETYPE": "Haswell",  # numpy's, scipy's and faiss's; faiss's own: metrics/clustering.py
}
INSTRUCTIONS = "native" if os.environ.get("PIPELINE_INSTRUCTIONS") == "native" else "portable"
"""Which instructions of the processor the CPU's kernels use. Portable ones give the same bits on every x86-64 processor
that has AVX2. PIPELINE_INSTRUCTIONS=native lets each library choose by the processor and its maker: matrix products are
faster then, and give other bits on another machine. It is a part of every run's key."""

if INSTRUCTIONS == "portable" and "torch" in sys.modules and not os.environ.items() >= PORTABLE.items():
    INSTRUCTIONS = "native"  # What the key says has to be what runs.
    warnings.warn("torch was imported before pipeline: its instructions are native, not portable", stacklevel=2)
if INSTRUCTIONS == "portable":
    os.environ |= PORTABLE

# glibc gives large blocks of memory back to the system whenever they are freed, and training takes as large ones again
# in the next step. It keeps them here: a run of the default then has 117,000 page faults in place of 255,000 or more on
# a 2-core AMD EPYC, and the same bytes.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""As in glibc's malloc.h."""

_libc = ctypes.CDLL(None)
if hasattr(_libc, "mallopt"):
    _libc.mallopt(M_MMAP_MAX, 0)
    _libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
