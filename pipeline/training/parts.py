"""What a run consists of in memory: its network, loss, optimiser, batches and images, and how far it has come."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.base import sampling
from pipeline.base.config import Recipe
from pipeline.base.files import BadInputError, submodule
from pipeline.losses import register_tensors
from pipeline.metrics.limits import check_evaluation
from pipeline.networks.network import EmbeddingNetwork, initial_network
from pipeline.runs.run import Run
from pipeline.training.loading import (
    CentredImages,
    RetrievedImages,
    read_retrieved,
    read_training,
    test_images,
    training_images,
)
from pipeline.training.memory import Memory, step_bytes
from pipeline.training.optimiser import build_optimiser, build_schedule
from pipeline.training.plan import plan_batches
from pipeline.training.schedules import Factor
from pipeline.training.shrunk import open_images


@dataclass
class Progress:
    """The state of a run other than its network, loss and optimiser: the epoch and step to go on from, and the results
    so far. All of it is in the checkpoint."""

    epoch: int = 1
    step: int = 0
    step_losses: Tensor = field(default_factory=lambda: torch.empty(0))
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float = -1.0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    """The time of all earlier processes that have worked on the run."""
    gpu_joules: float | None = 0.0
    """The GPU's energy in all earlier processes; None if it was not counted."""
    epoch_seconds: list[float] = field(default_factory=list)
    images_per_second: list[float] = field(default_factory=list)
    machines: list[dict[str, Any]] = field(default_factory=list)
    """Every machine that has worked on the run (`provenance.machine`), the last one last."""


@dataclass
class Parts:
    """The objects of a run in memory."""

    network: EmbeddingNetwork
    criterion: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: Factor
    batches: Any
    images: Any
    test: RetrievedImages | None
    searched: Tensor | CentredImages | None
    training_images: int
    classes: int

    def stateful(self) -> dict[str, Any]:
        """The parts that have a state of their own: name in the checkpoint -> part."""
        return {"network": self.network, "criterion": self.criterion, "optimiser": self.optimiser}


def build_loss(module: str, settings: dict[str, Any], classes: int, dimension: int, source: str) -> nn.Module:
    """The loss of a file of pipeline/losses, all of which `.to(device)` moves. Raises `BadInputError` for settings that
    the loss refuses; `source` says in the message where the settings are."""
    try:
        loss: nn.Module = submodule("losses", module).Loss(classes, dimension, **settings)
        register_tensors(loss)
    except ValueError as error:
        raise BadInputError(f"{source}: {error}") from None
    return loss


def build(run: Run, device: torch.device, workers: int, memory: Memory) -> Parts:
    """All parts of a run, as they are before the first step. Raises `BadInputError` if the run cannot be made or
    evaluated."""
    recipe, splits = run.recipe, Path("data/splits") / run.dataset
    numbers, labels = read_training(run.manifest)
    whole_set = len(numbers) if run.rate is None else len(read_training(splits / "train.csv")[0])
    batches = plan_batches(run, labels, whole_set)
    held_out = run.held_out if run.protocol == "choose_epoch" else None
    test = None if run.protocol == "held_out" else read_retrieved(splits, held_out)
    if test and run.protocol == "test":
        check_evaluation(run.source, recipe, run.seed, test.labels.numpy(), test.queries)
    elif run.protocol == "held_out":
        retrieved = read_retrieved(splits)
        check_evaluation(run.source, recipe, run.seed, retrieved.labels.numpy(), retrieved.queries)
    classes = int(labels.max()) + 1
    sampling.seed_torch(run.seed, "network")
    network = initial_network(recipe).to(device)
    sampling.seed_torch(run.seed, "proxies")
    criterion = build_loss(run.loss, run.loss_settings, classes, recipe.dimension, run.loss_source).to(device)
    if device.type == "cuda":
        numbers_trained = sum(parameter.numel() for part in (network, criterion) for parameter in part.parameters())
        memory.step = step_bytes(recipe, numbers_trained)
        if not memory.take(memory.step):
            print(
                f"a step takes about {memory.step / 1e9:.1f} GB, and this run's share of the GPU has "
                f"{memory.left / 1e9:.1f} GB: it may run out of memory",
                file=sys.stderr,
            )
    packed = open_images(run.dataset, recipe)
    channels = network.backbone.channels
    images = training_images(packed, numbers, labels, channels, recipe, run.seed, memory)
    searched = test_images(packed, test.numbers, channels, recipe, workers, memory) if test else None
    try:
        optimiser, schedule = build_optimiser(recipe, network, criterion), build_schedule(recipe, batches.steps)
    except ValueError as error:  # such as a cycle that is shorter than the run
        raise BadInputError(f"{run.source}: {error}") from None
    return Parts(network, criterion, optimiser, schedule, batches, images, test, searched, len(numbers), classes)


def restore(parts: Parts, saved: dict[str, Any], recipe: Recipe) -> Progress:
    """Load a checkpoint's state into the parts, and return the rest of the state."""
    for name, part in parts.stateful().items():
        part.load_state_dict(saved.pop(name))
    if recipe.frozen_gradients == "zero":
        # As when the run was interrupted: every parameter that has been trained has a gradient, even if it is zero.
        for parameter in parts.optimiser.state:
            parameter.grad = torch.zeros_like(parameter)
    return Progress(**saved)
