"""The batches of a run: their kind, their size and their number in an epoch."""

import torch

from pipeline.base.files import BadInputError
from pipeline.runs.run import Run
from pipeline.training.batches import ClassBalanced, Shuffled


def plan_batches(run: Run, labels: torch.Tensor, whole_set: int) -> Shuffled | ClassBalanced:
    """The batches of every epoch of a run. `labels`, int64 (images,), are those of its training images; `whole_set` is
    the number of images in the whole training set. Raises `BadInputError` if there are too few images or classes for a
    batch."""
    recipe = run.recipe
    key = f"{run.source}.batch_size: {recipe.batch_size}"
    images, classes = len(labels), int(labels.max()) + 1
    subset = bool(run.subset)
    if recipe.batch_size > images and not (subset and recipe.samples_per_class):
        raise BadInputError(f"{key} is more than the {images} images of {run.manifest}, use a smaller batch")
    if recipe.samples_per_class is None:
        if recipe.head != "linear" and images % recipe.batch_size == 1 and recipe.epoch_steps is None:
            raise BadInputError(
                f"{key} leaves one of the {images} images of {run.manifest} for the last batch, which the head's batch "
                "norm cannot normalise: use another batch size"
            )
        return Shuffled(images, recipe.batch_size, run.seed, recipe.epoch_steps)
    if recipe.batch_size // recipe.samples_per_class > classes:
        raise BadInputError(
            f"{key} with {recipe.samples_per_class} images a class needs more classes than the {classes} of "
            f"{run.manifest}, use a smaller batch"
        )
    # The length of a partial set's epoch follows from its share of the whole set. That is more images than the classes'
    # rounded shares together. Proxy-AN's code ends an epoch before all images are used. From a subset that is smaller
    # than a batch, it draws one batch, with repeats.
    counted = images if run.rate is None else int(whole_set * run.rate)
    steps = recipe.epoch_steps or max((counted - 1) // recipe.batch_size, int(subset))
    if not steps:
        raise BadInputError(
            f"{key} leaves no whole batch of the {images} images of {run.manifest}, use a smaller batch"
        )
    by_class_size = run.gamma is not None
    return ClassBalanced(labels.numpy(), recipe.batch_size, recipe.samples_per_class, run.seed, steps, by_class_size)
