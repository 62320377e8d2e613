"""The similarities behind the retrieval metrics: products of embeddings, one strip at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Ties must be exact: equal pairs of vectors must get equal bits wherever they are in the matrix. Otherwise rounding and
# the order of the images would decide. A matrix product adds every entry in the same order, given by the shapes, except
# for remainders at the edges and for a single row or column, which have their own kernels. All products that are
# compared with each other therefore have the same shape here, in multiples of 64, with padding.

UNIT = 1e-5
"""A row counts as having length 1 if its length differs from 1 by less, because float32 rounds each of its numbers."""


def in_float64(rows: Tensor) -> Tensor:
    """`rows` (n, d) in float64. If all lengths are 1 in float32's precision, the rows are scaled to length 1 in
    float64."""
    exact = rows.double()
    lengths = torch.linalg.vector_norm(exact, dim=1, keepdim=True)
    return exact.div_(lengths) if bool(((lengths - 1).abs() < UNIT).all()) else exact


def strips(queries: Tensor, searched: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Similarities of a few queries at a time to all searched images: (the slice of queries, their similarities (rows,
    m + padding), a flat buffer of that size). Columns of padding are -inf. Similarities and buffer are reused, so the
    caller must finish with them before it asks for the next strip."""
    columns = len(searched) + 64 - len(searched) % 64
    height = max(64, min(512, 2**23 // columns // 64 * 64, -(-len(queries) // 64) * 64))
    padded = torch.nn.functional.pad(searched, (0, 0, 0, columns - len(searched))).T
    product, buffer = queries.new_empty(height, columns), queries.new_empty(height * columns)
    for begin in range(0, len(queries), height):
        block = queries[begin : begin + height]
        with full_float32(queries.device):
            torch.mm(torch.nn.functional.pad(block, (0, 0, 0, height - len(block))), padded, out=product)
        strip = product[: len(block)]
        strip[:, len(searched) :] = -torch.inf
        yield slice(begin, begin + len(block)), strip, buffer


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute products in full float32, whatever the caller has set for training: without autocast and without TF32.
    With TF32's mantissa of 10 bits, similarities would be off by up to 1e-3, closer neighbours would swap, and ties
    would appear."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def check_embeddings(queries: Tensor, gallery: Tensor | None) -> None:
    """Raise `ValueError` unless both are finite float32 (rows, dimensions), not empty, and equally wide."""
    for name, values in (("embeddings", queries), ("gallery", gallery)):
        if values is None:
            continue
        if values.ndim != 2 or values.dtype != torch.float32:
            raise ValueError(f"{name} must be (rows, dimensions) float32, got {tuple(values.shape)} {values.dtype}")
        if values.numel() == 0:
            raise ValueError(f"{name} is empty: {tuple(values.shape)}")
        bad = ~torch.isfinite(values).all(1)
        if bad.any():
            raise ValueError(
                f"{int(bad.sum())} rows of {name} hold nan or infinity, the first is row {int(bad.int().argmax())}"
            )
    if gallery is not None and gallery.shape[1] != queries.shape[1]:
        raise ValueError(f"embeddings have {queries.shape[1]} dimensions, but the gallery has {gallery.shape[1]}")
