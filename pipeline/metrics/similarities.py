"""The similarities behind the retrieval metrics: fast products with a proven error bound, and exact single ones.

A product of matrices adds up in an order that depends on the kernel, the number of threads and the device, and rounds
accordingly. So a rank is decided by a product only where its error bound leaves no doubt. The pairs of images that are
left open are decided by `Products.exact`, which gives the same bits everywhere.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from pipeline.base.precision import tf32

Result = TypeVar("Result")
Kind = TypeVar("Kind", bound="Products")
MOST_OPEN = 1 / 128  # of the pairs; to decide one takes as long as about 100 pairs of a product in float64
LARGEST = 2.0**100  # float32 cannot hold similarities that are much larger
UNIT = 1e-5
"""A row counts as having length 1 if its length differs from 1 by less, because float32 rounds each of its numbers."""


class Rows:
    """Embeddings (n, d) float32, and what is needed to compare them exactly.

    A row whose length is 1 in float32's precision counts as having a length of exactly 1: where all embeddings lie in a
    narrow cone, the rounded lengths would decide who is nearest. `scale` (n,) float64 is the factor by which each row
    is multiplied for that; it is 1 for other rows.
    """

    def __init__(self, values: Tensor):
        self.values = values
        squares = [_sums(part.double().square_()) for part in values.split(2048)]
        lengths = torch.cat(squares).sqrt_()
        self.scale = torch.where((lengths - 1).abs() < UNIT, 1 / lengths, 1.0)
        self.longest = float((lengths * self.scale).max())
        self.rescaled = float((self.scale - 1).abs().max())

    def __len__(self) -> int:
        return len(self.values)

    def part(self, rows: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows as factors of a product: as they are in float32, scaled in float64."""
        values = self.values[rows]
        return values if dtype == torch.float32 else values.double().mul_(self.scale[rows, None])

    def take(self, rows: Tensor) -> "Rows":
        """Some rows (k,) int64, or all in another order."""
        copy = Rows.__new__(Rows)
        copy.__dict__ = self.__dict__ | {"values": self.values[rows], "scale": self.scale[rows]}
        return copy


class TooManyOpen(Exception):
    """The error bound of float32 leaves so many pairs open that a product in float64 is faster."""


@dataclass(frozen=True)
class Products:
    """Similarities of queries to searched images, from products in `dtype`, float32 or float64."""

    queries: Rows
    searched: Rows
    dtype: torch.dtype = torch.float32

    @cached_property
    def error(self) -> float:
        """How much a similarity from a product can be wrong.

        In whatever order n roundings of the products and sums of two rows happen, with or without fused operations, the
        result is wrong by at most n * u / (1 - n * u) * sum |x_i y_i| (Higham 2002, Accuracy and Stability of Numerical
        Algorithms, section 3.1), where u is half of dtype's epsilon, and the sum is at most the product of the lengths.
        n is d for the sum, and 8 more are for scaling and for adding a bound to a similarity. For unit vectors of 512
        dimensions that is 3.1e-5 in float32 and 5.8e-14 in float64. Kernels may take numbers below dtype's normal ones
        for 0.
        """
        rescaled = self.queries.rescaled + self.searched.rescaled if self.dtype == torch.float32 else 0.0
        return self._rounding(self.dtype) + 1.01 * rescaled * self.lengths

    @cached_property
    def tie(self) -> float:
        """Similarities are equal if they differ by less. This is twice what two float64 products can be wrong by, so
        equal pairs of rows are surely equal in float64 products, too."""
        return 4 * self._rounding(torch.float64)

    @property
    def lengths(self) -> float:
        return self.queries.longest * self.searched.longest

    def _rounding(self, dtype: torch.dtype) -> float:
        width = self.queries.values.shape[1]
        part = (width + 8) * torch.finfo(dtype).eps / 2
        return part / (1 - part) * self.lengths + 2 * width * torch.finfo(dtype).tiny

    def check_open(self, pairs: float, of: int) -> None:
        """Raise `TooManyOpen` if float32 leaves too many pairs open."""
        if self.dtype == torch.float32 and pairs > MOST_OPEN * of:
            raise TooManyOpen

    def exact(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The similarities of pairs, rows[i] of the queries and columns[i] of the searched: (pairs,) float64, the same
        bits on every device. Products of float32 numbers are exact in float64; they are added in a fixed order."""
        queries, searched = self.queries, self.searched
        found = [queries.scale[:0]]
        for i, j in zip(rows.split(2048), columns.split(2048), strict=True):
            sums = _sums(queries.values[i].double().mul_(searched.values[j]))
            found.append(sums * (queries.scale[i] * searched.scale[j]))
        return torch.cat(found)

    def fill(self, rows: slice | Tensor, columns: slice, out: Tensor) -> Tensor:
        """Write the similarities of some queries to some searched images to out (rows, columns)."""
        queries, searched = self.queries.part(rows, self.dtype), self.searched.part(columns, self.dtype)
        if out.is_cpu:
            # OpenBLAS: MKL's portable branch, which training uses, takes 2.6 times as long.
            np.matmul(queries.numpy(), searched.numpy().T, out=out.numpy())
        else:
            torch.mm(queries, searched.T, out=out)
        return out

    def strip(self, rows: slice | Tensor, out: Tensor) -> Tensor:
        """Write the similarities of some queries to all searched images to out (rows, m + padding): -inf is padding."""
        m = len(self.searched)
        step = m if self.dtype == torch.float32 else 4096  # only a few rows have copies in float64 at a time
        for begin in range(0, m, step):
            self.fill(rows, slice(begin, begin + step), out[:, begin : min(begin + step, m)])
        out[:, m:] = -torch.inf
        return out

    def strips(self) -> Iterator[tuple[Tensor, Tensor]]:
        """A few queries at a time: (their rows, int64, their similarities to all searched images as from `strip`). At
        least one column is padding, up to a multiple of 16. The next strip overwrites the similarities."""
        columns = len(self.searched) + 16 - len(self.searched) % 16
        height = max(64, min(512, 2**23 // columns))
        every = torch.arange(len(self.queries), device=self.queries.values.device)
        buffer = torch.empty(min(height, len(every)), columns, dtype=self.dtype, device=every.device)
        for begin in range(0, len(every), height):
            rows = every[begin : begin + height]
            yield rows, self.strip(slice(begin, begin + len(rows)), buffer[: len(rows)])


def decide(products: Kind, compute: Callable[[Kind], Result]) -> Result:
    """What `compute` makes of products: in float32 if these decide enough, or else in float64."""
    with full_precision(products.queries.values.device):
        if products.lengths < LARGEST:
            with suppress(TooManyOpen):
                return compute(replace(products, dtype=torch.float32))
        return compute(replace(products, dtype=torch.float64))


def _sums(values: Tensor) -> Tensor:
    """The sums of the rows of values (n, d), which are overwritten: the second half is added to the first, and so on,
    number by number. `sum` leaves the order to the kernel."""
    width = values.shape[1]
    while width > 1:
        half = (width + 1) // 2
        values[:, : width - half] += values[:, half:width]
        width = half
    return values[:, 0]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute products in their own precision, whatever the caller has set for training: without autocast and without
    TF32, for which the bounds do not hold. On a CPU, OpenBLAS gets as many threads as torch has."""
    with (
        tf32(False),
        torch.autocast(device.type, enabled=False),
        threadpool_limits(torch.get_num_threads(), "blas"),
    ):
        yield


def check_embeddings(queries: Tensor, gallery: Tensor | None) -> None:
    """Raise `ValueError` unless both are finite float32 (rows, dimensions), not empty, and equally wide."""
    for name, values in (("embeddings", queries), ("gallery", gallery)):
        if values is None:
            continue
        if values.ndim != 2 or values.dtype != torch.float32:
            raise ValueError(f"{name} must be (rows, dimensions) float32, got {tuple(values.shape)} {values.dtype}")
        if values.numel() == 0:
            raise ValueError(f"{name} is empty: {tuple(values.shape)}")
        if values.sum().isfinite():  # so all of them are: this takes a tenth of the time of looking at each
            continue
        bad = ~torch.isfinite(values).all(1)
        if bad.any():
            raise ValueError(
                f"{int(bad.sum())} rows of {name} hold nan or infinity, the first is row {int(bad.int().argmax())}"
            )
    if gallery is not None and gallery.shape[1] != queries.shape[1]:
        raise ValueError(f"embeddings have {queries.shape[1]} dimensions, but the gallery has {gallery.shape[1]}")
