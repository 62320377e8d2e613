"""Parameters: read from YAML and checked whole before anything is spent.

A recipe's keys are the fields of `Recipe`; a loss's keys are the keyword arguments of its class. An unknown, missing,
mistyped or impossible value is a `BadInputError` that names the file, the key and the nearest right one.
"""

import difflib
import inspect
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt, Le, Len
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from pipeline.files import BadInputError, submodule

STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

Positive = Annotated[int, Ge(1)]
Rate = Annotated[float, Gt(0)]


class Recipe(BaseModel):
    """How a network is trained on one dataset, whatever the loss."""

    model_config = STRICT

    backbone: str
    """A file of pipeline/backbones."""
    pretrained: bool
    """Whether the backbone starts from its published weights (data/weights), otherwise from random ones."""
    pooling: Literal["none", "average", "average_and_maximum"]
    """Of a spatial backbone's maps over height and width; the last is the sum of both."""
    head: Literal["linear", "normalised", "orthogonal"]
    """To the embedding: a linear layer alone; after a LayerNorm and a BatchNorm1d; alone, its weight starting
    orthogonal and its bias at zero."""
    batch_norm: Literal["trained", "fixed_statistics", "fixed"]
    """What trains of the backbone's batch norms. With fixed statistics they normalise by the running ones, which stay,
    while scale and shift train: what ProxyGML means, and what Proxy-AN's code does where it means fixed, because its
    thaw after the head's epochs takes scale and shift along."""
    head_only_epochs: list[Positive]
    """The epochs, counted from 1, that train only head and proxies: for Proxy-AN 1 and 2. For ProxyGML 2, where its
    code means 1: it freezes after the first epoch and thaws after the second."""
    frozen_gradients: Literal["none", "zero"]
    """What the optimiser sees of a backbone that has trained and is now frozen: no gradients, and it rests; or zeros,
    as with PyTorch before 2.0, and momentum and weight decay move it on."""
    dimension: Positive
    """Length of an embedding."""
    epochs: Positive
    batch_size: Annotated[int, Ge(2)]
    optimiser: Literal["adam", "adamw"]
    network_learning_rate: Rate
    proxy_learning_rate: Rate
    weight_decay: Annotated[float, Ge(0)]
    decay_epochs: list[Positive]
    """The epochs, counted from 1, at whose start both learning rates are multiplied by `decay_factor`."""
    decay_factor: Annotated[float, Gt(0), Le(1)]
    shift: Annotated[int, Ge(0)]
    """Training images are shifted by up to so many pixels each way, the space filled with 0."""
    mean: Annotated[list[float], Len(1)]
    """Of pixel values in 0..1, one a channel; subtracted before division by `std`."""
    std: Annotated[list[Rate], Len(1)]
    recall_at: Annotated[list[Positive], Len(1)]
    """The K of Recall@K, 1 among them: the best test epoch is the one of highest Recall@1."""
    counting: Literal["exact", "strict", "drop_first"]
    """How Recall@K counts: see `retrieval.retrieval`. The epoch is always chosen by the exact count."""
    kmeans: Literal["scikit-learn", "faiss"]
    """Whose k-means the clustering metrics are made with: see `clustering.clustering`."""
    cpu_threads: Positive
    """Threads of a run on the CPU, part of the recipe because sums split over threads round differently."""


class Table(BaseModel):
    """The grid of runs behind one table."""

    model_config = STRICT

    dataset: str
    losses: Annotated[list[str], Len(1)]
    seeds: Annotated[list[Annotated[int, Ge(0)]], Len(1)]


class Machine(BaseModel):
    """What a machine's owner may choose; the results do not depend on `workers`."""

    model_config = STRICT

    device: Literal["auto", "cpu", "cuda"]
    workers: Annotated[int, Ge(0)]
    """Processes that load images; 0 loads in the training process."""


class Params(BaseModel):
    """A params.yaml. What a loss's settings must be, its class says."""

    model_config = STRICT

    table: Table
    machine: Machine
    recipes: dict[str, Recipe]
    losses: dict[str, dict[str, Any]]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats, as DVC reads and writes them: to PyYAML alone `1e-05` is text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _problems(error: ValidationError, prefix: str, model: type[BaseModel]) -> list[str]:
    """One line a problem: the key's path, what is wrong, and for an unknown key the nearest right one."""
    lines = []
    for problem in error.errors(include_url=False):
        path = [prefix, *map(str, problem["loc"])] if prefix else [str(part) for part in problem["loc"]]
        key, message = ".".join(path), problem["msg"][0].lower() + problem["msg"][1:]
        if problem["type"] == "extra_forbidden":
            known = _fields(model, problem["loc"][:-1])
            nearest = difflib.get_close_matches(path[-1], known, 1)
            mend = f"did you mean {nearest[0]}?" if nearest else f"choose among {', '.join(known)}"
            message = f"unknown key, {mend}"
        elif problem["type"] == "missing":
            message = "this key is missing, add it"
        else:
            message += f", found {problem['input']!r}"
        lines.append(f"{key}: {message}")
    return lines


def _fields(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that `model` knows at a location inside it."""
    for part in location:
        if part in model.model_fields:
            annotation: Any = model.model_fields[str(part)].annotation
            inner = [annotation, *getattr(annotation, "__args__", ())]
            model = next((kind for kind in inner if inspect.isclass(kind) and issubclass(kind, BaseModel)), model)
    return list(model.model_fields)


def _loss_settings(loss: type) -> type[BaseModel]:
    """A model of a loss's keyword arguments."""
    arguments = inspect.signature(loss).parameters.values()
    fields: dict[str, Any] = {
        argument.name: (argument.annotation, ... if argument.default is argument.empty else argument.default)
        for argument in arguments
        if argument.kind is argument.KEYWORD_ONLY
    }
    return create_model("LossSettings", __config__=STRICT, **fields)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; a missing or broken one is bad input."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise BadInputError(f"{path} is missing") from None
    except yaml.YAMLError as error:
        raise BadInputError(f"{path} is not YAML: {error}") from None


def read_params(path: Path, dataset: str | None = None, loss: str | None = None) -> Params:
    """Read and check a params.yaml, and for a run what its dataset's backbone and its loss say of their keys.

    A run imports no other loss and no other backbone, so that their files are no inputs of it.
    """
    content = read_yaml(path)
    problems: list[str] = []
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        problems += _problems(error, "", Params)
    if not problems:
        problems += _grid_problems(params)
        problems += _recipe_problems(params, dataset) if dataset else []
        problems += _loss_problems(params, loss) if loss else []
    if problems:
        raise BadInputError("\n  ".join([f"{path}:", *problems]))
    return params


def _grid_problems(params: Params) -> list[str]:
    """What the table asks for that has no settings."""
    problems = []
    for name in params.table.losses:
        if name not in params.losses:
            problems.append(f"table.losses: {name} has no settings, add losses.{name}")
    if params.table.dataset not in params.recipes:
        problems.append(f"table.dataset: {params.table.dataset} has no recipe, add recipes.{params.table.dataset}")
    for name, recipe in params.recipes.items():
        if 1 not in recipe.recall_at:
            problems.append(f"recipes.{name}.recall_at: 1 is missing, the best test epoch is chosen by Recall@1")
    return problems


def _recipe_problems(params: Params, name: str) -> list[str]:
    """What is wrong between the recipe of one dataset and its backbone."""
    if name not in params.recipes:
        return [f"recipes.{name}: there is no such recipe, add it or use one of {', '.join(params.recipes)}"]
    recipe = params.recipes[name]
    try:
        backbone = submodule("backbones", recipe.backbone).Backbone
    except BadInputError as error:
        return [f"recipes.{name}.backbone: {error}"]
    problems = [
        f"recipes.{name}.{key}: {recipe.backbone} takes {backbone.channels} channels, give as many"
        for key in ("mean", "std")
        if len(getattr(recipe, key)) != backbone.channels
    ]
    if backbone.spatial and recipe.pooling == "none":
        problems.append(f"recipes.{name}.pooling: {recipe.backbone} gives maps, use average or average_and_maximum")
    if not backbone.spatial and recipe.pooling != "none":
        problems.append(f"recipes.{name}.pooling: {recipe.backbone} gives vectors, which are not pooled, use none")
    if recipe.pretrained and not backbone.published:
        problems.append(f"recipes.{name}.pretrained: {recipe.backbone} has no published weights, use false")
    return problems


def _loss_problems(params: Params, name: str) -> list[str]:
    """What is wrong with the settings of one loss."""
    if name not in params.losses:
        return [f"losses.{name}: there are no settings, add them or use one of {', '.join(params.losses)}"]
    try:
        model = _loss_settings(submodule("losses", name).Loss)
        model.model_validate(params.losses[name])
    except BadInputError as error:
        return [f"losses.{name}: {error}"]
    except ValidationError as error:
        return _problems(error, f"losses.{name}", model)
    return []
