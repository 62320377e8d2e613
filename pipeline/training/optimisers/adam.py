"""Adam (Kingma and Ba, ICLR 2015), and where its epsilon is added.

With m and v as the running means of the moments, and t as the number of steps, a parameter moves by
lr / (1 - b1^t) * m / d, where d is:

- `after_correction` (PyTorch since 1.3): d = sqrt(v / (1 - b2^t)) + epsilon.
- `before_correction` (PyTorch up to 1.2, which ProxyGML's README names): d = (sqrt(v) + epsilon) / sqrt(1 - b2^t). This
  equals after_correction with an epsilon of epsilon / sqrt(1 - b2^t).

With ProxyGML's epsilon of 0.01, before_correction is a hidden warm-up: steps with small gradients are 0.03 of those of
after_correction at t = 1, and 0.92 at t = 1840.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge

from pipeline.base.recipe import Factor, Rate

BETAS = (0.9, 0.999)

Added = Literal["before_correction", "after_correction"]


class Adam(torch.optim.Adam):
    """PyTorch's Adam, or AdamW if `decoupled`, with the epsilon added where `epsilon_added` says."""

    def __init__(
        self, groups: list[dict[str, Any]], decoupled: bool, weight_decay: float, epsilon: float, epsilon_added: Added
    ):
        self.epsilon, self.before_correction = epsilon, epsilon_added == "before_correction"
        # Backbone, head and loss each have their own number of steps: a backbone without gradients takes none.
        counted = [group | {"steps": 0} for group in groups]
        super().__init__(
            counted, betas=BETAS, eps=epsilon, weight_decay=weight_decay, fused=True, decoupled_weight_decay=decoupled
        )

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Move all parameters that have a gradient. The steps of each group are counted on the host, so that reading
        the count does not wait for a GPU. The count is saved with the optimiser's state."""
        if self.before_correction:
            for group in self.param_groups:
                if any(parameter.grad is not None for parameter in group["params"]):
                    group["steps"] += 1
                    group["eps"] = self.epsilon / math.sqrt(1 - BETAS[1] ** group["steps"])
        return super().step(closure)


def optimiser(
    groups: list[dict[str, Any]],
    *,
    weight_decay: Annotated[Factor, Ge(0)],
    epsilon: Rate = 1e-8,
    epsilon_added: Added = "after_correction",
) -> torch.optim.Optimizer:
    """Adam with betas of 0.9 and 0.999. The weight decay is added to the gradient."""
    return Adam(groups, False, weight_decay, epsilon, epsilon_added)
