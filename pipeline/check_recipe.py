"""Check what a recipe chooses by name, before days are spent on it: backbone, optimiser, schedule and augmentations.
Prints one line for each check, ok or fail; the exit code is 1 if one fails.

The checks are:

- schedule: finite factors, none below 0, in all epochs;
- augmentations: uint8 images of the same shape, the same for any batch, and others in another epoch;
- the same again: a few steps on random images give the same bits twice;
- resumed: they also do so if the state is saved and loaded between them.

The images are random, and the backbone has random weights. The settings themselves are checked first, as before a run.
"""

import argparse
import io
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pipeline.base.command import exit_with
from pipeline.base.config import Recipe, read_params
from pipeline.losses import proxy_nca
from pipeline.networks.freezing import set_trainable
from pipeline.networks.network import EmbeddingNetwork, prepare
from pipeline.networks.outline import check_backbone
from pipeline.training.augment import Augment
from pipeline.training.optimiser import build_optimiser, build_schedule, set_learning_rates
from pipeline.training.step import training_step

STEPS, BATCH, CLASSES, IMAGES = 6, 8, 4, 12


def pixels(recipe: Recipe, count: int, channels: int) -> torch.Tensor:
    """Random images of the network's input size, uint8 (count, channels, size, size)."""
    shape = (count, channels, recipe.input_size, recipe.input_size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trained(recipe: Recipe, device: torch.device, stop: int = STEPS) -> bytes:
    """The state after some steps, as bytes; after step `stop` it is saved and loaded into new objects."""

    def new() -> list[torch.nn.Module | torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = EmbeddingNetwork(recipe).to(device)
        set_trainable(network, recipe, recipe.epochs)
        criterion = proxy_nca.Loss(CLASSES, recipe.dimension).to(device)
        return [network, criterion, build_optimiser(recipe, network, criterion)]

    def saved() -> bytes:
        buffer = io.BytesIO()
        torch.save([part.state_dict() for part in parts], buffer)
        return buffer.getvalue()

    parts = new()
    schedule = build_schedule(recipe, STEPS)
    batch = pixels(recipe, BATCH, parts[0].backbone.channels)  # type: ignore[union-attr, arg-type]  # its own attribute
    for step in range(1, STEPS + 1):
        network, criterion, optimiser = parts
        assert isinstance(network, torch.nn.Module) and isinstance(criterion, torch.nn.Module)
        assert isinstance(optimiser, torch.optim.Optimizer)
        set_learning_rates(optimiser, recipe, schedule(1, step))
        training_step(recipe, network, criterion, optimiser, batch, torch.arange(BATCH) % CLASSES, device)
        if step == stop:
            state = torch.load(io.BytesIO(saved()), weights_only=True, map_location="cpu")
            parts = new()
            for part, content in zip(parts, state, strict=True):
                part.load_state_dict(content)
    return saved()


def check_schedule(recipe: Recipe) -> tuple[bool, str]:
    """Whether all factors can multiply learning rates."""
    schedule = build_schedule(recipe, STEPS)
    found = [schedule(epoch, step) for epoch in range(1, recipe.epochs + 1) for step in range(1, STEPS + 1)]
    wrong = [factor for factor in found if not math.isfinite(factor) or factor < 0]
    return not wrong, f"gives {wrong[0]}" if wrong else f"from {found[0]:.4g} to {found[-1]:.4g}"


def check_augmentations(recipe: Recipe, channels: int) -> tuple[bool, str]:
    """Whether images depend on their positions only."""
    augment, images = Augment(recipe, 0), pixels(recipe, IMAGES, channels)
    if not recipe.augment:
        return True, "none"
    sizes = np.random.default_rng(0).integers(1, 500, (IMAGES, 2))

    def made(epoch: int, rows: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        boxes = augment.boxes(epoch, rows, sizes[rows]) if augment.crops else np.zeros((len(rows), 0))
        return boxes, augment.apply(images[rows], augment.draws(epoch, rows))

    (boxes, whole), (other_boxes, other) = made(1, np.arange(IMAGES)), made(2, np.arange(IMAGES))
    if whole.dtype != torch.uint8 or whole.shape != images.shape:
        return False, f"gives {whole.dtype} {tuple(whole.shape)}, not torch.uint8 {tuple(images.shape)}"
    if augment.crops and not ((boxes[:, :2] >= 0) & (boxes[:, 2:] > 0) & (boxes[:, :2] + boxes[:, 2:] <= sizes)).all():
        return False, "a box is not inside its image"
    for rows in np.split(np.arange(IMAGES)[::-1].copy(), [5]):
        part, pictures = made(1, rows)
        if not (np.array_equal(part, boxes[rows]) and torch.equal(pictures, whole[rows])):
            return False, "an image depends on the others in its batch"
    if np.array_equal(boxes, other_boxes) and torch.equal(whole, other):
        return False, "the same in another epoch"
    return True, f"{len(recipe.augment)}, the same for any batch"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.check_recipe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", metavar="NAME", help="an entry of recipes")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the params file that has the recipe")
    arguments = parser.parse_args()
    params = read_params(arguments.params, arguments.recipe)
    recipe = params.recipes[arguments.recipe]
    check_backbone(recipe, f"{arguments.params}: recipes.{arguments.recipe}")
    device = prepare(recipe, params.machine.device)
    channels = EmbeddingNetwork(recipe).backbone.channels
    first = trained(recipe, device)
    checks: dict[str, Callable[[], tuple[bool, str]]] = {
        "schedule": lambda: check_schedule(recipe),
        "augmentations": lambda: check_augmentations(recipe, channels),
        "the same again": lambda: (trained(recipe, device) == first, f"the state after {STEPS} steps, twice"),
        "resumed": lambda: (trained(recipe, device, STEPS // 2) == first, f"after step {STEPS // 2}"),
    }
    failed = False
    for name, check in checks.items():
        well, said = check()
        failed |= not well
        print(f"{'ok  ' if well else 'fail'}  {name}: {said}", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    exit_with(main)
