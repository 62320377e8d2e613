"""Random brightness, contrast and saturation, as torchvision's ColorJitter has them, but always in this order, for a
whole batch at once, and rounded to uint8 only at the end."""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

GREY = (0.2989, 0.587, 0.114)
"""The shares of red, green and blue in a grey value, as in torchvision."""


def grey(images: Tensor) -> Tensor:
    """float32 images (batch, 3 or 1, height, width) in grey: (batch, 1, height, width)."""
    if images.shape[1] == 1:
        return images
    return sum(share * images[:, place : place + 1] for place, share in enumerate(GREY))  # type: ignore[return-value]


class Augmentation:
    """Each of the three has a factor that is uniform from 1 minus the setting, at least 0, to 1 plus the setting. 0
    leaves an image as it is.

    - brightness: every value is multiplied by the factor.
    - contrast: the factor times the image, plus 1 minus the factor times the image's mean grey value.
    - saturation: the factor times the image, plus 1 minus the factor times the image in grey.
    """

    purpose = "colour_jitter"
    draws = 3

    def __init__(
        self,
        size: int,
        *,
        brightness: Annotated[float, Ge(0)] = 0.0,
        contrast: Annotated[float, Ge(0)] = 0.0,
        saturation: Annotated[float, Ge(0)] = 0.0,
    ):
        self.ranges = [(max(0.0, 1 - of), 1 + of) for of in (brightness, contrast, saturation)]

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images, uint8 (batch, channels, size, size), with other colours."""
        factors = [
            (low + (high - low) * draw).float()[:, None, None, None]
            for (low, high), draw in zip(self.ranges, draws.to(images.device, non_blocking=True).T, strict=True)
        ]
        values = images.float()
        values = (values * factors[0]).clamp(0, 255)
        values = torch.lerp(grey(values).mean((2, 3), keepdim=True), values, factors[1]).clamp(0, 255)
        values = torch.lerp(grey(values), values, factors[2]).clamp(0, 255)
        return values.round().to(torch.uint8)
