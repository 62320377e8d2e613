"""The augmentations that a recipe chooses, with the random numbers of a run."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.base import sampling
from pipeline.base.choices import chosen
from pipeline.base.config import Recipe


@lru_cache(maxsize=8)
def _epoch_draws(seed: int, purpose: str, epoch: int, count: int, columns: int) -> np.ndarray:
    return sampling.uniform(seed, purpose, epoch, (count, columns))


def _draws(seed: int, purpose: str, epoch: int, positions: np.ndarray, columns: int) -> np.ndarray:
    """The uniform draws of some positions of an epoch, float64 (positions, columns)."""
    # The number of draws is rounded up to a power of two, so that few calls draw anew. The draws of a position are the
    # same for any number.
    draws = _epoch_draws(seed, purpose, epoch, 1 << int(positions.max()).bit_length(), columns)
    found: np.ndarray = draws[positions]
    return found


class Augment:
    """All augmentations of a recipe. `crops` says whether they begin with a crop, so that images may have any size, and
    `on_host` whether they are made by the loader, and not on the device."""

    def __init__(self, recipe: Recipe, seed: int):
        self.seed = seed
        made: list[Any] = []
        for choice in recipe.augment:
            settings = dict(choice)
            made.append(chosen("augment", settings.pop("name"))(recipe.input_size, **settings))
        purposes = [augmentation.purpose for augmentation in made]
        # The same augmentation a second time has random numbers of its own.
        names = [
            purpose if (before := purposes[:place].count(purpose)) == 0 else f"{purpose} {before + 1}"
            for place, purpose in enumerate(purposes)
        ]
        self.named = list(zip(names, made, strict=True))
        self.crop = self.named.pop(0) if made and hasattr(made[0], "boxes") else None
        self.crops = self.crop is not None
        self.on_host = any(getattr(augmentation, "on_host", False) for augmentation in made)

    def boxes(self, epoch: int, positions: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """The boxes to cut out at some positions of an epoch, int64 (positions, 4): top, left, height, width. `sizes`
        are the images' heights and widths, int64 (positions, 2)."""
        assert self.crop is not None
        name, crop = self.crop
        found: np.ndarray = crop.boxes(sizes, _draws(self.seed, name, epoch, positions, crop.draws))
        return found

    def draws(self, epoch: int, positions: np.ndarray) -> list[Tensor]:
        """The random numbers of all augmentations but the crop: float64 (positions, draws) each."""
        return [
            torch.from_numpy(_draws(self.seed, name, epoch, positions, augmentation.draws))
            for name, augmentation in self.named
        ]

    def apply(self, images: Tensor, draws: Sequence[Tensor]) -> Tensor:
        """Images, uint8 (batch, channels, size, size), after all augmentations but the crop."""
        for (_, augmentation), numbers in zip(self.named, draws, strict=True):
            images = augmentation(images, numbers)
        return images
