"""The network that is trained and evaluated: a backbone, pooling, and a head that gives embeddings of unit length."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.base.config import Recipe
from pipeline.base.files import BadInputError, submodule
from pipeline.base.portable import use_portable_functions
from pipeline.base.precision import tf32, use_tf32

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """All batch norms of a module."""
    return [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]


def pooled(features: Tensor, pooling: str) -> Tensor:
    """Features (batch, features) of maps (batch, features, height, width). With the poolings none and class_token the
    features are vectors already, and are returned unchanged.

    `mean` and `amax` replace PyTorch's adaptive pooling, whose backward passes have no deterministic form on GPUs. They
    differ for equal maxima: `amax` gives each an equal share of the gradient, adaptive pooling gives all of it to one.
    After a ReLU most equal maxima are zeros, through which no gradient passes in either case.
    """
    if pooling in ("none", "class_token"):
        return features
    average = features.mean((2, 3))
    return average + features.amax((2, 3)) if pooling == "average_and_maximum" else average


def make_backbone(name: str, pooling: str, input_size: int) -> Any:
    """The backbone that a recipe names, `<file>` or `<file>/<variant>`, with weights drawn from torch's generator: an
    `nn.Module` with the attributes that pipeline/networks/backbones/__init__.py requires. Raises `BadInputError` for a
    name that is not known."""
    file, _, variant = name.partition("/")
    backbone = submodule("networks.backbones", file).Backbone
    if "variant" not in inspect.signature(backbone).parameters:
        if variant:
            raise BadInputError(f"{file} has no variants: write {file}")
        return backbone()
    if not variant:
        raise BadInputError(f"{file} holds several networks: add the name of one, such as {file}/resnet18")
    return backbone(variant, pooling, input_size)


def outlined(recipe: Recipe) -> Any:
    """The backbone of a recipe on the meta device, without memory for its numbers, to inspect its attributes and
    shapes."""
    with torch.device("meta"):
        return make_backbone(recipe.backbone, recipe.pooling, recipe.input_size)


class EmbeddingNetwork(nn.Module):
    """Normalised images (batch, channels, height, width) to embeddings (batch, dimension) of unit length.

    All parts other than `backbone` are the head. Like the backbone, the head is drawn from torch's generator.
    """

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.backbone = make_backbone(recipe.backbone, recipe.pooling, recipe.input_size)
        self.pooling, features = recipe.pooling, self.backbone.features
        self.norms = (
            nn.Sequential(nn.LayerNorm(features), nn.BatchNorm1d(features))
            if recipe.head != "linear"
            else nn.Identity()
        )
        self.embedding = nn.Linear(features, recipe.dimension)
        if recipe.head == "normalised_orthogonal":
            nn.init.orthogonal_(self.embedding.weight)
            nn.init.zeros_(self.embedding.bias)
        for norm in batch_norms(self.backbone):
            norm.momentum = recipe.batch_norm_momentum
        self.precision = recipe.precision
        self.to(memory_format=MEMORY_FORMATS[recipe.memory_format])

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings, in the dtype of the images."""
        # Autocast is here and not around the step, because a backward pass in autocast would also round the loss's
        # products.
        with torch.autocast(images.device.type, torch.bfloat16, self.precision == "bfloat16", cache_enabled=False):
            embeddings = self.embedding(self.norms(pooled(self.backbone(images), self.pooling)))
        # Convert before the division by the length, because in bfloat16 unit length holds to only three digits.
        return normalize(embeddings.to(images.dtype))


class Features(nn.Module):
    """A network that gives the pooled features of another network's backbone, of unit length, instead of embeddings."""

    def __init__(self, network: EmbeddingNetwork):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Features (batch, features), in the dtype of the images."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.network.precision == "bfloat16"):
            features = pooled(self.network.backbone(images), self.network.pooling)
        return normalize(features.to(images.dtype))


def initial_network(recipe: Recipe) -> EmbeddingNetwork:
    """The network of `recipe` before training: drawn from torch's generator, with pretrained weights in the backbone if
    the recipe says so.

    Raises `BadInputError` for a weights file that is missing, is another file, or does not fit in every name and shape.
    """
    network = EmbeddingNetwork(recipe)
    if recipe.pretrained:
        # Imported here, because a run from scratch does not read these files and does not need the code that fetches
        # them.
        from pipeline.networks.weights import load_pretrained

        load_pretrained(recipe, network.backbone)
    return network


def load_network(recipe: Recipe, weights: Path, device: torch.device) -> EmbeddingNetwork:
    """The network of `recipe` with the weights that a run kept, on `device`. Raises `BadInputError` if the file is
    missing or does not fit in every name and shape."""
    network = EmbeddingNetwork(recipe)
    try:
        network.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    except FileNotFoundError:
        raise BadInputError(f"{weights} is missing: make its run again (`dvc repro`)") from None
    except RuntimeError as error:
        raise BadInputError(f"{weights} does not fit the recipe: train the run again: {error}") from None
    return network.to(device)


@contextmanager
def computing(recipe: Recipe) -> Iterator[None]:
    """Round products to TF32 while the block runs, if that is the recipe's precision. Use it for the network's forward
    and backward pass. Everything else is full float32."""
    with tf32(recipe.precision == "tf32"):
        yield


def choose_device(device: str) -> torch.device:
    """The device that a params file's machine.device means; "auto" is a GPU if there is one, otherwise the CPU. Raises
    `BadInputError` for "cuda" without a GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInputError("machine.device is cuda but torch sees no GPU: pass --gpus all to docker, or use auto")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def prepare(recipe: Recipe, device: str) -> torch.device:
    """Choose the device, and set up torch so that it gives the same bits each time on that device."""
    chosen = choose_device(device)
    use_tf32(False)
    use_portable_functions()
    # The same as use_deterministic_algorithms(True), which also imports torch's compiler: 2 s at the start of every
    # stage.
    torch.set_deterministic_debug_mode("error")
    # Filling every new tensor costs a tenth of a small network's step. It would only make reads of unset memory
    # repeatable.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_num_threads(recipe.cpu_threads)
    return chosen
