"""Random crops of decoded images on the device, equal in every byte to those that `images.cropped` makes on the CPU.

PyTorch resizes uint8 images on the CPU in integers, first along the width and then along the height: a pixel is a
weighted sum of neighbours, with weights of at most 15 bits, rounded to uint8. `interpolate` on CUDA uses floats, and 10
to 15 % of its values differ by 1. The weights are therefore made here, in float64 on the host, as PyTorch makes them.
Two functions use them: `plain`, written in PyTorch, which is easy to read, and the CUDA kernel of `crop_kernel.py`,
which is fast.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FIELDS = 8
"""The number of values that describe a crop: the first byte of the box; the bytes from one row of the image to the
next; the start of the table of the width, its taps and its bits; and the same for the height."""

MOST_BITS, WEIGHT_BITS = 22, 15
"""The most bits of a weight's fraction, and the bits of a weight, as in PyTorch."""


class Crops(NamedTuple):
    """The crops of a batch: `boxes` int64 (batch, FIELDS), and `tables` int32 (numbers,). For each length of a box,
    `tables` has the first source pixels (size,) and the weights (size, taps)."""

    boxes: Tensor
    tables: Tensor


class Table(NamedTuple):
    """How a length is resized to `size` pixels: `numbers` int32 (size + size * taps,) has the first source pixel of
    each of the `size` pixels, and then the weights of each. `bits` bits of each weight are its fraction."""

    numbers: np.ndarray
    taps: int
    bits: int


@lru_cache(maxsize=8192)  # most datasets have fewer lengths; a table for 224 pixels takes 5 to 20 kB
def resize_table(length: int, size: int) -> Table:
    """The weights that resize `length` pixels to `size`, bilinear with antialiasing."""
    scale = length / size
    support, inverse = max(scale, 1.0), 1 / max(scale, 1.0)
    centres = scale * (np.arange(size) + 0.5)
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    counts = np.minimum((centres + support + 0.5).astype(np.int64), length) - first
    taps = int(counts.max())
    places = np.arange(taps)
    distances = places + first[:, None] - centres[:, None] + 0.5
    weights = np.where(places < counts[:, None], np.maximum(0.0, 1 - np.abs(distances * inverse)), 0.0)
    # Added one after another, as in PyTorch. numpy's sum, and Python's since 3.12, round differently.
    totals = np.add.accumulate(weights, axis=1)[:, -1:]
    weights /= np.where(totals == 0, 1, totals)
    bits = 0
    while bits < MOST_BITS and int(0.5 + weights.max() * (1 << (bits + 1))) < 1 << WEIGHT_BITS:
        bits += 1
    whole = (weights * (1 << bits) + 0.5).astype(np.int32)
    # A window that would reach beyond the end begins earlier instead, with weights of 0. No reader has to check the
    # end.
    early = np.maximum(first + taps - length, 0)
    moved = np.zeros_like(whole)
    for row, by in enumerate(early.tolist()):
        moved[row, by:] = whole[row, : taps - by]
    return Table(np.concatenate([(first - early).astype(np.int32), moved.ravel()]), taps, bits)


def plan(offsets: np.ndarray, widths: np.ndarray, boxes: np.ndarray, channels: int, size: int) -> Crops:
    """The crops of a batch, of `size` pixels. `offsets` are the first bytes of the images and `widths` their pixels per
    row, int64 (batch,) each; `boxes` are int64 (batch, 4): top, left, height, width."""
    places: dict[int, tuple[int, int, int]] = {}
    tables: list[np.ndarray] = []
    end = 0
    for length in np.unique(boxes[:, 2:]).tolist():
        table = resize_table(length, size)
        places[length] = end, table.taps, table.bits
        tables.append(table.numbers)
        end += len(table.numbers)
    first = offsets + (boxes[:, 0] * widths + boxes[:, 1]) * channels
    across, down = (np.array([places[length] for length in boxes[:, axis].tolist()]) for axis in (3, 2))
    found = np.column_stack([first, widths * channels, across, down]).astype(np.int64)
    return Crops(torch.from_numpy(found), torch.from_numpy(np.concatenate(tables)))


def plain(pixels: Tensor, crops: Crops, size: int, channels: int) -> Tensor:
    """The same as the kernel, written in PyTorch. Arguments and result are as in `crop`."""
    found = []
    for start, stride, *axes in crops.boxes.tolist():
        across, down = (_table(crops.tables, size, *axes[place : place + 2]) for place in (0, 3))
        height, width = (int(first[-1]) + weights.shape[1] for first, weights in (down, across))
        image = pixels.as_strided((height, width, channels), (stride, channels, 1), start).int()
        found.append(_resized(_resized(image, 1, *across, axes[2]), 0, *down, axes[5]).permute(2, 0, 1))
    return torch.stack(found).to(torch.uint8)


def _table(tables: Tensor, size: int, start: int, taps: int) -> tuple[Tensor, Tensor]:
    """The first source pixels (size,) and the weights (size, taps) of the table that begins at `start`."""
    weights = start + size
    return tables[start:weights], tables[weights : weights + size * taps].view(size, taps)


def _resized(image: Tensor, axis: int, first: Tensor, weights: Tensor, bits: int) -> Tensor:
    """An int32 image (height, width, channels) resized along one axis."""
    shape = [-1 if place == axis else 1 for place in range(3)]
    total = torch.full((), 1 << (bits - 1), dtype=torch.int32, device=image.device)
    for tap in range(weights.shape[1]):
        total = total + image.index_select(axis, first + tap) * weights[:, tap].view(shape)
    return (total >> bits).clamp(0, 255)
