"""ProxyGML (Zhu et al., NeurIPS 2020, arXiv 2010.13636): classify on the sub-graph of each sample's nearest proxies.

Each of the C classes has N proxies p of unit length. For each sample, the k = ceil(r*C*N) highest similarities x . p
are kept, and always those to the proxies of its own class. The logit of a class is the sum of its kept similarities.
The softmax runs over the classes whose logit is not 0.

    classification = mean over x of -log(1e-20 + exp(logit_y) / (1e-8 + sum over those classes of exp(logit)))
    regulariser    = cross-entropy of each proxy against its class, with logits p . (sum of the class's proxies)
    loss           = classification + lambda * regulariser

The paper's ablation removes parts. We do not know its text on how they are removed, so the following is our reading:

- Without the own-class bonus ("always" above) the k highest similarities are kept, whatever their class.
- Without the masked softmax, the softmax runs over all classes, and a class without a kept similarity has the logit 0.
- Without the regulariser, lambda is 0.
"""

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from pipeline.losses import EXCLUDED, exact, unit

OWN_CLASS_BONUS = 1000.0
"""Added to the scores of the proxies of a sample's own class, so that they are always among the k."""

LOG_DENOMINATOR_FLOOR = math.log(1e-8)
LOG_PROBABILITY_FLOOR = math.log(1e-20)


def classification(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    kept: int,
    own_class_bonus: bool = True,
    masked_softmax: bool = True,
    scale: float = 1.0,
) -> Tensor:
    """The classification term for unit-length embeddings (batch, dimension) and proxies (classes, N, dimension); `kept`
    is k. Logits are multiplied by `scale`.

    Without the bonus, it can happen that no proxy of a sample's own class is kept. With the masked softmax the sample
    then has the probability 0, and its term is -log(1e-20), without a gradient.
    """
    classes, per_class, dimension = proxies.shape
    similarities = exact(embeddings) @ proxies.view(-1, dimension).T
    by_class = similarities.view(-1, classes, per_class)
    with torch.no_grad():
        rows = torch.arange(len(labels), device=labels.device)
        scores = by_class.clone()
        if own_class_bonus:
            scores[rows, labels] += OWN_CLASS_BONUS
        selected = scores.view_as(similarities).topk(kept, sorted=False).indices
        mask = torch.zeros_like(similarities, dtype=torch.bool).scatter_(1, selected, True)
    logits = torch.where(mask, similarities, 0).view_as(by_class).sum(2) * scale
    if masked_softmax:
        logits = torch.where(logits != 0, logits, EXCLUDED)
    # The 1e-8 of the denominator acts as one more class, to which no sample belongs.
    log_probability = -cross_entropy(pad(logits, (0, 1), value=LOG_DENOMINATOR_FLOOR), labels, reduction="none")
    return -torch.logaddexp(log_probability, torch.full_like(log_probability, LOG_PROBABILITY_FLOOR)).mean()


def regulariser(proxies: Tensor) -> Tensor:
    """The regulariser for unit-length proxies (classes, N, dimension).

    The sum of a proxy's similarities to a class's proxies equals its similarity to the sum of these proxies. One
    product with C columns is therefore enough; the paper's code makes one with C*N.
    """
    classes, per_class, dimension = proxies.shape
    logits = proxies.view(-1, dimension) @ proxies.sum(1).T
    return cross_entropy(logits, torch.arange(classes, device=proxies.device).repeat_interleave(per_class))


class Loss(nn.Module):
    """`proxies_per_class` is the paper's N, `ratio` its r, and `regulariser_weight` its lambda. `own_class_bonus` and
    `masked_softmax` are S and M of the paper's ablation. `scale` multiplies the logits of the classification term: the
    released code has 1 everywhere, and a comment in it names 20 for SOP.

    Proxies are drawn Kaiming-uniform with a = sqrt(5) on a (dimension, C*N) matrix. Raises `ValueError` if no proxy of
    another class could ever be kept, because the classification term would then always be 0. `own_class_alone` allows
    this: the paper's chart over r has such a point (0.01 on Cars).
    """

    def __init__(
        self,
        classes: Annotated[int, Ge(2)],
        dimension: int,
        *,
        proxies_per_class: Annotated[int, Ge(1)],
        ratio: Annotated[float, Gt(0), Le(1)],
        regulariser_weight: Annotated[float, Ge(0)],
        own_class_bonus: bool = True,
        masked_softmax: bool = True,
        own_class_alone: bool = False,
        scale: Annotated[float, Gt(0)] = 1.0,
    ):
        super().__init__()
        self.kept = math.ceil(ratio * classes * proxies_per_class)
        if self.kept <= proxies_per_class and own_class_bonus and masked_softmax and not own_class_alone:
            raise ValueError(
                f"ratio {ratio} keeps ceil(r*C*N) = {self.kept} proxies for each sample. Its own class has "
                f"N = {proxies_per_class}, so no other class would be kept and nothing would be learned: use a ratio "
                f"above 1/C, which is 1/{classes} here"
            )
        self.regulariser_weight = regulariser_weight
        self.own_class_bonus, self.masked_softmax, self.scale = own_class_bonus, masked_softmax, scale
        drawn = torch.empty(dimension, classes * proxies_per_class)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
        self.proxies = nn.Parameter(drawn.T.reshape(classes, proxies_per_class, dimension).contiguous())

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar."""
        proxies = unit(self.proxies)
        parts = self.own_class_bonus, self.masked_softmax, self.scale
        loss = classification(embeddings, proxies, labels, self.kept, *parts)
        if self.regulariser_weight:
            loss = loss + self.regulariser_weight * regulariser(proxies)
        return loss
