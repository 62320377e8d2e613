"""Images that stay on the GPU: they are decoded once and cropped there, so that neither loader processes nor the bus
slow the GPU down.

If they do not fit, or if the GPU cannot run the kernel, the loader crops on the CPU. Both ways give the same bytes.
"""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pipeline.data.packed import PackedImages
from pipeline.training.crops import Crops, plain, plan
from pipeline.training.images import cropped
from pipeline.training.memory import Memory

DECODED_AHEAD = 256
"""The number of images that are decoded before they are copied to the device."""


def crop(pixels: Tensor, crops: Crops, size: int, channels: int) -> Tensor:
    """The crops of a batch, uint8 (batch, channels, size, size), on the device of `pixels`. `pixels`, uint8 (bytes,),
    holds the images one after another as (height, width, channels)."""
    if not pixels.is_cuda:
        return plain(pixels, Crops(crops.boxes, crops.tables.to(pixels.device)), size, channels)
    from pipeline.training.crop_kernel import by_kernel  # CUDA's packages are needed only on a GPU

    return by_kernel(pixels, Crops(*(part.to(pixels.device, non_blocking=True) for part in crops)), size, channels)


@lru_cache
def problem(device: torch.device) -> str:
    """Why crops cannot be made on the device; empty if they can. A few crops are made there and on the CPU, and
    compared."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (97, 131, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, 97, 131], [5, 7, 61, 43], [96, 0, 1, 1], [30, 2, 3, 129]])
    crops = plan(np.zeros(len(boxes), np.int64), np.full(len(boxes), 131), boxes, 3, 32)
    try:
        found = crop(torch.from_numpy(image.ravel()).to(device), crops, 32, 3).cpu()
    except Exception as error:  # NVRTC is missing, does not know the GPU, or anything else: the loader works
        return f"{type(error).__name__}: {error}".splitlines()[0]
    expected = torch.stack([cropped(image, box, 32) for box in boxes])
    return "" if torch.equal(found, expected) else "its crops differ from the CPU's"


def usable(memory: Memory, size: int) -> bool:
    """Take room for `size` bytes of images that should stay on the device and be cropped there, and return whether
    there was room. If there is room but the GPU cannot crop, the reason is printed on stderr."""
    if size > memory.left:
        return False
    if why := problem(memory.device):
        print(f"images are cropped on the CPU, because the GPU cannot crop them: {why}", file=sys.stderr)
        return False
    return memory.take(size)


class ResidentImages:
    """Images of any size in one flat uint8 tensor on a device."""

    def __init__(self, packed: PackedImages, numbers: Sequence[int], channels: int, size: int, device: torch.device):
        """Decode the images of these numbers to the device. Crops will have `size` pixels."""
        self.channels, self.size = channels, size
        shapes = np.array([[packed.entries[number].height, packed.entries[number].width] for number in numbers])
        ends = np.cumsum(shapes.prod(1) * channels)
        self.offsets, self.widths = np.concatenate([[0], ends[:-1]]), shapes[:, 1]
        self.pixels = torch.empty(int(ends[-1]), dtype=torch.uint8, device=device)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            for start in range(0, len(numbers), DECODED_AHEAD):
                chosen = numbers[start : start + DECODED_AHEAD]
                decoded = threads.map(lambda number: packed.decoded(number, channels).ravel(), chosen)
                pixels = torch.from_numpy(np.concatenate(list(decoded)))
                offset = int(self.offsets[start])
                self.pixels[offset : offset + len(pixels)] = pixels.to(device)

    def plan(self, rows: np.ndarray, boxes: np.ndarray) -> Crops:
        """The argument of `crop` for a batch: crops by `boxes`, int64 (batch, 4), of the images in `rows`, int64
        (batch,)."""
        return plan(self.offsets[rows], self.widths[rows], boxes, self.channels, self.size)

    def crop(self, crops: Crops) -> Tensor:
        """The crops of a batch, uint8 (batch, channels, size, size) on the device."""
        return crop(self.pixels, crops, self.size, self.channels)
