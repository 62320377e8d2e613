"""One training step, the same wherever it is taken: in a run, in a benchmark, in a test."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.base.config import Recipe
from pipeline.networks.network import computing
from pipeline.training.images import normalise


def learning_rates(recipe: Recipe, epoch: int) -> tuple[float, float]:
    """The network's and the proxies' learning rate in an epoch, counted from 1."""
    every = recipe.decay_epochs
    decays = sum(epoch >= decay for decay in every) if isinstance(every, list) else (epoch - 1) // every
    factor = recipe.decay_factor**decays
    return recipe.network_learning_rate * factor, recipe.proxy_learning_rate * factor


def build_optimiser(recipe: Recipe, network: nn.Module, criterion: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimiser: the network's parameters in the first group, the loss's in the second."""
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimiser](
        [{"params": network.parameters()}, {"params": criterion.parameters()}],
        eps=recipe.epsilon,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def training_step(
    recipe: Recipe,
    network: nn.Module,
    criterion: nn.Module,
    optimiser: torch.optim.Optimizer,
    pixels: Tensor,
    labels: Tensor,
    device: torch.device,
    prepare: Callable[[Tensor, Recipe, torch.device], Tensor] = normalise,
) -> Tensor:
    """Take a step on a batch, uint8 pixels (batch, channels, height, width) and int64 labels (batch,), and give the
    loss, a scalar on the device. Nothing here waits for a GPU."""
    with computing(recipe):
        embeddings = network(prepare(pixels, recipe, device))
    # Cut off from the network, so that the loss's own backward pass is in float32 whatever the precision.
    ends = embeddings.detach().requires_grad_()
    loss = criterion(ends, labels.to(device, non_blocking=True))
    optimiser.zero_grad(set_to_none=recipe.frozen_gradients == "none")
    loss.backward()
    with computing(recipe):
        embeddings.backward(ends.grad)
    if recipe.clip_value:
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_value_(parameters, recipe.clip_value)
    optimiser.step()
    return loss.detach()
