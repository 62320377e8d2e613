"""The optimiser of a run: Adam or AdamW, and where its epsilon is added.

With m and v as the running means of the moments, and t as the number of steps, a parameter moves by
lr / (1 - b1^t) * m / d, where d is:

- `after_correction` (PyTorch since 1.3): d = sqrt(v / (1 - b2^t)) + epsilon.
- `before_correction` (PyTorch up to 1.2, which ProxyGML's README names): d = (sqrt(v) + epsilon) / sqrt(1 - b2^t). This
  equals after_correction with an epsilon of epsilon / sqrt(1 - b2^t).

With ProxyGML's epsilon of 0.01, before_correction is a hidden warm-up: steps with small gradients are 0.03 of those of
after_correction at t = 1, and 0.92 at t = 1840.
"""

import math

import torch
from torch import nn

from pipeline.base.config import Recipe

BETAS = (0.9, 0.999)


def learning_rates(recipe: Recipe, epoch: int) -> tuple[float, float]:
    """The learning rates of the backbone and of the proxies in an epoch, counted from 1."""
    factor = _decay(recipe, epoch)
    return recipe.network_learning_rate * factor, recipe.proxy_learning_rate * factor


def head_learning_rate(recipe: Recipe, epoch: int) -> float:
    """The head's learning rate in an epoch, counted from 1."""
    own = recipe.head_learning_rate
    return (recipe.network_learning_rate if own is None else own) * _decay(recipe, epoch)


def _decay(recipe: Recipe, epoch: int) -> float:
    every = recipe.decay_epochs
    decays = sum(epoch >= decay for decay in every) if isinstance(every, list) else (epoch - 1) // every
    return recipe.decay_factor**decays


def build_optimiser(recipe: Recipe, network: nn.Module, criterion: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimiser for a network with a `backbone` and for a loss.

    Backbone, head and loss are separate groups, because each has its own number of steps: a backbone without gradients
    takes no steps in that epoch.
    """
    backbone = list(network.get_submodule("backbone").parameters())
    known = set(map(id, backbone))
    head = [parameter for parameter in network.parameters() if id(parameter) not in known]
    groups = [{"params": backbone}, {"params": head}, {"params": list(criterion.parameters())}]
    optimiser: torch.optim.Optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimiser](
        [group | {"steps": 0} for group in groups],
        betas=BETAS,
        eps=recipe.epsilon,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    return optimiser


def set_learning_rates(optimiser: torch.optim.Optimizer, recipe: Recipe, epoch: int) -> None:
    """Set the learning rates of an epoch, counted from 1, in the optimiser's groups."""
    network, proxies = learning_rates(recipe, epoch)
    head = head_learning_rate(recipe, epoch)
    for group, rate in zip(optimiser.param_groups, (network, head, proxies), strict=True):
        group["lr"] = rate


def take_step(optimiser: torch.optim.Optimizer, recipe: Recipe) -> None:
    """Move all parameters that have a gradient. The steps of each group are counted on the host, so that reading the
    count does not wait for a GPU. The count is saved with the optimiser's state."""
    if recipe.epsilon_added == "before_correction":
        for group in optimiser.param_groups:
            if any(parameter.grad is not None for parameter in group["params"]):
                group["steps"] += 1
                group["eps"] = recipe.epsilon / math.sqrt(1 - BETAS[1] ** group["steps"])
    optimiser.step()
