"""The cost of a run, before it is made: the floating-point operations of its images' passes through the network.

It is used to order runs, longest first, and to estimate the time left. It does not predict seconds, because the number
of operations that a machine does in a second differs by network and precision. `modelled_seconds` does, for one GPU,
and counts in which time this GPU waits for the processor.
"""

import functools
import inspect
import math
from pathlib import Path
from typing import Any

from pipeline.base.choices import chosen
from pipeline.base.config import Recipe
from pipeline.datasets import dataset_module
from pipeline.runs.grid import GridRun
from pipeline.runs.protocols import PROTOCOLS
from pipeline.runs.run import Run

BACKWARD = 2
"""A backward pass costs as much as two forward passes: one for the gradients of the inputs, one for those of the
weights."""

MODELLED = 33e12
"""Operations per second that an H100 would do for these networks in float32. This is a model, not a measurement."""

BETWEEN_EPOCHS = 3.1e-9
"""Processor seconds for each weight of the network between two epochs, for the copy of the weights and their SHA-256:
0.08 s for ResNet-50, on a 2-core Intel Xeon (Sapphire Rapids)."""

KMEANS = {"scikit-learn": 5e-8, "faiss": 5e-10}
"""Seconds of a k-means for each image, class and dimension, on the same machine with made-up embeddings: scikit-learn's
with 10 restarts on one core at CUB's and Cars' sizes (4.1e-8 to 6.4e-8), faiss's with 20 iterations on two cores, as
half of its processor time with 20,000 images in 3,000 classes."""


@functools.cache
def counted(backbone: str, pooling: str, size: int) -> tuple[int, int]:
    """The floating-point operations of a backbone's forward pass for one image of size x size pixels, where a
    multiplication and an addition count as two, and the number of its weights."""
    import torch  # here, so that asking for a run's state does not import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pipeline.networks.network import make_backbone

    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network = make_backbone(backbone, pooling, size).eval()
        network(torch.empty(1, network.channels, size, size))
    return int(counter.get_total_flops()), sum(parameter.numel() for parameter in network.parameters())


@functools.cache
def images_in(manifest: Path) -> int | None:
    """The number of images of a manifest; None if it is not made yet."""
    return manifest.read_text(encoding="utf-8").count("\n") - 1 if manifest.is_file() else None


def _published(dataset: str, *parts: str) -> int:
    """The published number of images of a dataset's parts. A part without a published number counts as half the
    training set. 0 if nothing was published."""
    counts = {part: of.images for part, of in dataset_module(dataset).EXPECTED.items()}
    return sum(counts[part] or (counts.get("train") or 0) // 2 for part in parts if part in counts)


def training_images(run: Run) -> int:
    """The number of images of an epoch: by the manifest, or an estimate by the published counts if the manifest is not
    made yet."""
    if run.recipe.epoch_steps is not None:
        return run.recipe.epoch_steps * run.recipe.batch_size
    listed = images_in(run.manifest)
    if listed is not None:
        return listed
    images = _published(run.dataset, "train")
    if run.rate is not None:
        return int(images * run.rate)
    if run.gamma is not None:
        return int(images * (1 - 1 / run.gamma) / math.log(run.gamma)) if run.gamma > 1 else images
    return images // 2 if PROTOCOLS[run.protocol].trains_on != "train" else images


def searched_images(run: Run) -> int:
    """The number of images that are embedded each time that the run's network is evaluated, or an estimate of it."""
    if PROTOCOLS[run.protocol].on_held_out:
        manifests = [run.held_out]
    else:
        splits = Path("data/splits") / run.dataset
        parts = ["query", "gallery"] if (splits / "query.csv").is_file() else ["test"]
        manifests = [splits / f"{part}.csv" for part in parts]
    listed = [images_in(manifest) for manifest in manifests]
    if all(count is not None for count in listed):
        return sum(filter(None, listed))
    return _published(
        run.dataset, "held_out_test" if PROTOCOLS[run.protocol].on_held_out else "test", "query", "gallery"
    )


def looks(recipe: Recipe) -> int:
    """How often a training evaluates on the test set."""
    every = recipe.evaluated_epochs
    return len(every) if isinstance(every, list) else recipe.epochs // every


def cost(run: GridRun) -> float:
    """The floating-point operations of a run's training and evaluation. A held-out run counts as if it trained to the
    last epoch. A run that is not trained has the cost 0."""
    if not run.run.trained:
        return 0.0
    recipe = run.run.recipe
    passes = recipe.epochs * training_images(run.run) * (1 + BACKWARD)
    protocol = PROTOCOLS[run.run.protocol]
    passes += (protocol.watched * looks(recipe) + protocol.evaluated) * searched_images(run.run)
    return float(passes * counted(recipe.backbone, recipe.pooling, recipe.input_size)[0])


def waits(run: GridRun) -> float:
    """The seconds of a run in which its GPU waits for the processor: between epochs, and for k-means at the end. The
    checkpoints are written beside the next epoch's steps."""
    recipe, protocol = run.run.recipe, PROTOCOLS[run.run.protocol]
    seconds = 0.0
    if run.run.trained:
        weights = counted(recipe.backbone, recipe.pooling, recipe.input_size)[1]
        seconds += recipe.epochs * BETWEEN_EPOCHS * weights
    kinds = {_kmeans(name, settings) for name, settings in recipe.metrics_by_name()} - {None}
    each = searched_images(run.run) * _searched_classes(run.run.dataset) * recipe.dimension
    return seconds + protocol.evaluated * each * sum(KMEANS[kind] for kind in kinds)


def _kmeans(metric: str, settings: dict[str, Any]) -> Any:
    """The k-means that a metric takes; None if it takes none."""
    setting = inspect.signature(chosen("metric", metric)).parameters.get("kmeans")
    return settings.get("kmeans", setting.default) if setting else None


def _searched_classes(dataset: str) -> int:
    """The published number of classes of a dataset's test set; 0 if nothing was published."""
    published = dataset_module(dataset).EXPECTED
    found = published.get("test") or published.get("query")
    return found.classes if found else 0


def modelled_seconds(run: GridRun) -> float:
    """The seconds that a run would take alone on an H100 in float32, by the model."""
    return cost(run) / MODELLED + waits(run)


def costs_of(runs: list[GridRun]) -> dict[Path, float]:
    """The costs of some runs by their places."""
    return {run.place: cost(run) for run in runs}


def longest_first(runs: list[GridRun], costs: dict[Path, float]) -> list[GridRun]:
    """Runs in the order in which workers take them: the longest first, so that no long run is left alone at the end. A
    run that chooses an epoch counts double, because another run waits for it."""
    return sorted(runs, key=lambda run: -costs[run.place] * (2 if run.run.protocol == "choose_epoch" else 1))
