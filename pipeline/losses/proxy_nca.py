"""Proxy-NCA (Movshovitz-Attias et al., ICCV 2017), as in the comparisons of Proxy-AN's code.

    mean over the samples x of class c of d(x, p_c) + log(sum over the proxies p of other classes of exp(-d(x, p)))

where d is the squared Euclidean distance of vectors scaled to length 3, so d = 18 - 18 cos.
"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from pipeline.losses import cosines, other_classes

SCALE = 2 * 3 * 3
"""Twice the squared length of the vectors: the factor of the cosine in the squared distance."""


class Loss(nn.Module):
    """One proxy for each class, drawn Kaiming-normal (fan out), because Proxy-AN's code overwrites its own smaller draw
    with this one."""

    def __init__(self, classes: Annotated[int, Ge(2)], dimension: int):
        super().__init__()
        self.proxies = nn.Parameter(torch.empty(classes, dimension))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar."""
        logits = SCALE * cosines(embeddings, self.proxies)
        own = logits.gather(1, labels[:, None])[:, 0]
        # The 18 of the distance to the own proxy and the -18 of the distances to the others cancel.
        return (torch.logsumexp(other_classes(logits, labels), 1) - own).mean()
