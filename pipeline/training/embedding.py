"""Embeddings of images by a network."""

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.base.config import Recipe
from pipeline.networks.network import computing
from pipeline.training.images import normalise
from pipeline.training.loading import CentredImages

EMBEDDING_BATCH = 256
"""The number of images that are embedded at a time."""


@torch.inference_mode()
def embed(network: nn.Module, images: Tensor | CentredImages, recipe: Recipe, device: torch.device) -> Tensor:
    """Embeddings, float32 (images, dimension) on `device`, of uint8 images (images, channels, height, width), in
    evaluation mode.

    All batches have the same size, and the last is filled with zeros, so an embedding does not depend on the number of
    images.
    """
    # The mode of each module is kept, because training may keep batch norms in evaluation mode.
    training = [module for module in network.modules() if module.training]
    network.eval()
    parts = []
    with computing(recipe):
        for part in tqdm(images.split(EMBEDDING_BATCH), "embed", leave=False, disable=None):
            filled = torch.cat([part, part.new_zeros(EMBEDDING_BATCH - len(part), *part.shape[1:])])
            parts.append(network(normalise(filled, recipe, device))[: len(part)])
    for module in training:
        module.training = True
    return torch.cat(parts)
