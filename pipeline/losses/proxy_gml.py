"""ProxyGML (Zhu et al., NeurIPS 2020, arXiv 2010.13636): classify on the sub-graph of each sample's nearest proxies.

Every class has N proxies p of unit length, C*N in all. Of a sample's similarities x . p the k = ceil(r*C*N) highest are
kept, those to its own class's proxies always; the logit of a class is the sum of its kept similarities; the softmax
runs over the classes whose logit is not 0.

    classification = mean over x of -log(1e-20 + exp(logit_y) / (1e-8 + sum over those classes of exp(logit)))
    regulariser    = cross-entropy of each proxy against its class, with logits p . (sum of the class's proxies)
    loss           = classification + lambda * regulariser

The paper's ablation takes parts away; its text on how is not known to us, so the off-forms are our reading. Without the
own-class bonus ("always" above) the k highest are kept whosever they are. Without the masked softmax it runs over all
classes, 0 being the logit of a class of which nothing was kept. Without the regulariser lambda is 0.
"""

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from pipeline.losses import EXCLUDED, exact, unit

OWN_CLASS_BONUS = 1000.0
"""Added to the score of a sample's own proxies, so that they are always among the k."""

LOG_DENOMINATOR_FLOOR = math.log(1e-8)
LOG_PROBABILITY_FLOOR = math.log(1e-20)


def classification(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    kept: int,
    own_class_bonus: bool = True,
    masked_softmax: bool = True,
) -> Tensor:
    """The classification term for unit-length embeddings (batch, dimension) and proxies (classes, N, dimension).

    A sample none of whose own proxies is kept, which happens without the bonus alone, has the probability 0 under the
    masked softmax: its term is -log(1e-20), without a gradient.
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
    logits = torch.where(mask, similarities, 0).view_as(by_class).sum(2)
    if masked_softmax:
        logits = torch.where(logits != 0, logits, EXCLUDED)
    # The 1e-8 of the denominator is one more class, to which no sample belongs.
    log_probability = -cross_entropy(pad(logits, (0, 1), value=LOG_DENOMINATOR_FLOOR), labels, reduction="none")
    return -torch.logaddexp(log_probability, torch.full_like(log_probability, LOG_PROBABILITY_FLOOR)).mean()


def regulariser(proxies: Tensor) -> Tensor:
    """The regulariser for unit-length proxies (classes, N, dimension).

    A proxy's similarities summed over a class are its similarity to the sum of that class's proxies: one product with
    C columns where the paper's code makes one with C*N.
    """
    classes, per_class, dimension = proxies.shape
    logits = proxies.view(-1, dimension) @ proxies.sum(1).T
    return cross_entropy(logits, torch.arange(classes, device=proxies.device).repeat_interleave(per_class))


class Loss(nn.Module):
    """`proxies_per_class` is the paper's N, `ratio` its r, `regulariser_weight` its lambda; `own_class_bonus` and
    `masked_softmax` are the paper's S and M of the ablation.

    Proxies are drawn Kaiming-uniform with a = sqrt(5) on a (dimension, C*N) matrix. Raises `ValueError` where no proxy
    of another class could ever be kept, which would leave the classification term at 0 for good, unless
    `own_class_alone` says that this is wanted: the paper's chart over r has such a point (0.01 on Cars).
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
    ):
        super().__init__()
        self.kept = math.ceil(ratio * classes * proxies_per_class)
        if self.kept <= proxies_per_class and own_class_bonus and masked_softmax and not own_class_alone:
            raise ValueError(
                f"ratio {ratio} keeps ceil(r*C*N) = {self.kept} proxies a sample, none beyond its own class's "
                f"N = {proxies_per_class}, so nothing would be learned: use a ratio above 1/C, here 1/{classes}"
            )
        self.regulariser_weight = regulariser_weight
        self.own_class_bonus, self.masked_softmax = own_class_bonus, masked_softmax
        drawn = torch.empty(dimension, classes * proxies_per_class)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
        self.proxies = nn.Parameter(drawn.T.reshape(classes, proxies_per_class, dimension).contiguous())

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar."""
        proxies = unit(self.proxies)
        loss = classification(embeddings, proxies, labels, self.kept, self.own_class_bonus, self.masked_softmax)
        if self.regulariser_weight:
            loss = loss + self.regulariser_weight * regulariser(proxies)
        return loss
