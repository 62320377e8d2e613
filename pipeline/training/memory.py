"""The memory of a GPU, counted before a run starts and divided among the runs that share the GPU.

A run must have room for its step. What is left goes to images that stay on the GPU, and then to CUDA graphs, each if it
fits. So runs that start together do not take each other's memory, whichever asks first.
"""

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pipeline.base.config import Recipe
from pipeline.networks.network import MEMORY_FORMATS, outlined, pooled

USABLE = 0.95
"""The share of a GPU's memory that runs may take together. The rest is lost between blocks of different sizes."""

OVERHEAD = 1_500_000_000
"""Bytes that a process takes beside its tensors: CUDA's context, kernels, the workspaces of cuDNN and cuBLAS."""

PASSING = 1.25
"""The step's activations as a multiple of what the backward pass saves. The rest are gradients of activations."""


class Memory:
    """A run's share of a GPU: the bytes `left` for what it may still take, and those of a `step`. On
    a processor there are none."""

    def __init__(self, device: torch.device, shared_by: int = 1):
        self.device, self.left, self.step = device, 0, 0
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            self.left = min(free, int(USABLE * total) // shared_by) - OVERHEAD

    def take(self, size: int) -> bool:
        """Take `size` bytes if they are left, and return whether they were."""
        if size > self.left:
            return False
        self.left -= size
        return True


def saved_bytes(recipe: Recipe) -> int:
    """Bytes that a step's forward pass of the backbone saves for the backward pass in float32, counted on the meta
    device: 7.1 GB for ResNet-50 and batches of 81, 1.4 GB for BN-Inception and batches of 32."""
    backbone = outlined(recipe).to(memory_format=MEMORY_FORMATS[recipe.memory_format]).train()
    own = {parameter.untyped_storage()._cdata for parameter in backbone.parameters()}
    storages: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no two storages share an address

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage._cdata not in own:
            alive.append(saved)
            storages[storage._cdata] = storage.nbytes()
        return saved

    shape = (recipe.batch_size, backbone.channels, recipe.input_size, recipe.input_size)
    images = torch.empty(shape, device="meta")
    with saved_tensors_hooks(pack, lambda saved: saved):
        pooled(backbone(images), recipe.pooling)
    return sum(storages.values())


def step_bytes(recipe: Recipe, parameters: int) -> int:
    """About how many bytes a step takes: activations, and weights with gradients and two moments each. `parameters` is
    the number of trained numbers, those of the loss included."""
    activations = saved_bytes(recipe) // (2 if recipe.precision == "bfloat16" else 1)
    return int(PASSING * activations) + 4 * 4 * parameters
