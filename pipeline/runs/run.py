"""A run: the values of all settings that decide what it trains, wherever they were written."""

import csv
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.base.choices import with_defaults
from pipeline.base.config import Params, Recipe, read_params
from pipeline.base.files import BadInputError
from pipeline.base.names import checked_name
from pipeline.runs.protocols import PROTOCOLS, Protocol

EVALUATED = ("metrics",)
"""The recipe's keys that only evaluation reads."""


@dataclass(frozen=True)
class Run:
    """One training. Two runs with equal values here give the same bytes on the same data, code, packages and kind of
    device. `source` and `loss_source` say, for messages, where the settings are written."""

    dataset: str
    recipe: Recipe
    loss: str
    """A file of pipeline/losses."""
    loss_settings: dict[str, Any]
    """All keyword arguments of its class, including defaults."""
    seed: int
    protocol: Protocol = "test"
    rate: float | None = None
    """The rate of a partial training set."""
    gamma: int | None = None
    """The gamma of an imbalanced training set."""
    fold: str | None = None
    """The fold of the training classes that a choose_epoch run holds out, such as 2of4; None for the second half."""
    chosen_by: "Run | None" = None
    """The choose_epoch run, if the protocol is held_out."""
    members: "tuple[Run, ...]" = ()
    """The runs of an ensemble."""
    source: str = "params.yaml: recipes"
    loss_source: str = "params.yaml: losses"

    @property
    def manifest(self) -> Path:
        """The manifest of the training images."""
        if self.rate is not None:
            return Path("data/subsets") / self.dataset / f"partial_{self.rate}.csv"
        if self.gamma is not None:
            return Path("data/subsets") / self.dataset / f"imbalanced_{self.gamma}_{self.seed}.csv"
        if self.fold is not None:
            return Path("data/subsets") / self.dataset / f"fold_{self.fold}_train.csv"
        return Path("data/splits") / self.dataset / f"{PROTOCOLS[self.protocol].trains_on}.csv"

    @property
    def held_out(self) -> Path:
        """The manifest of the held-out images that a choose_epoch run is evaluated on."""
        if self.fold is not None:
            return Path("data/subsets") / self.dataset / f"fold_{self.fold}_test.csv"
        return Path("data/splits") / self.dataset / "held_out_test.csv"

    @property
    def trained(self) -> bool:
        """Whether the run is trained."""
        return PROTOCOLS[self.protocol].trained

    @property
    def waits_for(self) -> "tuple[Run, ...]":
        """The runs that have to be done before this one."""
        return self.members if self.chosen_by is None else (self.chosen_by, *self.members)

    @property
    def subset(self) -> dict[str, float | int | str]:
        """{"rate": ...}, {"gamma": ...} or {"fold": ...} of the training set; empty for the whole training set."""
        return {name: value for name in ("rate", "gamma", "fold") if (value := getattr(self, name)) is not None}

    def settings(self) -> dict[str, Any]:
        """All settings of the run as JSON values, including those that only evaluation reads."""
        return {
            "dataset": self.dataset,
            "loss": self.loss,
            "loss_settings": self.loss_settings,
            "seed": self.seed,
            "protocol": self.protocol,
            "subset": self.subset,
            # Defaults are left out, so that a new key of recipes changes no run that does not use it.
            "recipe": self.recipe.model_dump(mode="json", exclude_defaults=True),
        }


def make_run(
    path: Path,
    params: Params,
    dataset: str,
    loss: str,
    seed: int,
    recipe: str | None = None,
    **choices: Any,
) -> Run:
    """A run with the entries `recipe` (the dataset's if not given) and `loss` of the params file at `path`. `choices`
    are further fields of `Run`. Raises `BadInputError` if an entry does not exist."""
    recipe_name = dataset if recipe is None else recipe
    checked_name("dataset", dataset)
    if recipe_name not in params.recipes:
        raise BadInputError(f"{path}: recipes.{recipe_name}: there is no such recipe, add it")
    if loss not in params.losses:
        raise BadInputError(f"{path}: losses.{loss}: there are no settings, add them")
    module, settings = params.loss(loss)
    run = Run(dataset, params.recipes[recipe_name], module, with_defaults("loss", module, settings), seed, **choices)
    return replace(run, source=f"{path}: recipes.{recipe_name}", loss_source=f"{path}: losses.{loss}")


def checked_run(
    path: Path, dataset: str, loss: str, seed: int, recipe: str | None, changes: list[str], **choices: Any
) -> Run:
    """`make_run`, with a full check of the params file, of the recipe's network and of the loss. It imports torch.
    Raises `BadInputError` with the problems."""
    run = make_run(
        path,
        read_params(path, dataset if recipe is None else recipe, loss, changes),
        dataset,
        loss,
        seed,
        recipe,
        **choices,
    )
    from pipeline.networks.outline import check_backbone  # here, because it imports torch, which takes a second

    check_backbone(run.recipe, run.source)
    return run


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of a history.csv, one for each epoch: column -> number. Empty values of epochs without an evaluation
    are left out. Raises `BadInputError` if the file is missing or damaged."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        history: list[dict[str, Any]] = []
        for row in rows:
            line: dict[str, Any] = {"epoch": int(row["epoch"]), "weights": row["weights"]}
            line |= {
                name: float(value) for name, value in row.items() if name not in ("epoch", "weights") and value != ""
            }
            if line["epoch"] != len(history) + 1 or not all(
                math.isfinite(value) for value in line.values() if isinstance(value, float)
            ):
                raise ValueError(f"epoch {line['epoch']} is in the wrong place or has a number that is not finite")
            history.append(line)
    except FileNotFoundError:
        raise BadInputError(f"{path} is missing: train the run that writes it (`dvc repro`)") from None
    except (KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path} is not the history of a run ({error}): train its run again") from None
    return history


def best_epoch(history: list[dict[str, Any]], path: Path) -> int:
    """The first epoch with the highest Recall@1, counted from 1, in the history that was read from `path`. Raises
    `BadInputError` if there is none."""
    evaluated = [line for line in history if "recall@1" in line]
    if not evaluated or not all(0 <= line["recall@1"] <= 1 for line in evaluated):
        raise BadInputError(f"{path}: no epoch was evaluated, or a Recall@1 is not from 0 to 1: train the run again")
    best: int = max(evaluated, key=lambda line: line["recall@1"])["epoch"]
    return best
