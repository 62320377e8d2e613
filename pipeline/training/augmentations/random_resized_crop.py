"""torchvision's RandomResizedCrop: a random box of an image of any size, resized to the network's input. Both papers
use it."""

from typing import Annotated

import numpy as np
from annotated_types import Gt, Le

ATTEMPTS = 10
ASPECTS = (3 / 4, 4 / 3)
CROP_DRAWS = 2 * ATTEMPTS + 2
"""The number of uniform draws for one box: areas, aspects, and the box's distances from the top and from the left."""


def boxes(sizes: np.ndarray, draws: np.ndarray, smallest: float) -> np.ndarray:
    """Boxes of random crops, int64 (images, 4): top, left, height, width.

    `sizes` are int64 (images, 2), height and width in pixels; `draws` are float64 (images, CROP_DRAWS) in [0, 1). Ten
    boxes are drawn, with a uniform share of the area from `smallest` to 1 and a log-uniform aspect from 3/4 to 4/3. The
    first that fits is taken. If none fits, it is the largest central box with an aspect within these bounds.
    """
    height, width = sizes[:, :1], sizes[:, 1:]
    area = height * width * (smallest + (1 - smallest) * draws[:, :ATTEMPTS])
    low, high = np.log(ASPECTS)
    aspect = np.exp(low + (high - low) * draws[:, ATTEMPTS : 2 * ATTEMPTS])
    wide, tall = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    rows, first, found = np.arange(len(sizes)), fits.argmax(1), fits.any(1)
    wide = np.where(found, wide[rows, first], np.minimum(width, np.rint(height * ASPECTS[1]))[:, 0]).astype(np.int64)
    tall = np.where(found, tall[rows, first], np.minimum(height, np.rint(width / ASPECTS[0]))[:, 0]).astype(np.int64)
    room = sizes - np.stack([tall, wide], 1)
    places = np.where(found[:, None], draws[:, -2:] * (room + 1), room // 2).astype(np.int64)
    return np.column_stack([places, tall, wide])


class Augmentation:
    """Boxes of at least the share `smallest` of an image's area; 0.08 is torchvision's default."""

    purpose = "crop"
    draws = CROP_DRAWS

    def __init__(self, size: int, *, smallest: Annotated[float, Gt(0), Le(1)]):
        self.smallest = smallest

    def boxes(self, sizes: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Boxes, int64 (images, 4), of images of these sizes, int64 (images, 2)."""
        return boxes(sizes, draws, self.smallest)
