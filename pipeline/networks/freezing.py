"""Which parameters train in an epoch. The papers' code freezes less, more or later than it intends; the recipe's keys
describe what the code really does.

Everything depends only on the recipe and the epoch, not on earlier epochs, so a resumed run trains in the same way.
"""

import torch

from pipeline.base.config import Recipe
from pipeline.networks.network import EmbeddingNetwork, batch_norms


def set_trainable(network: EmbeddingNetwork, recipe: Recipe, epoch: int) -> None:
    """Put `network` in training mode for an epoch, counted from 1. Call this at the start of each epoch.

    It sets which parameters of the backbone require gradients, and which batch norms use their running statistics. The
    head always trains. Batch norms whose statistics are not fixed update them in head-only epochs as well, as in the
    papers' code. If `frozen_gradients` is zero, the training loop must set gradients to zero, not to None.
    """
    head_only = epoch in recipe.head_only_epochs
    # PyTorch before 2.0 set existing gradients to zero. A parameter that had never trained had no gradient.
    trained_before = any(before not in recipe.head_only_epochs for before in range(1, epoch))
    network.train()
    for parameter in network.backbone.parameters():
        parameter.requires_grad_(not head_only)
        zero = recipe.frozen_gradients == "zero" and head_only and trained_before
        parameter.grad = torch.zeros_like(parameter) if zero else None
    if recipe.batch_norm == "trained":
        return
    for norm in batch_norms(network.backbone):
        norm.eval()
        if recipe.batch_norm == "fixed":
            for parameter in norm.parameters():
                parameter.requires_grad_(False)
                parameter.grad = None
