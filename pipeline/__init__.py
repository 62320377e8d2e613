"""Deep metric learning experiments as a reproducible pipeline: stages and tools on top, what they share in rooms below.

What has to be set before torch, numpy or faiss are imported is set here, so that it holds wherever the code is started
from: a stage, a test, a Python prompt.
"""

import ctypes
import os

# A thread of PyTorch's that waits for another sleeps and does not spin. Spinning, two threads on two busy cores trained
# the small network at a twentieth of the speed. It changes no result.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

INSTRUCTIONS = "native" if os.environ.get("PIPELINE_INSTRUCTIONS") == "native" else "avx2"
"""The processor's instructions that the CPU kernels use. Held to AVX2 they give the same bits on every x86-64 processor
that has it; PIPELINE_INSTRUCTIONS=native lets each library choose, which may be faster and gives other bits. It is a
part of every run's key."""

if INSTRUCTIONS == "avx2":
    # Not `setdefault`: what the key says has to be what runs.
    os.environ |= {
        "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's own kernels
        "ONEDNN_MAX_CPU_ISA": "AVX2",  # its convolutions
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",  # its matrix products; AMD's processors have no choice there
        "OPENBLAS_CORETYPE": "Haswell",  # numpy's, scipy's and faiss's
        "FAISS_OPT_LEVEL": "AVX2",
    }

# glibc gives large blocks of memory back to the system whenever they are freed, and training takes as large ones again
# in the next step: the pages have to be made anew, for 10 to 40 % of its processor time. It keeps them; no result
# changes.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""As in glibc's malloc.h."""

_libc = ctypes.CDLL(None)
if hasattr(_libc, "mallopt"):
    _libc.mallopt(M_MMAP_MAX, 0)
    _libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
