"""A shift by whole pixels, for images that already have the size of the network's input."""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn.functional import pad


class Augmentation:
    """Moved by up to `pixels` each way, all distances equally likely. The empty space is filled with 0."""

    purpose = "shift"
    draws = 2

    def __init__(self, size: int, *, pixels: Annotated[int, Ge(1)]):
        if pixels >= size:
            raise ValueError(f"pixels: {pixels} pixels move an image of {size} out of itself, use fewer")
        self.pixels = pixels

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images, uint8 (batch, channels, size, size), moved."""
        device, (batch, _, height, width) = images.device, images.shape
        offsets = (draws.to(device, non_blocking=True) * (2 * self.pixels + 1)).long()
        padded = pad(images, (self.pixels,) * 4)
        y = offsets[:, :1] + torch.arange(height, device=device)
        x = offsets[:, 1:] + torch.arange(width, device=device)
        rows = torch.arange(batch, device=device)[:, None, None]
        return padded[rows, :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
