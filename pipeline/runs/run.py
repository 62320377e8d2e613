"""What a run is: its command line, the images it trains on, the epoch it ends with, its batches."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.base.config import Params, Positive, Recipe, problem_lines
from pipeline.base.files import BadInputError
from pipeline.training.batches import ClassBalanced, Shuffled
from pipeline.training.loading import read_training


@dataclass(frozen=True)
class Run:
    """What the command line of `pipeline.train` says."""

    params: Path
    dataset: str
    recipe: str | None
    loss: str
    set: list[str]
    seed: int
    partial: float | None
    imbalanced: int | None
    held_out: bool
    until: Path | None
    out: Path
    device: str | None
    workers: int | None

    @property
    def manifest(self) -> Path:
        """The list of the training images."""
        if self.partial is not None:
            return Path("data/subsets") / self.dataset / f"partial_{self.partial}.csv"
        if self.imbalanced is not None:
            return Path("data/subsets") / self.dataset / f"imbalanced_{self.imbalanced}_{self.seed}.csv"
        return Path("data/splits") / self.dataset / ("held_out_train.csv" if self.held_out else "train.csv")

    @property
    def arguments(self) -> list[str]:
        """The words of the command line."""
        words = ["--params", str(self.params), "--dataset", self.dataset, "--loss", self.loss, "--seed", str(self.seed)]
        for key in ("recipe", "partial", "imbalanced", "until", "device", "workers"):
            value = getattr(self, key)
            words += [] if value is None else [f"--{key}", str(value)]
        words += ["--set", *self.set] if self.set else []
        return [*words, *(["--held-out"] if self.held_out else []), "--out", str(self.out)]

    def settled(self, params: Params) -> dict[str, Any]:
        """What the run's params file and command line settle of it, as run.json tells it."""
        return {
            "dataset": self.dataset,
            "loss": self.loss,
            "seed": self.seed,
            "setting": {key: value for key in ("partial", "imbalanced") if (value := getattr(self, key)) is not None},
            "protocol": "held_out_choice" if self.held_out else "held_out" if self.until else "test",
            "recipe": params.recipes[self.recipe or self.dataset].model_dump(),
            "loss_settings": params.losses[self.loss],
        }


class _Line(BaseModel):
    """What is read of a line of a history.jsonl; it holds more."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    epoch: Positive
    recall: dict[str, Annotated[float, Ge(0), Le(1)]] = {}


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of a history.jsonl, one an epoch, of which one at least was evaluated."""
    again = "train the run that writes it again (`dvc repro`)"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise BadInputError(f"{path} is missing: train the run that writes it (`dvc repro`)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path} cannot be read ({error}): {again}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            read = _Line.model_validate_json(line)
        except ValidationError as error:
            told = "; ".join(problem_lines(error, "", _Line))
            raise BadInputError(f"{path} line {number}: {told}: {again}") from None
        if read.epoch != number or ("recall" in read.model_fields_set and "recall@1" not in read.recall):
            raise BadInputError(f"{path} line {number} is not of epoch {number}, or has no recall@1: {again}")
        found.append(json.loads(line))
    if not any("recall" in line for line in found):
        raise BadInputError(f"{path} has no epoch that was evaluated: {again}")
    return found


def best_epoch(history: list[dict[str, Any]]) -> int:
    """The first epoch of highest Recall@1, counted from 1."""
    evaluated = [line for line in history if "recall" in line]
    return max(evaluated, key=lambda line: line["recall"]["recall@1"])["epoch"]


def last_epoch(run: Run, recipe: Recipe) -> int:
    """The epoch that the run ends with: the recipe's last, or the best of the history that --until names."""
    if run.until is None:
        return recipe.epochs
    best = best_epoch(read_history(run.until))
    if best > recipe.epochs:
        raise BadInputError(f"--until {run.until}: its best epoch is {best}, but the recipe has {recipe.epochs}")
    return best


def plan_batches(run: Run, recipe: Recipe, labels: torch.Tensor) -> Shuffled | ClassBalanced:
    """The batches of every epoch. Raises `BadInputError` where there are too few images or classes for one."""
    key = f"{run.params}: recipes.{run.recipe or run.dataset}.batch_size: {recipe.batch_size}"
    images, classes = len(labels), int(labels.max()) + 1
    if recipe.batch_size > images:
        raise BadInputError(f"{key} is more than the {images} images of {run.manifest}, use a smaller batch")
    if recipe.samples_per_class is None:
        if recipe.head == "normalised" and images % recipe.batch_size == 1:
            raise BadInputError(
                f"{key} leaves one of the {images} images of {run.manifest} for the last batch, which the head's batch "
                "norm cannot normalise: use another batch size"
            )
        return Shuffled(images, recipe.batch_size, run.seed)
    if recipe.batch_size // recipe.samples_per_class > classes:
        raise BadInputError(
            f"{key} with {recipe.samples_per_class} images a class needs more classes than the {classes} of "
            f"{run.manifest}, use a smaller batch"
        )
    if run.partial is None:
        steps = (images - 1) // recipe.batch_size
    else:
        whole_set = len(read_training(Path("data/splits") / run.dataset / "train.csv")[0])
        steps = int(whole_set * run.partial) // recipe.batch_size
    by_class_size = run.imbalanced is not None
    if not steps:
        raise BadInputError(
            f"{key} leaves no whole batch of the {images} images of {run.manifest}, use a smaller batch"
        )
    return ClassBalanced(labels.numpy(), recipe.batch_size, recipe.samples_per_class, run.seed, steps, by_class_size)
