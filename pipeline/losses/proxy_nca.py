"""Proxy-NCA (Movshovitz-Attias et al., ICCV 2017) as Proxy-AN's code compares it.

    mean over the samples x of class c of d(x, p_c) + log(sum over the proxies p of other classes of exp(-d(x, p)))

with d the squared Euclidean distance of vectors scaled to length 3, so d = 18 - 18 cos.
"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from pipeline.losses import cosines, other_classes

SCALE = 2 * 3 * 3
"""Twice the squared length of the vectors: what the cosine is multiplied by in the squared distance."""


class Loss(nn.Module):
    """One proxy a class, drawn Kaiming-normal (fan out): that code overwrites its own smaller draw with it."""

    def __init__(self, classes: Annotated[int, Ge(2)], dimension: int):
        super().__init__()
        self.proxies = nn.Parameter(torch.empty(classes, dimension))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar."""
        logits = SCALE * cosines(embeddings, self.proxies)
        own = logits.gather(1, labels[:, None])[:, 0]
        # The 18 of the own distance and the -18 of the others' cancel.
        return (torch.logsumexp(other_classes(logits, labels), 1) - own).mean()
