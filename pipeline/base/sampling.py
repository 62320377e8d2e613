"""Randomness by key, not by stream: what epoch e does at position i depends only on (seed, e, i). Therefore neither the
number of workers nor a resumed run can change it."""

import hashlib

import numpy as np
import torch


def key(seed: int, purpose: str, epoch: int = 0) -> int:
    """A 128-bit key for one purpose in one epoch of one run."""
    return int.from_bytes(hashlib.sha256(f"{purpose}/{seed}/{epoch}".encode()).digest()[:16], "big")


def uniform(seed: int, purpose: str, epoch: int, shape: tuple[int, ...]) -> np.ndarray:
    """float64 draws in [0, 1) of the given shape; row i belongs to position i of the epoch."""
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, epoch))).random(shape)


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """A permutation of `count` images for one epoch, int64 (count,)."""
    return np.argsort(uniform(seed, "order", epoch, (count,)), kind="stable")


def seed_torch(seed: int, purpose: str) -> None:
    """Seed torch's own generators for the draws that torch makes itself: initial weights and proxies."""
    torch.manual_seed(key(seed, purpose) >> 65)
