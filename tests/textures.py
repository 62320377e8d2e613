"""Textures in the place of photographs: colour images of many sizes, a class is a mixture of waves and its colours.

`python -m tests.textures FOLDER` writes 60 classes of 20 images, half of them in train and half in test.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

SIDES = (120, 220)
"""The least and the greatest width and height, in pixels."""


def texture(kind: np.random.Generator, own: np.random.Generator, width: int, height: int) -> np.ndarray:
    """An image, uint8 (height, width, 3): what `kind` draws is the class's, what `own` draws the image's."""
    y, x = np.mgrid[:height, :width] / 100
    image = np.zeros((height, width, 3))
    for _ in range(3):
        angle, frequency = kind.uniform(0, np.pi) + own.normal(0, 0.2), kind.uniform(15, 70) * own.uniform(0.8, 1.25)
        wave = np.sin(frequency * (x * np.cos(angle) + y * np.sin(angle)) + own.uniform(0, 2 * np.pi))
        image += wave[..., None] * kind.normal(0, 1, 3) * own.uniform(0.5, 1.5)
    light = own.normal(0, 0.7, 3) + own.normal(0, 0.5, (height, width, 3))
    return (127 + 45 * (image + light)).clip(0, 255).astype(np.uint8)


def write(folder: Path, classes: int, images: int, seed: int = 0) -> None:
    """Write train/<class>/<image>.jpg and test/<class>/<image>.jpg, half of the classes in each."""
    for number in range(classes):
        place = folder / ("train" if number < classes // 2 else "test") / f"texture{number:03}"
        place.mkdir(parents=True)
        for image in range(images):
            own = np.random.default_rng((seed, number, image))
            width, height = map(int, own.integers(*SIDES, 2))
            pixels = texture(np.random.default_rng((seed, number)), own, width, height)
            Image.fromarray(pixels).save(place / f"{image:03}.jpg", quality=90)


if __name__ == "__main__":
    write(Path(sys.argv[1]), 60, 20)
