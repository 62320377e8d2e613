"""Parameters: read from YAML and checked whole before anything is spent.

A recipe's keys are the fields of `Recipe`; a loss's keys are the keyword arguments of its class. An unknown, missing,
mistyped or impossible value is a `BadInputError` that names the file, the key and the nearest right one.
"""

import difflib
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt, Le, Len
from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError, create_model

from pipeline.base.files import BadInputError, submodule

STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

Positive = Annotated[int, Ge(1)]
Rate = Annotated[float, Gt(0)]


def _epochs(value: Any) -> Any:
    for number in value if isinstance(value, list) else [value]:
        if type(number) is not int or number < 1:
            raise ValueError("give a number n from 1, for every n epochs, or a list of epochs, counted from 1")
    return value


Epochs = Annotated[int | list[int], PlainValidator(_epochs)]
"""Every so many epochs, or these epochs; epochs are counted from 1."""


class Recipe(BaseModel):
    """How a network is trained on one dataset, whatever the loss."""

    model_config = STRICT

    backbone: str
    """A file of pipeline/networks/backbones."""
    pretrained: bool
    """Whether the backbone starts from its published weights (data/weights), otherwise from random ones."""
    pooling: Literal["none", "average", "average_and_maximum"]
    """Of a spatial backbone's maps over height and width; the last is the sum of both."""
    head: Literal["linear", "normalised", "normalised_orthogonal"]
    """To the embedding: a linear layer; or a LayerNorm, a BatchNorm1d and a linear layer; or the same with the linear
    layer's weight starting orthogonal and its bias at zero."""
    batch_norm: Literal["trained", "fixed_statistics", "fixed"]
    """What trains of the backbone's batch norms. With fixed statistics they normalise by the running ones, which stay,
    while scale and shift train: what ProxyGML means, and what Proxy-AN's code does where it means fixed, because its
    thaw after the head's epochs takes scale and shift along."""
    batch_norm_momentum: Annotated[float, Gt(0), Le(1)]
    """The share that a batch has in the new running statistics of the backbone's batch norms: 0.1 is PyTorch's default.
    The head's batch norm always has that."""
    head_only_epochs: list[Positive]
    """The epochs, counted from 1, that train only head and proxies: for Proxy-AN 1 and 2. For ProxyGML 2, where its
    code means 1: it freezes after the first epoch and thaws after the second."""
    frozen_gradients: Literal["none", "zero"]
    """What the optimiser sees of a backbone that has trained and is now frozen: no gradients, and it rests; or zeros,
    as with PyTorch before 2.0, and momentum and weight decay move it on."""
    dimension: Positive
    """Length of an embedding."""
    epochs: Positive
    evaluated_epochs: Epochs
    """The epochs after which the test set is looked at; the best test epoch is one of them."""
    batch_size: Annotated[int, Ge(2)]
    samples_per_class: Positive | None
    """Of which batches are made: so many images of each of batch_size / samples_per_class classes; null shuffles all
    images and takes them in turn."""
    optimiser: Literal["adam", "adamw"]
    epsilon: Rate
    """Of the optimiser: added to the root of the second moment."""
    epsilon_added: Literal["before_correction", "after_correction"]
    """Whether the epsilon is added to that root before the root's bias is corrected (PyTorch up to 1.2) or after (since
    1.3). Before, a large epsilon is a hidden warm-up: see `pipeline/training/optimiser.py`."""
    network_learning_rate: Rate
    proxy_learning_rate: Rate
    weight_decay: Annotated[float, Ge(0)]
    decay_epochs: Epochs
    """The epochs at whose start both learning rates are multiplied by `decay_factor`; every n epochs means n + 1,
    2n + 1 and so on."""
    decay_factor: Annotated[float, Gt(0), Le(1)]
    clip_value: Rate | None
    """Every entry of a gradient, of network and proxies, is clipped to plus or minus this; null clips none."""
    input_size: Positive
    """Height and width, in pixels, of what the network takes."""
    test_resize: Positive
    """Test images are resized to this length of their shorter side, then cropped to `input_size` in the middle."""
    smallest_crop: Annotated[float, Gt(0), Le(1)] | None
    """Training images are cropped at random to at least this share of their area and resized to `input_size`; null
    takes images that are of that size already."""
    flip: bool
    """Whether every other training image, at random, is mirrored."""
    shift: Annotated[int, Ge(0)]
    """Training images are shifted by up to so many pixels each way, the space filled with 0."""
    channel_order: Literal["rgb", "bgr"]
    """Of the network's input, of `mean` and of `std`; bgr is what Caffe's networks take."""
    pixel_maximum: Rate
    """Pixel values are scaled from 0..255 to 0..this before `mean` is subtracted."""
    mean: Annotated[list[float], Len(1)]
    """One a channel, or one for all."""
    std: Annotated[list[Rate], Len(1)]
    """What the difference to `mean` is divided by, one a channel, or one for all."""
    precision: Literal["float32", "tf32", "bfloat16"]
    """Of the network's products: whole, or rounded to TF32's 10 bits on GPUs that have it, or in bfloat16 autocast. The
    last two are faster and give other numbers; losses and metrics are always computed in float32."""
    memory_format: Literal["contiguous", "channels_last"]
    """Of the network and its input. Channels last is the faster one on a CPU and for bfloat16."""
    recall_at: Annotated[list[Positive], Len(1)]
    """The K of Recall@K, 1 among them: the best test epoch is the one of highest Recall@1."""
    counting: Literal["exact", "strict", "drop_first"]
    """How Recall@K counts: see `retrieval.retrieval`. The epoch is always chosen by the exact count."""
    kmeans: Literal["scikit-learn", "faiss"]
    """Whose k-means the clustering metrics are made with: see `clustering.clustering`."""
    cpu_threads: Positive
    """Threads of a run on the CPU, part of the recipe because sums split over threads round differently."""


class Table(BaseModel):
    """The grid of runs behind one table: every dataset with every combination of the rows' values and every seed."""

    model_config = STRICT

    datasets: Annotated[list[str], Len(1)]
    rows: Annotated[dict[str, Annotated[list[str | int | float], Len(1)]], Len(1)]
    """What the rows differ in, outermost first, such as {loss: [proxy_an, proxy_nca], rate: [0.1, 0.2]}: `loss`, an
    entry of losses, or of `<loss>_<dataset>` where there is one; `recipe`, whose entry is `<recipe>_<dataset>`; `rate`
    of a partial and `gamma` of an imbalanced training set; otherwise a key of the recipe or of the loss. The runs of a
    combination lie in folders named <dataset>/<value>-<value>/<seed>."""
    seeds: Annotated[list[Annotated[int, Ge(0)]], Len(1)]
    loss: str | None = None
    """The loss of all rows, where they do not differ in it."""
    protocols: Annotated[list[Literal["test", "choose_epoch", "held_out"]], Len(1)] = ["test"]
    """What is run of each row and seed: `test`, as the papers do; `choose_epoch`, which only looks at held-out training
    classes; `held_out`, the epoch chosen so and then trained on all training classes."""
    raw_pixels: bool = False
    """Whether a first row has the images themselves in place of embeddings: what no training gives."""
    title: str | None = None
    """Above the table, where published.yaml has no title for it."""
    layout: Literal["rows", "ranked"] = "rows"
    """The rows in their order, or from the best down with a test of each against the best."""


def folder_name(values: tuple[Any, ...]) -> str:
    """The name of the folder of a row's runs: its values, one an axis of the table."""
    return "-".join(map(str, values))


class Machine(BaseModel):
    """What a machine's owner may choose; the results do not depend on `workers`."""

    model_config = STRICT

    device: Literal["auto", "cpu", "cuda"]
    workers: Annotated[int, Ge(0)]
    """Processes that load images; 0 loads in the training process."""


class Params(BaseModel):
    """A params.yaml. What a loss's settings must be, its class says."""

    model_config = STRICT

    tables: dict[str, Table]
    machine: Machine
    recipes: dict[str, Recipe]
    losses: dict[str, dict[str, Any]]
    """Name -> settings. The loss is the file of pipeline/losses of that name, or the one that the key `loss` names."""

    def loss_entry(self, loss: str, dataset: str) -> str:
        """The entry of `losses` that a table means by a loss: one for this dataset, where there is one."""
        own = f"{loss}_{dataset}"
        return own if own in self.losses else loss

    def loss(self, name: str) -> tuple[str, dict[str, Any]]:
        """The file of pipeline/losses that the entry `name` means, and the keyword arguments of its class."""
        settings = dict(self.losses[name])
        return settings.pop("loss", name), settings


class _Loader(yaml.CSafeLoader):
    """YAML 1.2's floats, as DVC reads and writes them: to PyYAML alone `1e-05` is text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def problem_lines(error: ValidationError, prefix: str, model: type[BaseModel]) -> list[str]:
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


def read_params(path: Path, recipe: str | None = None, loss: str | None = None, changes: Sequence[str] = ()) -> Params:
    """Read and check a params.yaml, and for a run what its recipe's backbone and its loss say of their keys.

    `changes` are texts such as "recipe.dimension=64" or "loss.alpha=12.0", made to the run's own recipe and loss before
    the check. A run imports no other loss and no other backbone, so that their files are no inputs of it.
    """
    content = read_yaml(path)
    problems: list[str] = []
    for change in changes:
        place, equals, value = change.partition("=")
        part, dot, key = place.partition(".")
        entry = {"recipe": ("recipes", recipe), "loss": ("losses", loss)}.get(part)
        if not (entry and dot and equals):
            raise BadInputError(f"--set {change}: write recipe.KEY=VALUE or loss.KEY=VALUE")
        try:
            content[entry[0]][entry[1]][key] = yaml.load(value, _Loader)
        except (KeyError, TypeError):
            raise BadInputError(f"{path}: {entry[0]}.{entry[1]}: there is no such entry to set {key} of") from None
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        problems += problem_lines(error, "", Params)
    if not problems:
        problems += [problem for name, of in params.tables.items() for problem in _table_problems(params, name, of)]
        problems += [problem for name, of in params.recipes.items() for problem in _contradictions(name, of)]
        problems += _backbone_problems(params, recipe) if recipe else []
        problems += _loss_problems(params, loss) if loss else []
    if problems:
        raise BadInputError("\n  ".join([f"{path}:", *problems]))
    return params


def read_table(path: Path, name: str, dataset: str | None = None) -> Table:
    """A table of a params.yaml, which has to have the dataset where one is given."""
    tables = read_params(path).tables
    if name not in tables:
        raise BadInputError(f"{path}: tables.{name}: there is no such table, choose one of {', '.join(tables)}")
    if dataset and dataset not in (known := tables[name].datasets):
        raise BadInputError(f"{path}: tables.{name}.datasets: {dataset} is not among {', '.join(known)}, add it")
    return tables[name]


def _table_problems(params: Params, name: str, table: Table) -> list[str]:
    """What a table names that is not there."""
    key = "rows.loss" if "loss" in table.rows else "loss"
    losses = [str(loss) for loss in table.rows.get("loss", [table.loss] if table.loss else [])]
    if not losses:
        return [f"tables.{name}.loss: this key is missing and the rows name no loss, add it"]
    told = {
        f"tables.{name}.{key}: {loss} has no settings, add losses.{loss}"
        for loss in losses
        for dataset in table.datasets
        if params.loss_entry(loss, dataset) not in params.losses
    }
    recipes = {
        f"{recipe}_{dataset}" if recipe else dataset
        for recipe in table.rows.get("recipe", [""])
        for dataset in table.datasets
    }
    told |= {f"tables.{name}: {recipe} has no recipe, add recipes.{recipe}" for recipe in recipes - set(params.recipes)}
    return sorted(told)


def _contradictions(name: str, recipe: Recipe) -> list[str]:
    """What is impossible together in one recipe."""
    problems = []
    if 1 not in recipe.recall_at:
        problems.append("recall_at: 1 is missing, the best test epoch is chosen by Recall@1")
    for key in ("head_only_epochs", "decay_epochs", "evaluated_epochs"):
        epochs = getattr(recipe, key)
        late = [epoch for epoch in epochs if epoch > recipe.epochs] if isinstance(epochs, list) else []
        if late:
            problems.append(f"{key}: there is no epoch {late[0]}, the recipe has {recipe.epochs}")
    evaluated = recipe.evaluated_epochs
    if not evaluated or (isinstance(evaluated, int) and evaluated > recipe.epochs):
        problems.append(f"evaluated_epochs: none of the {recipe.epochs} epochs is evaluated")
    if recipe.samples_per_class and recipe.batch_size % recipe.samples_per_class:
        problems.append(f"samples_per_class: {recipe.samples_per_class} does not divide the batch_size")
    if recipe.smallest_crop is not None and recipe.shift:
        problems.append("shift: images that are cropped at random are not shifted besides, use 0")
    if recipe.test_resize < recipe.input_size:
        problems.append("test_resize: it is less than input_size, which is cropped out of the middle")
    return [f"recipes.{name}.{problem}" for problem in problems]


def _backbone_problems(params: Params, name: str) -> list[str]:
    """What is wrong between one recipe and its backbone."""
    if name not in params.recipes:
        return [f"recipes.{name}: there is no such recipe, add it or use one of {', '.join(params.recipes)}"]
    return [f"recipes.{name}.{problem}" for problem in backbone_problems(params.recipes[name])]


def backbone_problems(recipe: Recipe) -> list[str]:
    """What is wrong between a recipe and its backbone, whose module is imported."""
    try:
        backbone = submodule("networks.backbones", recipe.backbone).Backbone
    except BadInputError as error:
        return [f"backbone: {error}"]
    problems = [
        f"{key}: {recipe.backbone} takes {backbone.channels} channels, give as many"
        for key in ("mean", "std")
        if len(getattr(recipe, key)) != backbone.channels
    ]
    if backbone.channels == 1 and recipe.channel_order != "rgb":
        problems.append(f"channel_order: {recipe.backbone} takes one channel, use rgb")
    if backbone.input_size not in (None, recipe.input_size):
        problems.append(f"input_size: {recipe.backbone} takes {backbone.input_size} pixels, no other size")
    if backbone.spatial and recipe.pooling == "none":
        problems.append(f"pooling: {recipe.backbone} gives maps, use average or average_and_maximum")
    if not backbone.spatial and recipe.pooling != "none":
        problems.append(f"pooling: {recipe.backbone} gives vectors, which are not pooled, use none")
    if not backbone.batch_norms and recipe.batch_norm != "trained":
        problems.append(f"batch_norm: {recipe.backbone} has no batch norms to fix, use trained")
    if recipe.pretrained and not backbone.published:
        problems.append(f"pretrained: {recipe.backbone} has no published weights, use false")
    return problems


def _loss_problems(params: Params, name: str) -> list[str]:
    """What is wrong with the settings of one loss."""
    if name not in params.losses:
        return [f"losses.{name}: there are no settings, add them or use one of {', '.join(params.losses)}"]
    return loss_problems(*params.loss(name), f"losses.{name}")


def loss_problems(module: str, settings: dict[str, Any], name: str) -> list[str]:
    """What is wrong with the settings of a file of pipeline/losses, which is imported; `name` says where they stand."""
    try:
        model = _loss_settings(submodule("losses", module).Loss)
        model.model_validate(settings)
    except BadInputError as error:
        return [f"{name}: {error}"]
    except ValidationError as error:
        return problem_lines(error, name, model)
    return []
