"""Proxy-AN (Peng et al., Neural Networks 195, 2026): proxies anchor the positives, samples anchor the negatives.

    mean over the classes c present of log(1 + sum over x of c of exp(-alpha (cos(x, p_c) - margin)))
    + mean over the samples x of log(1 + sum over the proxies p of other classes of exp(alpha (cos(x, p) + margin)))

The first term is the same as in Proxy-Anchor. The second term is centred on the sample, while that of Proxy-Anchor is
centred on the proxy.
"""

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline.losses import cosines, own_class_term


class Loss(nn.Module):
    """One proxy for each class, drawn Kaiming-normal (fan out) as in Proxy-Anchor."""

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
        # The 1 in the logarithm is exp(0). With 0 as the score of each sample's own class, the term is a cross-entropy.
        scores = (self.alpha * (cosine + self.margin)).scatter(1, labels[:, None], 0)
        return positive + cross_entropy(scores, labels)
