"""A horizontal flip with probability one half. Both papers use it."""

import torch
from torch import Tensor


class Augmentation:
    """Mirrored, or as it was."""

    purpose = "flip"
    draws = 1

    def __init__(self, size: int):
        pass

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images, uint8 (batch, channels, size, size), some of them mirrored."""
        mirrored = draws.to(images.device, non_blocking=True)[:, 0] < 0.5
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images)
