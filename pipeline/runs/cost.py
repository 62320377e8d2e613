"""What a run costs, before any is made: the arithmetic of its images' passes through the network.

It orders runs, longest first, and shares out the time left. It is no forecast of seconds: how many operations a second
a machine does differs by network and precision.
"""

import functools
import math
from pathlib import Path

from pipeline.base.config import Recipe
from pipeline.datasets import dataset_module
from pipeline.runs.grid import GridRun
from pipeline.runs.run import Run

BACKWARD = 2
"""A backward pass costs two forward ones: gradients of what comes in, and of the weights."""

MODELLED = 33e12
"""Operations a second of these networks that an H100 would do in float32: a model, not a measurement."""


@functools.cache
def operations(backbone: str, pooling: str, size: int) -> int:
    """Floating-point operations of one image of size x size pixels passing forward through a backbone; a multiplication
    and an addition are two."""
    import torch  # here, so that asking for a run's state need not import it
    from torch.utils.flop_counter import FlopCounterMode

    from pipeline.networks.network import make_backbone

    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network = make_backbone(backbone, pooling, size).eval()
        network(torch.empty(1, network.channels, size, size))
    return int(counter.get_total_flops())


@functools.cache
def images_in(manifest: Path) -> int | None:
    """The number of images of a manifest; None where it is not made yet."""
    return manifest.read_text(encoding="utf-8").count("\n") - 1 if manifest.is_file() else None


def _published(dataset: str, *parts: str) -> int:
    """Images of a dataset's parts as published; half the training set for what was not; 0 where nothing was."""
    counts = {part: of.images for part, of in dataset_module(dataset).EXPECTED.items()}
    return sum(counts[part] or (counts.get("train") or 0) // 2 for part in parts if part in counts)


def training_images(run: Run) -> int:
    """Images of an epoch: as the list of them has it, or about, by the published counts, where it is not made yet."""
    listed = images_in(run.manifest)
    if listed is not None:
        return listed
    images = _published(run.dataset, "train")
    if run.rate is not None:
        return int(images * run.rate)
    if run.gamma is not None:
        return int(images * (1 - 1 / run.gamma) / math.log(run.gamma)) if run.gamma > 1 else images
    return images // 2 if run.protocol == "choose_epoch" else images


def searched_images(run: Run) -> int:
    """Images that a look at the run's network embeds, or about."""
    if run.protocol == "choose_epoch":
        parts = ["held_out_test"]
    else:
        splits = Path("data/splits") / run.dataset
        parts = ["query", "gallery"] if (splits / "query.csv").is_file() else ["test"]
    listed = [images_in(Path("data/splits") / run.dataset / f"{part}.csv") for part in parts]
    if all(count is not None for count in listed):
        return sum(filter(None, listed))
    return _published(run.dataset, "held_out_test" if run.protocol == "choose_epoch" else "test", "query", "gallery")


def looks(recipe: Recipe) -> int:
    """How often a training looks at the test set."""
    every = recipe.evaluated_epochs
    return len(every) if isinstance(every, list) else recipe.epochs // every


EVALUATED = {"test": 2, "held_out": 1, "choose_epoch": 0, "raw_pixels": 0, "untrained": 1, "ensemble": 0}
"""Weights that are evaluated after a run, by its protocol."""


def cost(run: GridRun) -> float:
    """Floating-point operations of a run, training and evaluation; a held-out run counts as if it trained to the last
    epoch. 0 for what is not trained."""
    if not run.run.trained:
        return 0.0
    recipe = run.run.recipe
    passes = recipe.epochs * training_images(run.run) * (1 + BACKWARD)
    watched = looks(recipe) if run.run.protocol != "held_out" else 0
    passes += (watched + EVALUATED[run.run.protocol]) * searched_images(run.run)
    return float(passes * operations(recipe.backbone, recipe.pooling, recipe.input_size))


def longest_first(runs: list[GridRun]) -> list[GridRun]:
    """Runs in the order in which workers take them: the longest first, so that no long one is left alone at the end. A
    run that chooses an epoch counts with the run that waits for it."""
    return sorted(runs, key=lambda run: -cost(run) * (2 if run.run.protocol == "choose_epoch" else 1))
