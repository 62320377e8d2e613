"""Stochastic gradient descent with momentum, as PyTorch has it: b <- momentum b + g, w <- w - lr b. The weight decay is
added to the gradient g."""

from typing import Annotated, Any

import torch
from annotated_types import Ge, Lt

from pipeline.base.recipe import Factor


def optimiser(
    groups: list[dict[str, Any]],
    *,
    momentum: Annotated[float, Ge(0), Lt(1)],
    weight_decay: Annotated[Factor, Ge(0)],
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """SGD. `nesterov` looks ahead along the momentum, which must then be above 0."""
    return torch.optim.SGD(groups, lr=1.0, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=True)
