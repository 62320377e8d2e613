"""Training: one network with one loss and one seed, from the first epoch or from a checkpoint to the last epoch.

It writes `history.csv`, with a line for each epoch: mean loss, learning rates, the first digits of the weights'
SHA-256, and Recall@K if the recipe evaluates that epoch. It also writes the weights that the run's protocol keeps:
`best_test_epoch.pt` and `last_epoch.pt` for `test`, `held_out.pt` for `held_out`, and none for `choose_epoch`.
"""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.base.config import Recipe
from pipeline.base.provenance import Meter, Spent, machine, worked_on
from pipeline.metrics.retrieval import recall_at_k
from pipeline.networks.freezing import set_trainable
from pipeline.runs.run import Run
from pipeline.training import checkpoint
from pipeline.training.embedding import embed
from pipeline.training.graphs import GraphedNetwork, GraphsFailedError
from pipeline.training.loading import training_batches
from pipeline.training.memory import Memory
from pipeline.training.optimiser import learning_rates, set_learning_rates
from pipeline.training.outputs import kept, weights_hash, write_history, write_weights
from pipeline.training.parts import Progress, build, restore
from pipeline.training.step import training_step

CHECKED_EVERY = 50
"""The number of steps between checks of the losses, because each check waits for the GPU."""


def evaluates(recipe: Recipe, epoch: int) -> bool:
    """Whether the test set is evaluated after an epoch, counted from 1."""
    every = recipe.evaluated_epochs
    return epoch in every if isinstance(every, list) else epoch % every == 0


def check_finite(losses: list[Tensor], epoch: int, rates: dict[str, float]) -> None:
    """Raise `FloatingPointError` if one of an epoch's losses so far is NaN or infinite. `rates` are the learning rates,
    for the message."""
    values = torch.stack(losses).double().cpu()
    if not values.isfinite().all():
        step = int((~values.isfinite()).int().argmax())
        last = f"the last finite loss is {values[step - 1].item()}" if step else "it is the epoch's first"
        raise FloatingPointError(
            f"the loss is {values[step].item()} at epoch {epoch}, step {step + 1}, with a learning rate of "
            f"{rates['network']} for the network and {rates['proxies']} for the proxies; {last}"
        )


def check_trained(values: Iterable[Tensor], what: str, epoch: int, rates: dict[str, float]) -> None:
    """Raise `FloatingPointError` if one of the network's `values`, which `what` names, is NaN or infinite after an
    epoch: its last step may diverge with a finite loss."""
    if not all(value.isfinite().all() for value in values):
        raise FloatingPointError(
            f"the {what} of the network are not finite after epoch {epoch}, with a learning rate of "
            f"{rates['network']} for the network and {rates['proxies']} for the proxies: the training diverges"
        )


class Training:
    """A run in progress on a device. `name` is its name in messages, `last_epoch` the epoch with which it ends, and
    `key` its key, by which it knows its checkpoint. `shared_by` runs share the GPU. `graphs_failed` says why CUDA
    graphs failed in an earlier process of this run; it then uses none."""

    def __init__(
        self,
        run: Run,
        name: str,
        last_epoch: int,
        device: torch.device,
        workers: int,
        key: str,
        saved_at: Path,
        history: Path,
        graphs: bool = True,
        shared_by: int = 1,
        graphs_failed: str = "",
    ):
        self.run, self.name, self.last_epoch, self.device = run, name, last_epoch, device
        self.workers, self.key, self.saved_at, self.history_file = workers, key, saved_at, history
        self.meter = Meter(device)
        self.termination = checkpoint.Termination()
        memory = Memory(device, shared_by)
        self.parts = build(run, device, workers, memory)
        saved = checkpoint.load(saved_at, key)
        self.progress = restore(self.parts, saved, run.recipe) if saved else Progress()
        trained = (self.parts.network, self.parts.criterion, self.parts.optimiser)
        wanted = graphs and device.type != "cpu"
        if wanted and not graphs_failed and not memory.take(memory.step):
            have = f"a graph takes about {memory.step / 1e9:.1f} GB, {max(memory.left, 0) / 1e9:.1f} GB are left"
            graphs_failed = f"{have} of this run's share of the GPU"
        self.network = GraphedNetwork(run.recipe, *trained, device, wanted and not graphs_failed)
        if wanted and graphs_failed:
            self.network.found["never"] = f"not used: {graphs_failed}"
        if saved:
            print(f"{name}: goes on from epoch {self.progress.epoch}, step {self.progress.step + 1}", file=sys.stderr)
        self.progress.machines = worked_on(self.progress.machines, machine(device), name)

    @property
    def spent(self) -> Spent:
        """The time and energy of all processes that have worked on the run, including this one."""
        return Spent(self.progress.seconds, self.progress.gpu_joules) + self.meter.read()

    def on_device(self) -> dict[str, Any]:
        """How the device was used, for made.json. No result depends on it."""
        stay = getattr(self.parts.images, "resident", None) is not None
        return {"images_on_device": stay, "cuda_graphs": self.network.found}

    def save(self) -> None:
        """Write the checkpoint, in the background."""
        stateful = {name: part.state_dict() for name, part in self.parts.stateful().items()}
        self.writer.save(vars(self.progress) | vars(self.spent) | stateful)

    def train(self) -> None:
        """Train to the last epoch. When asked to stop, save and raise `StoppedError`."""
        progress = self.progress
        loader = iter(
            training_batches(
                self.parts.images,
                self.parts.batches,
                range(progress.epoch, self.last_epoch + 1),
                self.workers,
                self.device,
                first_step=progress.step,
            )
        )
        write_history(self.history_file, progress.history)
        self.writer = checkpoint.Writer(self.saved_at, self.key)
        with self.termination, contextlib.closing(loader), contextlib.closing(self.writer):
            self.train_epochs(loader)

    def train_epochs(self, loader: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Train, evaluate and save, epoch by epoch, with the batches of `loader`."""
        progress = self.progress
        for epoch in range(progress.epoch, self.last_epoch + 1):
            start = time.monotonic()
            seen = self.train_epoch(epoch, loader)
            trained = time.monotonic()
            line = self.look(epoch)
            progress.history.append(line)
            write_history(self.history_file, progress.history)
            seconds, speed = time.monotonic() - start, seen / max(trained - start, 1e-9)
            if seen:  # 0 if an earlier process was stopped after the epoch's last step
                progress.epoch_seconds.append(round(seconds, 3))
                progress.images_per_second.append(round(speed, 1))
            progress.epoch, progress.step, progress.step_losses = epoch + 1, 0, torch.empty(0)
            self.save()
            self.report(epoch, line, seconds, speed)

    def train_epoch(self, epoch: int, loader: Iterator[tuple[Tensor, Tensor]]) -> int:
        """Take the remaining steps of an epoch, and return the number of images seen. When asked to stop, save and
        raise `StoppedError`."""
        run, parts, progress = self.run, self.parts, self.progress
        seen = 0
        set_trainable(parts.network, run.recipe, epoch)
        losses = list(progress.step_losses.to(self.device))
        steps = parts.batches.steps
        bar = tqdm(total=steps, initial=progress.step, desc=f"{self.name} epoch {epoch}", leave=False, disable=None)
        for step in range(progress.step + 1, steps + 1):
            pixels, labels = next(loader)
            factor = parts.schedule(epoch, step)
            set_learning_rates(parts.optimiser, run.recipe, factor)
            if step == progress.step + 1:
                self.network.begin(epoch, pixels, labels)
            losses.append(self.step(pixels, labels))
            seen += len(labels)
            bar.update()
            if step % CHECKED_EVERY == 0 or step == steps or self.termination.came:
                check_finite(losses, epoch, learning_rates(run.recipe, factor))
            if self.termination.came:
                progress.step, progress.step_losses = step, torch.stack(losses).cpu()
                self.save()
                self.writer.wait()
                raise checkpoint.StoppedError(
                    f"{self.name}: asked to stop, saved at epoch {epoch}, step {step}; run it again"
                )
        bar.close()
        progress.step_losses = torch.stack(losses)
        return seen

    def step(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Take a step on a batch and return its loss. Raises `GraphsFailedError` if a graph leaves it no memory."""
        parts = self.parts
        try:
            return training_step(
                self.run.recipe, self.network, parts.criterion, parts.optimiser, pixels, labels, self.device
            )
        except torch.OutOfMemoryError as error:
            if not self.network.in_use:
                raise
            raise GraphsFailedError(str(error).splitlines()[0]) from error

    def look(self, epoch: int) -> dict[str, Any]:
        """The history's line of an epoch that has just been trained, with the learning rates of its last step. The
        weights are kept if they are the best so far."""
        recipe, parts, progress = self.run.recipe, self.parts, self.progress
        rates = learning_rates(recipe, parts.schedule(epoch, parts.batches.steps))
        weights = kept(parts.network)
        check_trained(weights.values(), "weights", epoch, rates)
        line: dict[str, Any] = {
            "epoch": epoch,
            "loss": progress.step_losses.double().mean().item(),
            "network_learning_rate": rates["network"],
            "proxy_learning_rate": rates["proxies"],
            "weights": weights_hash(weights),
        }
        if recipe.learning_rates.head is not None:
            line["head_learning_rate"] = rates["head"]
        if parts.test and parts.searched is not None and (evaluates(recipe, epoch) or epoch == self.last_epoch):
            embeddings = embed(parts.network, parts.searched, recipe, self.device)
            check_trained([embeddings], "embeddings", epoch, rates)
            line |= recall_at_k(**parts.test.search(embeddings), ks=recipe.recall_at)
            if line["recall@1"] > progress.best:
                progress.best, progress.best_weights = line["recall@1"], weights
        return line

    def report(self, epoch: int, line: dict[str, Any], seconds: float, speed: float) -> None:
        """Print the results of an epoch, its speed and the time left."""
        searched = "held-out" if self.run.protocol == "choose_epoch" else "test"
        recall = f", {searched} Recall@1 {line['recall@1']:.2%}" if "recall@1" in line else ""
        left = tqdm.format_interval(seconds * (self.last_epoch - epoch))
        print(
            f"{self.name} epoch {epoch}/{self.last_epoch}: loss {line['loss']:.4f}{recall}, {seconds:.1f} s "
            f"({speed:,.0f} images/s), {left} left",
            file=sys.stderr,
            flush=True,
        )

    def write(self, folder: Path) -> list[str]:
        """Write the files that the protocol keeps to `folder`, which must exist, and return their names."""
        weights = {"best_test_epoch": self.progress.best_weights, "last_epoch": kept(self.parts.network)}
        if self.run.protocol != "test":
            weights = {"held_out": kept(self.parts.network)} if self.run.protocol == "held_out" else {}
        for name, values in weights.items():
            write_weights(folder / f"{name}.pt", values)
        write_history(folder / "history.csv", self.progress.history)
        return [*(f"{name}.pt" for name in weights), "history.csv"]
