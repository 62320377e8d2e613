"""The packed images of a dataset, decoded as a recipe says: whole, or shrunk, which saves memory and time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.config import Recipe
from pipeline.data.decoding import decode
from pipeline.data.index import Entry
from pipeline.data.packed import PackedImages
from pipeline.training.images import resized


class ShrunkImages(PackedImages):
    """A packed dataset whose larger images are shrunk when they are decoded, until the shorter side has `shorter`
    pixels."""

    def __init__(self, folder: Path, shorter: int):
        super().__init__(folder)
        self.shorter = shorter
        self.entries = [self._shrunk(entry) for entry in self.entries]

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return ShrunkImages, (self.folder, self.shorter)

    def _shrunk(self, entry: Entry) -> Entry:
        longer, shorter = max(entry.height, entry.width), min(entry.height, entry.width)
        if shorter <= self.shorter:
            return entry
        sides = self.shorter, int(self.shorter * longer / shorter)
        height, width = sides if entry.height == shorter else sides[::-1]
        return replace(entry, height=height, width=width)

    def decoded(self, image: int, channels: int) -> np.ndarray:
        """Image number `image` as uint8 (height, width, channels), as in `PackedImages` except for its size."""
        entry = self.entries[image]
        try:
            pixels = decode(self.encoded(image), channels, entry.orientation, self.shorter)
        except ValueError as error:
            raise self._damaged(entry, str(error)) from None
        if pixels.shape[:2] == (entry.height, entry.width):
            return pixels
        return resized(pixels, entry.height, entry.width).permute(1, 2, 0).contiguous().numpy()


def open_images(dataset: str, recipe: Recipe) -> PackedImages:
    """The packed images of a dataset, shrunk when they are decoded if the recipe says so."""
    folder = Path("data/packed") / dataset
    return PackedImages(folder) if recipe.decoded_size is None else ShrunkImages(folder, recipe.decoded_size)
