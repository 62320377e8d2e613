"""Proxy-Anchor (Kim et al., CVPR 2020, equation 4): every proxy is an anchor against the whole batch.

mean over the classes c present of log(1 + sum over x of c of exp(-alpha (cos(x, p_c) - margin)))
+ mean over ALL classes c of log(1 + sum over x of other classes of exp(alpha (cos(x, p_c) + margin)))
"""

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from pipeline.losses import cosines, log_one_plus_sum_exp, other_classes, own_class_term


class Loss(nn.Module):
    """One proxy for each class, drawn Kaiming-normal (fan out)."""

    def __init__(
        self,
        classes: Annotated[int, Ge(2)],
        dimension: int,
        *,
        alpha: Annotated[float, Gt(0)],
        margin: Annotated[float, Ge(0)],
    ):
        super().__init__()
        self.alpha, self.margin = alpha, margin
        self.proxies = nn.Parameter(torch.empty(classes, dimension))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar."""
        cosine = cosines(embeddings, self.proxies)
        own = cosine.gather(1, labels[:, None])[:, 0]
        positive = own_class_term(-self.alpha * (own - self.margin), labels)
        others = other_classes(self.alpha * (cosine + self.margin), labels)
        return positive + log_one_plus_sum_exp(others, 0).mean()
