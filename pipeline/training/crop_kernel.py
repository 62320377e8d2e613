"""The Triton kernel of random crops. `crops.plain` computes the same with PyTorch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.training.crops import FIELDS, Crops

BLOCK = 1024
"""The number of values of the result that one program computes."""


@triton.jit
def _weighted(total, bits):  # type: ignore[no-untyped-def]  # Triton's own types
    """A sum of weighted pixels, rounded to 0..255."""
    return tl.minimum((total + (1 << (bits - 1))) >> bits, 255)


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def _crop(pixels, boxes, tables, out, size, channels, fields: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    image = tl.program_id(0)
    place = tl.program_id(1) * block + tl.arange(0, block)
    inside = place < channels * size * size
    x, y, channel = place % size, place // size % size, place // (size * size)
    box = boxes + image * fields
    start, stride, mirrored = tl.load(box), tl.load(box + 1), tl.load(box + 2)
    across, x_taps, x_bits = tl.load(box + 3), tl.load(box + 4).to(tl.int32), tl.load(box + 5).to(tl.int32)
    down, y_taps, y_bits = tl.load(box + 6), tl.load(box + 7).to(tl.int32), tl.load(box + 8).to(tl.int32)
    x = tl.where(mirrored != 0, size - 1 - x, x)
    left = tl.load(tables + across + x, inside, 0)
    top = tl.load(tables + down + y, inside, 0)
    row = pixels + start + top.to(tl.int64) * stride + left * channels + channel
    x_weights, y_weights = tables + across + size + x * x_taps, tables + down + size + y * y_taps
    total = tl.full((block,), 0, tl.int32)
    for j in range(y_taps):
        line = tl.full((block,), 0, tl.int32)
        for i in range(x_taps):
            line += tl.load(row + i * channels, inside, 0).to(tl.int32) * tl.load(x_weights + i, inside, 0)
        total += _weighted(line, x_bits) * tl.load(y_weights + j, inside, 0)
        row += stride
    whole = image.to(tl.int64) * channels * size * size
    tl.store(out + whole + place, _weighted(total, y_bits).to(tl.uint8), inside)


def by_kernel(pixels: Tensor, crops: Crops, size: int, channels: int, block: int = BLOCK) -> Tensor:
    """The same as `crops.crop`, with all arguments on one device. On a CPU it works only with TRITON_INTERPRET=1."""
    out = torch.empty(len(crops.boxes), channels, size, size, dtype=torch.uint8, device=pixels.device)
    programs = (len(out), triton.cdiv(channels * size * size, block))
    _crop[programs](pixels, crops.boxes, crops.tables, out, size, channels, fields=FIELDS, block=block)
    return out
