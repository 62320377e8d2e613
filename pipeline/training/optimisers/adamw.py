"""AdamW (Loshchilov and Hutter, ICLR 2019): Adam, but the weight decay is apart from the gradient."""

from typing import Annotated, Any

import torch
from annotated_types import Ge

from pipeline.base.recipe import Factor, Rate
from pipeline.training.optimisers.adam import Adam, Added


def optimiser(
    groups: list[dict[str, Any]],
    *,
    weight_decay: Annotated[Factor, Ge(0)],
    epsilon: Rate = 1e-8,
    epsilon_added: Added = "after_correction",
) -> torch.optim.Optimizer:
    """AdamW with betas of 0.9 and 0.999. A step shrinks the weights by the learning rate times the weight decay."""
    return Adam(groups, True, weight_decay, epsilon, epsilon_added)
