"""Proxy-AN (Peng et al., Neural Networks 195, 2026): proxies anchor the positives, samples anchor the negatives.

    mean over the classes c present of log(1 + sum over x of c of exp(-alpha (cos(x, p_c) - margin)))
    + mean over the samples x of log(1 + sum over the proxies p of other classes of exp(alpha (cos(x, p) + margin)))

The first term is Proxy-Anchor's; the second is centred on the sample where Proxy-Anchor's is centred on the proxy.
"""

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline.losses import cosines, own_class_term


class Loss(nn.Module):
    """One proxy a class, drawn Kaiming-normal (fan out) as Proxy-Anchor's are."""

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
        # The 1 of the logarithm is exp(0): put in place of each sample's own class, it makes a cross-entropy.
        scores = (self.alpha * (cosine + self.margin)).scatter(1, labels[:, None], 0)
        return positive + cross_entropy(scores, labels)
