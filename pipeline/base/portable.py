"""Square roots and other functions with the same bits on every processor.

PyTorch computes some functions of a CPU's float32 and float64 numbers by MKL's vector functions. In the branch that
MKL_CBWR=COMPATIBLE chooses, some of these differ between Intel's and AMD's processors, and a sixth of the square roots
are not the nearest number: sqrt (also as a power of 0.5, and in `cdist`), asin, acos, atan, tan, log10, and log of
float64. The other functions that PyTorch takes from MKL gave the same bits of two million numbers on an Intel with
AVX-512 and on an emulated AMD.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.library import Library, get_kernel

from pipeline import INSTRUCTIONS


def by_numpy(function: np.ufunc) -> Callable[[Tensor], Tensor]:
    """A function of tensors (any shape) that numpy computes: square roots by the processor's own instruction, which is
    exact, logarithms by the C library."""

    def compute(values: Tensor) -> Tensor:
        found = torch.empty_like(values)
        with np.errstate(invalid="ignore", divide="ignore"):  # nan or infinity, as PyTorch's
            function(values.resolve_neg().numpy(), out=found.numpy())
        return found

    return compute


root = by_numpy(np.sqrt)


def by_torch(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function that is made of others. It is computed without gaps between the numbers, because PyTorch's atan2 gives
    other bits where there are some."""
    return lambda values: torch.empty_like(values).copy_(function(values.contiguous()))


def _cathetus(values: Tensor) -> Tensor:
    return root((1 - values) * (1 + values))


# PyTorch's own atan2, sin and cos are compiled into it, and do not depend on the processor.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sqrt": root,
    "asin": by_torch(lambda values: torch.atan2(values, _cathetus(values))),
    "acos": by_torch(lambda values: torch.atan2(_cathetus(values), values)),
    "atan": by_torch(lambda values: torch.atan2(values, torch.ones_like(values))),
    "tan": by_torch(lambda values: torch.sin(values) / torch.cos(values)),
    "log": by_numpy(np.log),
    "log10": by_numpy(np.log10),
}
DTYPES = {"log": (torch.float64,)}
"""The numbers whose function is replaced, where these are not both."""


@cache
def use_portable_functions() -> Library | None:
    """Let PyTorch compute these functions of float32 and float64 numbers on a CPU in this way, from now on and in all
    of this process: also within PyTorch's own code, such as `cdist`. Nothing is changed with native instructions.
    Gives what keeps it so."""
    if INSTRUCTIONS != "portable":
        return None
    library = Library("aten", "IMPL")

    def replace(overload: str, compute: Callable[..., Tensor], exponent: float | None = None) -> None:
        name = f"aten::{overload}"
        original: Any = get_kernel(name, "CPU")
        dtypes = DTYPES.get(overload.split(".")[0].rstrip("_"), (torch.float32, torch.float64))

        def kernel(keys: Any, values: Tensor, *settings: Any, **out: Tensor) -> Tensor:
            if values.dtype not in dtypes or settings not in ((), (exponent,)):
                other: Tensor = original.call_boxed(keys, values, *settings, **out)
                return other
            found = compute(values.detach())
            if overload.split(".")[0].endswith("_"):
                return values.copy_(found)
            return out["out"].resize_(found.shape).copy_(found) if out else found

        library.impl(overload, kernel, "CPU", with_keyset=True, allow_override=True)

    for name, compute in FUNCTIONS.items():
        for overload in (name, f"{name}_", f"{name}.out"):
            replace(overload, compute)
    for overload in ("pow.Tensor_Scalar", "pow_.Scalar", "pow.Tensor_Scalar_out"):
        replace(overload, root, 0.5)
    return library
