"""Augmentations of torchvision.transforms.v2 by their names, as in {name: torchvision/RandomErasing, p: 0.25}.

They draw from torch's generator, which is seeded for each image from the image's own random number. They are made one
image at a time, on the CPU, by the loader: on a GPU many of them would wait for the host. Set `machine.workers`, so
that they do not slow training down. Settings that are not given keep torchvision's defaults.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from pipeline.base.choices import check_library_settings, library_name

NAMES = (
    *("AugMix", "ColorJitter", "ElasticTransform", "GaussianBlur", "RandAugment", "RandomAdjustSharpness"),
    *("RandomAffine", "RandomAutocontrast", "RandomChannelPermutation", "RandomEqualize", "RandomErasing"),
    *("RandomGrayscale", "RandomHorizontalFlip", "RandomInvert", "RandomPerspective", "RandomPhotometricDistort"),
    *("RandomPosterize", "RandomRotation", "RandomSolarize", "RandomVerticalFlip", "TrivialAugmentWide"),
)
"""Those that take a single uint8 image and keep its size."""

SEEDS = 2**53


class Augmentation:
    """The transform `variant` of torchvision.transforms.v2. Raises `ValueError` for a name or a setting that does not
    exist, and for values that torchvision refuses."""

    draws = 1
    on_host = True

    def __init__(self, size: int, /, *, variant: str, **settings: Any):
        kind: Any = getattr(v2, library_name(variant, NAMES))
        known = {name: of.default for name, of in inspect.signature(kind).parameters.items()}
        check_library_settings(known, settings)
        self.transform, self.purpose = kind(**settings), f"torchvision/{variant}"

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images, uint8 (batch, channels, size, size), each transformed on its own."""
        found = []
        with torch.random.fork_rng([]):
            for image, draw in zip(images, draws[:, 0].tolist(), strict=True):
                torch.default_generator.manual_seed(int(draw * SEEDS))
                found.append(self.transform(image))
        return torch.stack(found)
