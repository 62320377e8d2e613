"""A recipe: how a network is trained on one dataset, whatever the loss. Its keys are the fields of `Recipe`."""

import math
import re
import struct
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Len
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator

from pipeline.base.choices import ROOMS, chosen_file, metric_names, with_defaults
from pipeline.base.names import each_once, name_problem

STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

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


def _backbone(name: str) -> str:
    file, slash, variant = name.partition("/")
    problem = name_problem(file)
    if not slash and problem and not name_problem(file.replace(".", "_")):
        problem = f"write timm/{name} for a network of the library timm"
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


class Weights(BaseModel):
    """The user's own weights, in place of published ones."""

    model_config = STRICT

    file: Annotated[str, AfterValidator(_weights_file)]
    """A file in data/weights: tensors by name, saved by PyTorch (.pth, .pt) or by safetensors."""
    sha256: Annotated[str, AfterValidator(_sha256)]
    drop: list[str] = []
    """Tensors whose names begin with one of these texts are left out, such as a classifier. All others must fit the
    network."""


class LearningRates(BaseModel):
    """The learning rates before the schedule multiplies them."""

    model_config = STRICT

    network: Rate
    proxies: Rate
    """Of the loss's parameters."""
    head: Rate | None = None
    """Of the layers between the backbone and the embedding; null means the network's. A new layer on a pretrained
    backbone often needs a higher one."""


def _plain(value: Any) -> bool:
    """Whether a setting is made of texts, finite numbers, true, false and null, which JSON can hold."""
    if isinstance(value, dict):
        return all(map(_plain, value.values()))
    if isinstance(value, list):
        return all(map(_plain, value))
    return not isinstance(value, float) or math.isfinite(value)


def _choice(what: str) -> PlainValidator:
    """A check of one choice of a file of a room, by its form. The choice gets the file's defaults."""
    room = ROOMS[what].package.replace(".", "/")

    def check(value: Any) -> dict[str, Any]:
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]+(/[A-Za-z0-9_]+)?", name):
            raise ValueError(f"write {{name: FILE, ...}} with a file of pipeline/{room} and its settings")
        if not _plain(value):
            raise ValueError("infinity and NaN are no settings")
        settings = {key: of for key, of in value.items() if key != "name"}
        return {"name": name} | with_defaults(what, chosen_file(name), settings)

    return PlainValidator(check)


def _metrics(value: Any) -> list[dict[str, Any]]:
    """A list of metrics, each a name, or a name with settings. Each gets its file's defaults."""
    if not isinstance(value, list):
        raise ValueError("give a list of files of pipeline/metrics/by_name, such as [recall, map_at_r]")
    check = _choice("metric").func
    metrics = [check({"name": of} if isinstance(of, str) else of) for of in value]  # type: ignore[call-arg]
    each_once([of["name"] for of in metrics])
    return metrics


Metrics = Annotated[list[dict[str, Any]], PlainValidator(_metrics)]
Optimiser = Annotated[dict[str, Any], _choice("optimiser")]
Schedule = Annotated[dict[str, Any], _choice("schedule")]
Augmentation = Annotated[dict[str, Any], _choice("augment")]


class Recipe(BaseModel):
    """How a network is trained on one dataset, whatever the loss."""

    model_config = STRICT

    MOVED: ClassVar[dict[str, str]] = {
        "epsilon": "optimiser.epsilon",
        "epsilon_added": "optimiser.epsilon_added",
        "weight_decay": "optimiser.weight_decay",
        "network_learning_rate": "learning_rates.network",
        "head_learning_rate": "learning_rates.head",
        "proxy_learning_rate": "learning_rates.proxies",
        "decay_epochs": "schedule.at for a list, as in {name: steps, at: [20, 40], factor: 0.1}, or schedule.every",
        "decay_factor": "schedule.factor",
        "smallest_crop": "augment, as in [{name: random_resized_crop, smallest: 0.08}]",
        "flip": "augment, as in [{name: flip}]",
        "shift": "augment, as in [{name: shift, pixels: 3}]",
        "counting": "metrics, as in [{name: recall, counting: drop_first}, map_at_r, nmi]",
        "kmeans": "metrics, as in [recall, map_at_r, {name: nmi, kmeans: scikit-learn}]",
    }
    """Keys of earlier versions, and where they are now."""

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
    batch_norm_momentum: Annotated[float, Gt(0), Le(1)] = 0.1
    """The share of a batch in the new running statistics of the backbone's batch norms. 0.1 is PyTorch's default, and
    the head's batch norm always has 0.1."""
    head_only_epochs: Annotated[list[Positive], AfterValidator(each_once)] = []
    """The epochs, counted from 1, that train only the head and the proxies. For Proxy-AN they are 1 and 2. For ProxyGML
    it is 2, although its code intends 1, because the code freezes after the first epoch and thaws after the second."""
    frozen_gradients: Literal["none", "zero"] = "none"
    """What the optimiser gets for a backbone that has trained and is now frozen. With none it gets no gradients, and
    the backbone does not change. With zero it gets zeros, as with PyTorch before 2.0, and momentum and weight decay
    still change the backbone."""
    dimension: Annotated[int, Ge(1), Le(LARGEST_DIMENSION)]
    """Length of an embedding."""
    epochs: Annotated[int, Ge(1), Le(MOST_EPOCHS)]
    epoch_steps: Annotated[int, Ge(1), Le(MOST_IMAGES)] | None = None
    """The number of steps of an epoch. A recipe then has epochs x epoch_steps steps, however many images there are.
    null means once through the training images."""
    evaluated_epochs: Epochs = 1
    """The epochs after which the test set is evaluated; the best test epoch is one of them."""
    batch_size: Annotated[int, Ge(2), Le(MOST_IMAGES)]
    samples_per_class: Positive | None = None
    """How batches are made: each has this number of images of each of batch_size / samples_per_class classes. null
    shuffles all images and takes them in turn."""
    optimiser: Optimiser
    """A file of pipeline/training/optimisers with its settings, or torch/<name> with a name of torch.optim."""
    learning_rates: LearningRates
    schedule: Schedule
    """What multiplies all learning rates: a file of pipeline/training/schedules with its settings, or torch/<name> with
    a name of torch.optim.lr_scheduler."""
    clip_value: Rate | None = None
    """Every entry of the gradients of network and proxies is clipped to plus or minus this; null does not clip."""
    input_size: Annotated[int, Ge(1), Le(LARGEST_IMAGE)]
    """Height and width, in pixels, of the network's input."""
    test_fit: Literal["crop", "squash", "pad", "stored"] = "crop"
    """How test images become squares of `input_size`. crop resizes the shorter side to `test_resize` and crops the
    middle; squash resizes them without regard to their shape; pad resizes the longer side to `input_size` and fills the
    rest with `mean`. squash and pad lose no edge. stored is for images that already have that size."""
    test_resize: Annotated[int, Ge(1), Le(LARGEST_IMAGE)] | None = None
    """The length of the shorter side of test images before the middle is cropped, if `test_fit` is crop."""
    decoded_size: Annotated[int, Ge(1), Le(LARGEST_IMAGE)] | None = None
    """Larger training and test images are shrunk when they are decoded, until their shorter side has this length; null
    keeps them whole. It saves memory and time, and changes pixels: JPEG files are decoded at a smaller scale."""
    augment: list[Augmentation]
    """What is done to training images, in this order: files of pipeline/training/augmentations with their settings, or
    torchvision/<name> with a name of torchvision.transforms.v2. Images whose size differs from `input_size` need
    random_resized_crop as the first one."""
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """The order of channels in the network's input, in `mean` and in `std`; Caffe's networks take bgr."""
    pixel_maximum: Rate = 1.0
    """Pixel values are scaled from 0..255 to 0..this before `mean` is subtracted."""
    mean: Annotated[list[Factor], Len(1)]
    """One value for each channel, or one for all."""
    std: Annotated[list[Rate], Len(1)]
    """The difference to `mean` is divided by this: one value for each channel, or one for all."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """The precision of the network's products: full float32, or rounded to TF32's 10 bits on GPUs that have it, or in
    bfloat16 autocast. The last two are faster and give other numbers. Losses and metrics always use float32."""
    memory_format: Literal["contiguous", "channels_last"] = "channels_last"
    """The memory format of the network and its input. channels_last is faster on a CPU and for bfloat16."""
    recall_at: Annotated[list[Annotated[int, Ge(1), Le(MOST_IMAGES)]], Len(1), AfterValidator(each_once)]
    """The K of Recall@K. 1 must be one of them, because the best test epoch is the one with the highest Recall@1."""
    metrics: Metrics = Field(default=["recall", "map_at_r", "nmi"], validate_default=True)
    """What is computed of the kept weights: files of pipeline/metrics/by_name, with their settings. Another metric
    trains nothing again."""
    cpu_threads: Annotated[int, Ge(1), Le(MOST_THREADS)]
    """Threads of a run on the CPU. It is part of the recipe because sums split over threads round differently."""

    def choices(self) -> list[tuple[str, str, dict[str, Any]]]:
        """What the recipe chooses: each choice's place in the recipe, such as augment.0, its name and its settings."""
        found = [("optimiser", self.optimiser), ("schedule", self.schedule)]
        found += [(f"augment.{number}", of) for number, of in enumerate(self.augment)]
        return [(place, of["name"], {key: of[key] for key in of if key != "name"}) for place, of in found]

    def metrics_by_name(self) -> list[tuple[str, dict[str, Any]]]:
        """The metrics, each with its settings."""
        return [(of["name"], {key: of[key] for key in of if key != "name"}) for of in self.metrics]

    def numbers(self, metric: str, all_names: bool = True) -> list[str]:
        """The names of the numbers that one of the metrics gives, or only the first: for every K if it has a K."""
        names = list(metric_names(metric))[: None if all_names else 1]
        by_k = [[name[:-1] + str(k) for k in self.recall_at] if name.endswith("@K") else [name] for name in names]
        return [name for names in by_k for name in names]


def room_of(place: str) -> str:
    """What is chosen at a place of a recipe: augment for augment.0."""
    return place.partition(".")[0]


def is_recipe_key(key: str) -> bool:
    """Whether a name is a key of recipes, or a path to a key in one of their nested keys, such as optimiser.epsilon."""
    first, dot, _ = key.partition(".")
    return first in Recipe.model_fields and (
        not dot or first in ("optimiser", "schedule", "metrics", "learning_rates", "weights")
    )


def replaced(content: Any, path: str, value: Any) -> Any:
    """A copy of nested mappings with `value` at a path of keys joined by dots. In a list of choices a part of the path
    is the name of one. Raises `TypeError` if there is no such part."""
    first, dot, rest = path.partition(".")
    if isinstance(content, list) and rest and any(isinstance(of, dict) and of.get("name") == first for of in content):
        return [replaced(of, rest, value) if of["name"] == first else of for of in content]
    if not isinstance(content, dict):
        raise TypeError(f"{first}: not a mapping")
    return content | {first: replaced(content.get(first, {}), rest, value) if dot else value}
