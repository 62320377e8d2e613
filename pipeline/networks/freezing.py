"""What trains in an epoch. The papers' code freezes less, more or later than it means to: the recipe's keys say what.

Everything follows from recipe and epoch, nothing from the epochs before, so that a resumed run trains the same.
"""

import torch

from pipeline.base.config import Recipe
from pipeline.networks.network import EmbeddingNetwork, batch_norms


def set_trainable(network: EmbeddingNetwork, recipe: Recipe, epoch: int) -> None:
    """Put `network` in training mode for an epoch, counted from 1; call it as each begins.

    It sets which of the backbone's parameters require gradients and which batch norms keep to their running statistics;
    the head always trains. Batch norms whose statistics are not fixed update them in an epoch of the head alone too, as
    in the papers' code. Where `frozen_gradients` is zero, the training loop must zero gradients, not set them to None.
    """
    head_only = epoch in recipe.head_only_epochs
    # PyTorch before 2.0 zeroed the gradients that there were; a parameter that had never trained had none.
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
