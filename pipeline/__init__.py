"""Deep metric learning experiments as a reproducible pipeline: stages and tools at the top, packages below them.

This file sets what must be set before torch, numpy or faiss are imported. The settings therefore hold wherever the code
is started from: a stage, a test or a Python prompt.
"""

import ctypes
import os
import sys
import warnings

from pipeline.base.environment import PORTABLE, hold

INSTRUCTIONS = "native" if os.environ.get("PIPELINE_INSTRUCTIONS") == "native" else "portable"
"""Which processor instructions the CPU kernels use. Portable ones give the same bits on every x86-64 processor that has
AVX2. With PIPELINE_INSTRUCTIONS=native each library chooses by the processor and its maker: matrix products are then
faster, and give other bits on another machine. The setting is part of every run's key."""

if INSTRUCTIONS == "portable" and "torch" in sys.modules and not os.environ.items() >= PORTABLE.items():
    INSTRUCTIONS = "native"  # The key must say what really runs.
    warnings.warn("torch was imported before pipeline: its instructions are native, not portable", stacklevel=2)
hold(INSTRUCTIONS == "portable")

# glibc returns large blocks of memory to the system whenever they are freed, and the next training step asks for blocks
# of the same size again. These settings make glibc keep the blocks. On a 2-core AMD EPYC a run of the default then has
# 117,000 page faults instead of 255,000 or more, and gives the same bytes.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""As in glibc's malloc.h."""

_libc = ctypes.CDLL(None)
if hasattr(_libc, "mallopt"):
    _libc.mallopt(M_MMAP_MAX, 0)
    _libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
