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
from pipeline.training.crops import Crops, crop, plan
from pipeline.training.images import cropped

GPU_SHARE = 0.2
"""The share of a GPU's free memory that decoded training images, and resized test images, may each take. The rest is
for the network, and for other runs that share the GPU."""

DECODED_AHEAD = 256
"""The number of images that are decoded before they are copied to the device."""


def fits(device: torch.device, size: int) -> bool:
    """Whether the device is a GPU with room for `size` bytes of images."""
    return device.type == "cuda" and size < GPU_SHARE * torch.cuda.mem_get_info(device)[0]


@lru_cache
def problem(device: torch.device) -> str:
    """Why crops cannot be made on the device; empty if they can. A few crops are made there and on the CPU, and
    compared."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (97, 131, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, 97, 131], [5, 7, 61, 43], [96, 0, 1, 1], [30, 2, 3, 129]])
    flips = np.arange(len(boxes)) % 2 == 0
    crops = plan(np.zeros(len(boxes), np.int64), np.full(len(boxes), 131), boxes, flips, 3, 32)
    try:
        found = crop(torch.from_numpy(image.ravel()).to(device), crops, 32, 3).cpu()
    except Exception as error:  # Triton has no compiler, does not know the GPU, or anything else: the loader works
        return f"{type(error).__name__}: {error}".splitlines()[0]
    expected = torch.stack([cropped(image, box, 32, flip) for box, flip in zip(boxes, flips, strict=True)])
    return "" if torch.equal(found, expected) else "its crops differ from the CPU's"


def usable(device: torch.device, size: int) -> bool:
    """Whether `size` bytes of images should stay on the device and be cropped there. If the GPU has room but cannot
    crop, the reason is printed on stderr."""
    if not fits(device, size):
        return False
    if why := problem(device):
        print(f"images are cropped on the CPU, because the GPU cannot crop them: {why}", file=sys.stderr)
    return not why


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

    def plan(self, rows: np.ndarray, boxes: np.ndarray, flips: np.ndarray) -> Crops:
        """The argument of `crop` for a batch: crops by `boxes`, int64 (batch, 4), of the images in `rows`, int64
        (batch,), mirrored where `flips`, bool (batch,), is true."""
        return plan(self.offsets[rows], self.widths[rows], boxes, flips, self.channels, self.size)

    def crop(self, batch: tuple[Crops, Tensor]) -> tuple[Tensor, Tensor]:
        """The crops of a batch, uint8 (batch, channels, size, size) on the device, and its labels, unchanged."""
        crops, labels = batch
        return crop(self.pixels, crops, self.size, self.channels), labels
