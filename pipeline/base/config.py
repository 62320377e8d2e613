"""Parameters: read from YAML, and all checked before any time is spent on a run.

A recipe's keys are the fields of `Recipe`; a loss's keys are the keyword arguments of its class. An unknown or missing
key, and a value of a wrong type or an impossible one, raise `BadInputError`. The message names the file, the key and
the nearest known key.
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
"""The largest seed that every k-means accepts: scikit-learn's seeds have 32 bits, faiss's have 31 and a sign."""

MOST_EPOCHS = 100_000
"""The most epochs of a run. Each is a line of the run's history, and the checkpoint holds the whole history."""

LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127

LARGEST_DIMENSION = 65_536
"""The longest embedding. One embedding is then 256 KB, and those of a dataset of 60,000 images are 16 GB."""

MOST_THREADS = 1024
"""The most threads of one run. No machine has more processors, and far more threads crash the process."""

LARGEST_IMAGE = 4096
"""The most pixels on one side of an image. One image of this size is 200 MB as input of the network."""

MOST_IMAGES = 1_000_000
"""The most images of a batch, and the largest K of Recall@K: eight times the images of the largest dataset here."""


def _held_by_float32(value: float) -> float:
    if abs(value) > LARGEST_FLOAT32 or (value and not struct.unpack("f", struct.pack("f", value))[0]):
        raise ValueError("float32 cannot hold this value")
    return value


Positive = Annotated[int, Ge(1)]
Factor = Annotated[float, AfterValidator(_held_by_float32)]
Rate = Annotated[Factor, Gt(0)]
Seed = Annotated[int, Ge(0), Le(LARGEST_SEED)]


def _backbone(name: str) -> str:
    file, slash, variant = name.partition("/")
    problem = name_problem(file)
    if slash and not re.fullmatch(r"[a-z0-9_]+(\.[A-Za-z0-9_]+)?", variant):
        problem = "after the slash write a name that the library knows, such as timm/resnet18.a1_in1k"
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
"""A number n means every n epochs; a list means these epochs. Epochs are counted from 1."""


def _axis_value(value: Any) -> str | int | float:
    if type(value) not in (str, int, float) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("a row's value is a text or a number")
    checked: str | int | float = value
    return checked


AxisValues = Annotated[
    list[Annotated[str | int | float, PlainValidator(_axis_value)]], Len(1), AfterValidator(each_once)
]


class Weights(BaseModel):
    """The user's own weights, in place of published ones."""

    model_config = STRICT

    file: Annotated[str, AfterValidator(_weights_file)]
    """A file in data/weights: tensors by name, saved by PyTorch (.pth, .pt) or by safetensors."""
    sha256: Annotated[str, AfterValidator(_sha256)]
    drop: list[str] = []
    """Tensors whose names begin with one of these texts are left out, such as a classifier. All others must fit the
    network."""


class Recipe(BaseModel):
    """How a network is trained on one dataset, whatever the loss."""

    model_config = STRICT

    backbone: Annotated[str, AfterValidator(_backbone)]
    """The name of a file of pipeline/networks/backbones, or timm/<name> with a network's name in the library timm."""
    pretrained: bool
    """Whether the backbone starts from pretrained weights (data/weights), otherwise from random ones."""
    weights: Weights | None = None
    """The pretrained weights, if they are not the network's published ones."""
    pooling: Literal["none", "average", "average_and_maximum", "class_token"]
    """How a spatial backbone's maps are pooled over height and width; average_and_maximum is the sum of both. For
    timm's networks none means timm's own pooling, class_token means a transformer's class token, and the other two pool
    maps or patch tokens."""
    head: Literal["linear", "normalised", "normalised_orthogonal"]
    """What makes the embedding: linear is a linear layer; normalised is a LayerNorm, a BatchNorm1d and a linear layer;
    normalised_orthogonal is the same, but the linear layer's weight starts orthogonal and its bias at zero."""
    batch_norm: Literal["trained", "fixed_statistics", "fixed"]
    """Which parts of the backbone's batch norms train. With fixed_statistics they normalise by the running statistics,
    which do not change, while scale and shift train. ProxyGML intends this. Proxy-AN's code intends fixed but does the
    same, because its thaw after the head-only epochs also thaws scale and shift."""
    batch_norm_momentum: Annotated[float, Gt(0), Le(1)]
    """The share of a batch in the new running statistics of the backbone's batch norms. 0.1 is PyTorch's default, and
    the head's batch norm always has 0.1."""
    head_only_epochs: Annotated[list[Positive], AfterValidator(each_once)]
    """The epochs, counted from 1, that train only the head and the proxies. For Proxy-AN they are 1 and 2. For ProxyGML
    it is 2, although its code intends 1, because the code freezes after the first epoch and thaws after the second."""
    frozen_gradients: Literal["none", "zero"]
    """What the optimiser gets for a backbone that has trained and is now frozen. With none it gets no gradients, and
    the backbone does not change. With zero it gets zeros, as with PyTorch before 2.0, and momentum and weight decay
    still change the backbone."""
    dimension: Annotated[int, Ge(1), Le(LARGEST_DIMENSION)]
    """Length of an embedding."""
    epochs: Annotated[int, Ge(1), Le(MOST_EPOCHS)]
    evaluated_epochs: Epochs
    """The epochs after which the test set is evaluated; the best test epoch is one of them."""
    batch_size: Annotated[int, Ge(2), Le(MOST_IMAGES)]
    samples_per_class: Positive | None
    """How batches are made: each has this number of images of each of batch_size / samples_per_class classes. null
    shuffles all images and takes them in turn."""
    optimiser: Literal["adam", "adamw"]
    epsilon: Rate
    """The optimiser's epsilon, added to the root of the second moment."""
    epsilon_added: Literal["before_correction", "after_correction"]
    """Whether the epsilon is added to that root before the root's bias is corrected (PyTorch up to 1.2) or after (since
    1.3). With before_correction a large epsilon is a hidden warm-up: see `pipeline/training/optimiser.py`."""
    network_learning_rate: Rate
    head_learning_rate: Rate | None = None
    """The learning rate of the layers between the backbone and the embedding; null means the network's. A new layer on
    a pretrained backbone often needs a higher one."""
    proxy_learning_rate: Rate
    weight_decay: Annotated[Factor, Ge(0)]
    decay_epochs: Epochs
    """All learning rates are multiplied by `decay_factor` at the start of these epochs; every n epochs means n + 1,
    2n + 1 and so on."""
    decay_factor: Annotated[float, Gt(0), Le(1)]
    clip_value: Rate | None
    """Every entry of the gradients of network and proxies is clipped to plus or minus this; null does not clip."""
    input_size: Annotated[int, Ge(1), Le(LARGEST_IMAGE)]
    """Height and width, in pixels, of the network's input."""
    test_resize: Annotated[int, Ge(1), Le(LARGEST_IMAGE)]
    """The shorter side of test images is resized to this length; then the middle is cropped to `input_size`."""
    test_fit: Literal["crop", "squash", "pad"] = "crop"
    """How test images of other shapes become square. crop does what `test_resize` says; squash resizes them without
    regard to their shape; pad resizes the longer side to `input_size` and fills the rest with `mean`. squash and pad
    lose no edge, and do not use `test_resize`."""
    decoded_size: Annotated[int, Ge(1), Le(LARGEST_IMAGE)] | None = None
    """Larger training and test images are shrunk when they are decoded, until their shorter side has this length; null
    keeps them whole. It saves memory and time, and changes pixels: JPEG files are decoded at a smaller scale."""
    smallest_crop: Annotated[float, Gt(0), Le(1)] | None
    """Training images are cropped at random to at least this share of their area and resized to `input_size`; null is
    for images that already have that size."""
    flip: bool
    """Whether training images are mirrored at random, with probability one half."""
    shift: Annotated[int, Ge(0)]
    """Training images are shifted by up to this many pixels each way, and the empty space is filled with 0."""
    channel_order: Literal["rgb", "bgr"]
    """The order of channels in the network's input, in `mean` and in `std`; Caffe's networks take bgr."""
    pixel_maximum: Rate
    """Pixel values are scaled from 0..255 to 0..this before `mean` is subtracted."""
    mean: Annotated[list[Factor], Len(1)]
    """One value for each channel, or one for all."""
    std: Annotated[list[Rate], Len(1)]
    """The difference to `mean` is divided by this: one value for each channel, or one for all."""
    precision: Literal["float32", "tf32", "bfloat16"]
    """The precision of the network's products: full float32, or rounded to TF32's 10 bits on GPUs that have it, or in
    bfloat16 autocast. The last two are faster and give other numbers. Losses and metrics always use float32."""
    memory_format: Literal["contiguous", "channels_last"]
    """The memory format of the network and its input. channels_last is faster on a CPU and for bfloat16."""
    recall_at: Annotated[list[Annotated[int, Ge(1), Le(MOST_IMAGES)]], Len(1), AfterValidator(each_once)]
    """The K of Recall@K. 1 must be one of them, because the best test epoch is the one with the highest Recall@1."""
    counting: Literal["exact", "strict", "drop_first"]
    """How Recall@K counts: see `retrieval.retrieval`. The epoch is always chosen by the exact count."""
    kmeans: Literal["scikit-learn", "faiss"]
    """The library whose k-means the clustering metrics use: see `clustering.clustering`."""
    cpu_threads: Annotated[int, Ge(1), Le(MOST_THREADS)]
    """Threads of a run on the CPU. It is part of the recipe because sums split over threads round differently."""


class Table(BaseModel):
    """The grid of runs behind one table: every dataset with every combination of the rows' values and every seed."""

    model_config = STRICT

    datasets: Annotated[list[Name], Len(1), AfterValidator(each_once)]
    rows: Annotated[dict[str, AxisValues], Len(1), AfterValidator(distinct_rows)]
    """What the rows differ in, outermost first, such as {loss: [proxy_an, proxy_nca], rate: [0.1, 0.2]}. An axis is one
    of these:

    - `loss`: an entry of losses; the entry `<loss>_<dataset>` is used instead if there is one.
    - `recipe`: the entry of recipes is `<recipe>_<dataset>`.
    - `rate` of a partial training set, or `gamma` of an imbalanced one.
    - any other name: a key of the recipe or of the loss.

    The runs of a combination are in folders named <dataset>/<value>-<value>/<seed>."""
    seeds: Annotated[list[Seed], Len(1), AfterValidator(each_once)]
    loss: Name | None = None
    """The loss of all rows, if they do not differ in it."""
    protocols: Annotated[list[Literal["test", "choose_epoch", "held_out"]], Len(1)] = ["test"]
    """What is run for each row and seed: `test` does what the papers do; `choose_epoch` evaluates on held-out training
    classes only; `held_out` takes the epoch that `choose_epoch` chose and trains on all training classes."""
    raw_pixels: bool = False
    """Whether the first row uses the images themselves as embeddings. It shows what is reached without any training."""
    untrained: bool = False
    """Whether there is a row for the recipe's backbone before training, pooled; one row for each recipe of the rows."""
    ensembles: bool = False
    """Whether each row has an ensemble row beside it: the embeddings of all its seeds, concatenated, of unit length."""
    title: str | None = None
    """The title of the table, if published.yaml has none for it."""
    layout: Literal["rows", "ranked"] = "rows"
    """rows keeps the order of the rows; ranked sorts them, best first, and tests each against the best."""


class Params(BaseModel):
    """A params.yaml. The class of a loss defines which settings the loss takes."""

    model_config = STRICT

    tables: dict[Name, Table]
    machine: Machine
    recipes: dict[Name, Recipe]
    losses: dict[Name, dict[str, Any]]
    """Name -> settings. The loss is the file of pipeline/losses with that name, or the one that the key `loss`
    names."""

    def loss_entry(self, loss: str, dataset: str) -> str:
        """The entry of `losses` that a table means by a loss: the entry for this dataset, if there is one."""
        own = f"{loss}_{dataset}"
        return own if own in self.losses else loss

    def loss(self, name: str) -> tuple[str, dict[str, Any]]:
        """The file of pipeline/losses that the entry `name` means, and the keyword arguments of its class."""
        settings = dict(self.losses[name])
        return settings.pop("loss", name), settings


def _changed(content: Any, path: Path, entries: dict[str, tuple[str, str | None]], changes: Sequence[str]) -> Any:
    """The content of a params file with a run's `changes`. `entries` says where "recipe" and "loss" are in it: part ->
    section and entry. Raises `BadInputError` for a change that cannot be made."""
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
    """Read and check a params.yaml. For a run, check also that its recipe exists and that its loss accepts its keys.

    `changes` are texts such as "recipe.dimension=64" or "loss.alpha=12.0". They are made to the run's own recipe and
    loss before the check. Environment variables for the machine replace the file's keys. A run does not import other
    losses, so their files are no inputs of the run. For other losses only the names of keys are checked, which the text
    of their files shows, and not the values. Raises `BadInputError` with all problems found.
    """
    content = _changed(read_yaml(path), path, {"recipe": ("recipes", recipe), "loss": ("losses", loss)}, changes)
    own = from_environment()
    if own and isinstance(content, dict) and isinstance(content.get("machine"), dict):
        content = content | {"machine": content["machine"] | own}
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        problems = problem_lines(error, "", Params)
        for key in own:  # The user has to change the variable, not the file.
            problems = [re.sub(rf"^machine\.{key}\b", variable(key), problem) for problem in problems]
    else:
        problems = checks.problems(params, recipe, loss)
    if problems:
        raise BadInputError("\n  ".join([f"{path}:", *problems]))
    return params


def read_table(path: Path, name: str, dataset: str | None = None) -> Table:
    """A table of a params.yaml. Raises `BadInputError` if there is no such table, or if it lacks the given dataset."""
    tables = read_params(path).tables
    if name not in tables:
        raise BadInputError(f"{path}: tables.{name}: there is no such table, choose one of {', '.join(tables)}")
    if dataset and dataset not in (known := tables[name].datasets):
        raise BadInputError(f"{path}: tables.{name}.datasets: {dataset} is not among {', '.join(known)}, add it")
    return tables[name]
