"""Pixels: crops of uint8 images, and their conversion to the network's input."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.base.config import Recipe
from pipeline.networks.network import MEMORY_FORMATS


def resized(pixels: np.ndarray, height: int, width: int) -> Tensor:
    """uint8 (height, width, channels), resized bilinearly with antialiasing: uint8 (channels, height, width)."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    return interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def cropped(pixels: np.ndarray, box: np.ndarray, size: int) -> Tensor:
    """A box (top, left, height, width) of uint8 (height, width, channels) as uint8 (channels, size, size)."""
    top, left, height, width = box
    return resized(pixels[top : top + height, left : left + width], size, size)


def centred(pixels: np.ndarray, resize: int, size: int) -> Tensor:
    """uint8 (height, width, channels) with the shorter side resized to `resize`, and the middle cropped to `size`
    pixels: uint8 (channels, size, size). Rounding is as in torchvision."""
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    if shorter != resize:
        height, width = int(resize * height / shorter), int(resize * width / shorter)
        image = resized(pixels, height, width)
    else:
        image = torch.from_numpy(pixels).permute(2, 0, 1)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return image[:, top : top + size, left : left + size]


def squashed(pixels: np.ndarray, size: int) -> Tensor:
    """uint8 (height, width, channels) resized to a square, whatever its shape: uint8 (channels, size, size)."""
    return resized(pixels, size, size)


def padded(pixels: np.ndarray, size: int, colour: list[int]) -> Tensor:
    """uint8 (height, width, channels) with the longer side resized to `size`, in the middle of a square filled with
    `colour`: uint8 (channels, size, size). `colour` has a number from 0 to 255 for each channel."""
    height, width = pixels.shape[:2]
    longer = max(height, width)
    height, width = max(1, size * height // longer), max(1, size * width // longer)
    image = torch.tensor(colour, dtype=torch.uint8)[:, None, None].repeat(1, size, size)
    top, left = (size - height) // 2, (size - width) // 2
    image[:, top : top + height, left : left + width] = resized(pixels, height, width)
    return image


def mean_colour(recipe: Recipe, channels: int) -> list[int]:
    """The recipe's mean as a colour of decoded images, RGB or grey, from 0 to 255."""
    values = [round(255 / recipe.pixel_maximum * value) for value in recipe.mean]
    values = [min(255, max(0, value)) for value in (values * channels)[:channels]]
    return values[::-1] if recipe.channel_order == "bgr" else values


def normalise(images: Tensor, recipe: Recipe, device: torch.device) -> Tensor:
    """uint8 (batch, channels, height, width), RGB or grey, to float32 of the same shape on `device`: in the recipe's
    channel order, scaled to 0..pixel_maximum, minus the mean, divided by the standard deviation."""
    pixels = images.to(device, non_blocking=True)
    if recipe.channel_order == "bgr":
        pixels = pixels.flip(1)
    pixels = pixels.to(torch.float32, memory_format=MEMORY_FORMATS[recipe.memory_format])
    mean, std = (_on_device(tuple(values), device) for values in (recipe.mean, recipe.std))
    return (pixels / (255 / recipe.pixel_maximum) - mean) / std


@lru_cache
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers, one for each channel, kept on the device, because every copy to a GPU from memory that is not pinned
    waits for the GPU."""
    return torch.tensor(values, device=device)[:, None, None]
