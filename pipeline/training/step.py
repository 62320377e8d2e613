"""One training step. It is the same in a run, in a benchmark and in a test."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.base.config import Recipe
from pipeline.base.files import BadInputError
from pipeline.networks.network import computing
from pipeline.training.images import normalise


def scalar(found: object, criterion: nn.Module) -> Tensor:
    """What a loss returned. Raises `BadInputError` unless it is a scalar tensor with a gradient."""
    if isinstance(found, Tensor) and found.dim() == 0 and found.requires_grad:
        return found
    what = f"a value of type {type(found).__name__}"
    if isinstance(found, Tensor):
        what = f"a tensor of shape {tuple(found.shape)}" if found.dim() else "one that does not depend on them"
    file = f"{type(criterion).__module__.replace('.', '/')}.py"
    raise BadInputError(f"{file}: forward must return a scalar tensor that depends on the embeddings, found {what}")


def training_step(
    recipe: Recipe,
    network: Callable[[Tensor], Tensor],
    criterion: nn.Module,
    optimiser: torch.optim.Optimizer,
    pixels: Tensor,
    labels: Tensor,
    device: torch.device,
    prepare: Callable[[Tensor, Recipe, torch.device], Tensor] = normalise,
) -> Tensor:
    """Take a step on a batch, uint8 pixels (batch, channels, height, width) and int64 labels (batch,), and return the
    loss, a scalar on the device. Nothing here waits for a GPU."""
    with computing(recipe):
        embeddings = network(prepare(pixels, recipe, device))
    # Detached from the network, so that the loss's own backward pass is in float32 for every precision.
    ends = embeddings.detach().requires_grad_()
    loss = scalar(criterion(ends, labels.to(device, non_blocking=True)), criterion)
    optimiser.zero_grad(set_to_none=recipe.frozen_gradients == "none")
    loss.backward()
    with computing(recipe):
        embeddings.backward(ends.grad)
    if recipe.clip_value:
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_value_(parameters, recipe.clip_value)
    optimiser.step()
    return loss.detach()
