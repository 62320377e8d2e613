"""Parameters: read from YAML and checked whole before anything is spent.

A recipe's keys are the fields of `Recipe`; a loss's keys are the keyword arguments of its class. An unknown, missing,
mistyped or impossible value is a `BadInputError` that names the file, the key and the nearest right one.
"""

import math
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len
from pydantic import AfterValidator, BaseModel, ConfigDict, PlainValidator, ValidationError

from pipeline.base import checks
from pipeline.base.checks import problem_lines
from pipeline.base.files import BadInputError
from pipeline.base.machine import Machine, from_environment, variable
from pipeline.base.names import Name, distinct_rows, each_once, folder_name, name_problem
from pipeline.base.yaml_files import parse_yaml, read_yaml

__all__ = [  # noqa: RUF022 - in the order of their use
    "STRICT", "Positive", "Name", "Recipe", "Table", "Machine", "Params", "folder_name",
    "problem_lines", "read_yaml", "read_params", "read_table",
]  # fmt: skip

STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

LARGEST_SEED = 2**31 - 1
"""What every k-means takes: scikit-learn's seeds have 32 bits, faiss's 31 and a sign."""

MOST_EPOCHS = 100_000
"""Each is a line of the run's history, and all of them are in its checkpoint."""

LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127

LARGEST_DIMENSION = 65_536
"""An embedding is then 256 KB, that of a dataset of 60,000 images 16 GB."""

MOST_THREADS = 1024
"""Of one run: more than any machine has processors, and far more end the process."""

LARGEST_IMAGE = 4096
"""Pixels a side: one such image is 200 MB to the network."""

MOST_IMAGES = 1_000_000
"""Of a batch, of a search or of a loss's pieces: eight times what the largest dataset here has."""


def _held_by_float32(value: float) -> float:
    if abs(value) > LARGEST_FLOAT32 or (value and not struct.unpack("f", struct.pack("f", value))[0]):
        raise ValueError("float32, in which it is used, cannot hold it")
    return value


Positive = Annotated[int, Ge(1)]
Factor = Annotated[float, AfterValidator(_held_by_float32)]
Rate = Annotated[Factor, Gt(0)]
Seed = Annotated[int, Ge(0), Le(LARGEST_SEED)]


def _backbone(name: str) -> str:
    file, slash, variant = name.partition("/")
    problem = name_problem(file)
    if slash and not re.fullmatch(r"[a-z0-9_]+(\.[A-Za-z0-9_]+)?", variant):
        problem = "behind the slash stands a name as the library has it, such as timm/resnet18.a1_in1k"
    if problem:
        raise ValueError(problem)
    return name


def _weights_file(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*\.(pth|pt|safetensors)", name):
        raise ValueError("give the name of a file in data/weights that ends in .pth, .pt or .safetensors")
    return name


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError("give the 64 digits that `sha256sum` prints")
    return text


def _epochs(value: Any) -> Any:
    for number in value if isinstance(value, list) else [value]:
        if type(number) is not int or not 1 <= number <= MOST_EPOCHS:
            raise ValueError("give a number n from 1, for every n epochs, or a list of epochs, counted from 1")
    return each_once(value) if isinstance(value, list) else value


Epochs = Annotated[int | list[int], PlainValidator(_epochs)]
"""Every so many epochs, or these epochs; epochs are counted from 1."""


def _axis_value(value: Any) -> str | int | float:
    if type(value) not in (str, int, float) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("a row's value is a text or a number")
    checked: str | int | float = value
    return checked


AxisValues = Annotated[
    list[Annotated[str | int | float, PlainValidator(_axis_value)]], Len(1), AfterValidator(each_once)
]


class Weights(BaseModel):
    """Weights of one's own, in place of published ones."""

    model_config = STRICT

    file: Annotated[str, AfterValidator(_weights_file)]
    """A file in data/weights, as PyTorch saves tensors by name (.pth, .pt) or as safetensors does."""
    sha256: Annotated[str, AfterValidator(_sha256)]
    drop: list[str] = []
    """How the names begin of what is left out, such as a classifier; all else must fit the network."""


class Recipe(BaseModel):
    """How a network is trained on one dataset, whatever the loss."""

    model_config = STRICT

    backbone: Annotated[str, AfterValidator(_backbone)]
    """A file of pipeline/networks/backbones, or timm/<name>, a network by its name in the library timm."""
    pretrained: bool
    """Whether the backbone starts from pretrained weights (data/weights), otherwise from random ones."""
    weights: Weights | None = None
    """The pretrained weights, where they are not the network's published ones."""
    pooling: Literal["none", "average", "average_and_maximum", "class_token"]
    """Of a spatial backbone's maps over height and width; the last but one is the sum of both. timm's networks: none is
    timm's own pooling, the last a transformer's class token, the others of maps or patch tokens."""
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
    head_only_epochs: Annotated[list[Positive], AfterValidator(each_once)]
    """The epochs, counted from 1, that train only head and proxies: for Proxy-AN 1 and 2. For ProxyGML 2, where its
    code means 1: it freezes after the first epoch and thaws after the second."""
    frozen_gradients: Literal["none", "zero"]
    """What the optimiser sees of a backbone that has trained and is now frozen: no gradients, and it rests; or zeros,
    as with PyTorch before 2.0, and momentum and weight decay move it on."""
    dimension: Annotated[int, Ge(1), Le(LARGEST_DIMENSION)]
    """Length of an embedding."""
    epochs: Annotated[int, Ge(1), Le(MOST_EPOCHS)]
    evaluated_epochs: Epochs
    """The epochs after which the test set is looked at; the best test epoch is one of them."""
    batch_size: Annotated[int, Ge(2), Le(MOST_IMAGES)]
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
    head_learning_rate: Rate | None = None
    """Of what lies between the backbone and the embedding; null is the network's. A new layer on a pretrained backbone
    often wants a higher one."""
    proxy_learning_rate: Rate
    weight_decay: Annotated[Factor, Ge(0)]
    decay_epochs: Epochs
    """The epochs at whose start all learning rates are multiplied by `decay_factor`; every n epochs means n + 1,
    2n + 1 and so on."""
    decay_factor: Annotated[float, Gt(0), Le(1)]
    clip_value: Rate | None
    """Every entry of a gradient, of network and proxies, is clipped to plus or minus this; null clips none."""
    input_size: Annotated[int, Ge(1), Le(LARGEST_IMAGE)]
    """Height and width, in pixels, of what the network takes."""
    test_resize: Annotated[int, Ge(1), Le(LARGEST_IMAGE)]
    """Test images are resized to this length of their shorter side, then cropped to `input_size` in the middle."""
    test_fit: Literal["crop", "squash", "pad"] = "crop"
    """How test images of other shapes become square: so; or resized without regard to their shape; or their longer side
    to `input_size` and the rest filled with `mean`. The last two lose no edge, and read no `test_resize`."""
    decoded_size: Annotated[int, Ge(1), Le(LARGEST_IMAGE)] | None = None
    """Larger images are shrunk to this length of their shorter side as they are decoded, training and test images; null
    keeps them whole. It saves memory and time, and gives other pixels: JPEG files are decoded at a smaller scale."""
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
    mean: Annotated[list[Factor], Len(1)]
    """One a channel, or one for all."""
    std: Annotated[list[Rate], Len(1)]
    """What the difference to `mean` is divided by, one a channel, or one for all."""
    precision: Literal["float32", "tf32", "bfloat16"]
    """Of the network's products: whole, or rounded to TF32's 10 bits on GPUs that have it, or in bfloat16 autocast. The
    last two are faster and give other numbers; losses and metrics are always computed in float32."""
    memory_format: Literal["contiguous", "channels_last"]
    """Of the network and its input. Channels last is the faster one on a CPU and for bfloat16."""
    recall_at: Annotated[list[Annotated[int, Ge(1), Le(MOST_IMAGES)]], Len(1), AfterValidator(each_once)]
    """The K of Recall@K, 1 among them: the best test epoch is the one of highest Recall@1."""
    counting: Literal["exact", "strict", "drop_first"]
    """How Recall@K counts: see `retrieval.retrieval`. The epoch is always chosen by the exact count."""
    kmeans: Literal["scikit-learn", "faiss"]
    """Whose k-means the clustering metrics are made with: see `clustering.clustering`."""
    cpu_threads: Annotated[int, Ge(1), Le(MOST_THREADS)]
    """Threads of a run on the CPU, part of the recipe because sums split over threads round differently."""


class Table(BaseModel):
    """The grid of runs behind one table: every dataset with every combination of the rows' values and every seed."""

    model_config = STRICT

    datasets: Annotated[list[Name], Len(1), AfterValidator(each_once)]
    rows: Annotated[dict[str, AxisValues], Len(1), AfterValidator(distinct_rows)]
    """What the rows differ in, outermost first, such as {loss: [proxy_an, proxy_nca], rate: [0.1, 0.2]}: `loss`, an
    entry of losses, or of `<loss>_<dataset>` where there is one; `recipe`, whose entry is `<recipe>_<dataset>`; `rate`
    of a partial and `gamma` of an imbalanced training set; otherwise a key of the recipe or of the loss. The runs of a
    combination lie in folders named <dataset>/<value>-<value>/<seed>."""
    seeds: Annotated[list[Seed], Len(1), AfterValidator(each_once)]
    loss: Name | None = None
    """The loss of all rows, where they do not differ in it."""
    protocols: Annotated[list[Literal["test", "choose_epoch", "held_out"]], Len(1)] = ["test"]
    """What is run of each row and seed: `test`, as the papers do; `choose_epoch`, which only looks at held-out training
    classes; `held_out`, the epoch chosen so and then trained on all training classes."""
    raw_pixels: bool = False
    """Whether a first row has the images themselves in place of embeddings: what no training gives."""
    untrained: bool = False
    """Whether a row has what the recipe's backbone gives before training, pooled; one for each recipe of the rows."""
    ensembles: bool = False
    """Whether each row has another one beside it: the embeddings of all its seeds side by side, of unit length."""
    title: str | None = None
    """Above the table, where published.yaml has no title for it."""
    layout: Literal["rows", "ranked"] = "rows"
    """The rows in their order, or from the best down with a test of each against the best."""


class Params(BaseModel):
    """A params.yaml. What a loss's settings must be, its class says."""

    model_config = STRICT

    tables: dict[Name, Table]
    machine: Machine
    recipes: dict[Name, Recipe]
    losses: dict[Name, dict[str, Any]]
    """Name -> settings. The loss is the file of pipeline/losses of that name, or the one that the key `loss` names."""

    def loss_entry(self, loss: str, dataset: str) -> str:
        """The entry of `losses` that a table means by a loss: one for this dataset, where there is one."""
        own = f"{loss}_{dataset}"
        return own if own in self.losses else loss

    def loss(self, name: str) -> tuple[str, dict[str, Any]]:
        """The file of pipeline/losses that the entry `name` means, and the keyword arguments of its class."""
        settings = dict(self.losses[name])
        return settings.pop("loss", name), settings


def _changed(content: Any, path: Path, entries: dict[str, tuple[str, str | None]], changes: Sequence[str]) -> Any:
    """The content of a params file with a run's `changes`; `entries` are where "recipe" and "loss" lie in it."""
    places = [change.partition("=")[0] for change in changes]
    for change, place in zip(changes, places, strict=True):
        part, dot, key = place.partition(".")
        if part not in entries or not dot or not key or "=" not in change:
            raise BadInputError(f"--set {change}: write recipe.KEY=VALUE or loss.KEY=VALUE")
        if places.count(place) > 1:
            raise BadInputError(f"--set {change}: {place} is set twice, give it once")
        section, entry = entries[part]
        try:
            # A copy: entries that share an anchor are one object.
            changed = content[section][entry] | {key: parse_yaml(change.partition("=")[2], f"--set {change}")}
        except (KeyError, TypeError):
            raise BadInputError(f"{path}: {section}.{entry}: there is no such entry to set {key} of") from None
        content = content | {section: content[section] | {entry: changed}}
    return content


def read_params(path: Path, recipe: str | None = None, loss: str | None = None, changes: Sequence[str] = ()) -> Params:
    """Read and check a params.yaml, and for a run that its recipe is there and what its loss says of its keys.

    `changes` are texts such as "recipe.dimension=64" or "loss.alpha=12.0", made to the run's own recipe and loss before
    the check. What the environment says of the machine takes the place of the file's keys. A run imports no other loss,
    so that their files are no inputs of it: of other losses the names of the keys are checked, which the text of their
    files shows, and not the values.
    """
    content = _changed(read_yaml(path), path, {"recipe": ("recipes", recipe), "loss": ("losses", loss)}, changes)
    own = from_environment()
    if own and isinstance(content, dict) and isinstance(content.get("machine"), dict):
        content = content | {"machine": content["machine"] | own}
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        problems = problem_lines(error, "", Params)
        for key in own:  # it is not the file that has to be changed
            problems = [re.sub(rf"^machine\.{key}\b", variable(key), problem) for problem in problems]
    else:
        problems = checks.problems(params, recipe, loss)
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
