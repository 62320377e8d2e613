"""The precision of float32 products, for every library that PyTorch calls: full float32, or TF32 on a GPU that has it.

PyTorch has two sets of flags, the older `allow_tf32` and the newer `fp32_precision`, with general flags above those of
each library. If somebody's code has set one of them, the others may contradict it: cuDNN's convolutions stay in TF32
although `allow_tf32` reads False, or reading a flag raises an error. So all of them are always set together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import backends

cudnn: Any = backends.cudnn  # torch has no types for their parts
mkldnn: Any = backends.mkldnn
GPU: tuple[Any, ...] = (cudnn, backends.cuda.matmul, cudnn.conv, cudnn.rnn)
OTHER: tuple[Any, ...] = (backends, mkldnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
"""What has a flag `fp32_precision`: the libraries of a GPU, and all others. General flags come first, because setting
one may set those below it."""


def _set(library: Any, precision: str) -> None:
    """Set a flag. oneDNN's own name for its general flag sets the one of all libraries (PyTorch 2.14)."""
    if library is mkldnn:
        mkldnn.set_flags(_fp32_precision=precision)
    else:
        library.fp32_precision = precision


def use_tf32(allowed: bool) -> None:
    """Let products on a GPU be rounded to TF32, or compute all products in full float32."""
    for library in OTHER:
        _set(library, "ieee")
    for library in GPU:
        _set(library, "tf32" if allowed else "ieee")
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = allowed


def _is(allowed: bool) -> bool:
    """Whether the flags that products read are already set. Reading these takes 2 microseconds, setting all 70."""
    gpu = "tf32" if allowed else "ieee"
    found = [library.fp32_precision for library in (*GPU[1:3], mkldnn.matmul, mkldnn.conv)]
    return found == [gpu, gpu, "ieee", "ieee"]


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """`use_tf32` while the block runs; afterwards all flags are as they were."""
    if _is(allowed):
        yield
        return
    before = [(library, library.fp32_precision) for library in (*OTHER, *GPU)]
    try:
        older = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    except RuntimeError:  # flags of both sets contradict each other
        older = None
    use_tf32(allowed)
    try:
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older[0])
            backends.cudnn.allow_tf32 = older[1]
        for library, value in before:
            _set(library, value)
