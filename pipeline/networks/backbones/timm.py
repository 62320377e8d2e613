"""Any network of the library timm, by its name in timm: `timm/resnet18.a1_in1k` (Wightman, PyTorch Image Models).

The recipe's `pooling` says what the features are: `none` takes the vectors that timm makes with its own pooling;
`average` and `average_and_maximum` pool the last maps, or the patch tokens of a transformer; `class_token` takes a
transformer's first token. Dropout and stochastic depth are off. The part of the name after the point is timm's name of
the pretrained weights.
"""

import difflib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

import timm
from timm.models import get_deprecated_models, get_pretrained_cfg
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from pipeline.base.files import BadInputError

SHOWN = 5
"""The most names that a message proposes."""


def configuration(variant: str) -> Any:
    """timm's configuration of the network called `variant`. Raises `BadInputError` if timm does not know it."""
    model = variant.partition(".")[0]
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), SHOWN)
        fix = f"did you mean {', '.join(near)}?" if near else "timm.list_models() gives all names"
        raise BadInputError(f"timm {timm.__version__} has no network {model}: {fix}")
    if model in (old := get_deprecated_models()):
        now = f"write timm/{old[model]}" if old[model] else "timm has removed it"
        raise BadInputError(f"timm/{model} is an old name: {now}")
    try:
        return get_pretrained_cfg(variant)
    except RuntimeError:
        weights = ", ".join(timm.list_models(f"{model}.*", pretrained=True)) or "none"
        raise BadInputError(f"timm {timm.__version__} has no weights {variant}, choose among {weights}") from None


class Backbone(nn.Module):
    """Images (batch, channels, height, width), float32, to vectors (batch, features), or to maps (batch, features,
    height, width) if the recipe pools them. Raises `BadInputError` for a name or an input size that timm does not
    accept."""

    def __init__(self, variant: str, pooling: str, input_size: int):
        super().__init__()
        known = configuration(variant)
        self.channels, self.input_size = known.input_size[0], None
        # Transformers are built for one size. Their position embeddings are resampled when weights are loaded.
        other_size = known.fixed_input_size and input_size != known.input_size[-1]
        settings: dict[str, Any] = {"img_size": input_size} if other_size else {}
        try:
            self.trunk: Any = timm.create_model(variant, num_classes=0, **settings)
        except TypeError:
            if not other_size:
                raise
            raise BadInputError(f"timm/{variant} has no other input_size than {known.input_size[-1]} pixels") from None
        patch = getattr(getattr(self.trunk, "patch_embed", None), "patch_size", None) or 1
        side = patch if isinstance(patch, int) else patch[0]
        if input_size % side:
            raise BadInputError(f"timm/{variant} has patches of {side} pixels: use a multiple as input_size")
        layer: Any
        for layer in self.trunk.modules():
            # Some networks have dropout or stochastic depth. They draw from a generator whose state no checkpoint
            # keeps.
            if isinstance(layer, _DropoutNd):
                layer.p = 0.0
            elif hasattr(layer, "drop_prob"):
                layer.drop_prob = 0.0
        self.pooling, self.spatial = pooling, pooling in ("average", "average_and_maximum")
        self.features = self.trunk.head_hidden_size if pooling == "none" else self.trunk.num_features
        self.prefix = getattr(self.trunk, "num_prefix_tokens", 0)

    def forward(self, images: Tensor) -> Tensor:
        """Vectors (batch, features), or maps (batch, features, height, width). Tokens become maps that are one pixel
        wide."""
        if self.pooling == "none":
            vectors: Tensor = self.trunk(images)
            return vectors
        found = self.trunk.forward_features(images)
        if not isinstance(found, Tensor):
            raise ValueError("its features are several maps: use pooling none")
        if self.pooling == "class_token":
            if found.dim() != 3 or not self.prefix:
                raise ValueError("it has no class token: use another pooling")
            return found[:, 0]
        if found.dim() == 3:
            return found[:, self.prefix :].transpose(1, 2)[..., None]
        return found.permute(0, 3, 1, 2) if getattr(self.trunk, "output_fmt", "NCHW") == "NHWC" else found

    def converted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries of a published file, converted for this network by timm's own rules: old names are replaced, and
        position embeddings are resampled to the network's size."""
        convert = getattr(sys.modules[type(self.trunk).__module__], "checkpoint_filter_fn", None)
        if convert is None:
            return dict(weights)
        arguments = (dict(weights), self.trunk)
        converted: dict[str, Tensor] = convert(*arguments[: 1 + ("model" in inspect.signature(convert).parameters)])
        return converted


def input_of(variant: str) -> dict[str, list[float]]:
    """The mean and the standard deviation that the published weights need, for pixels from 0 to 1: one value for each
    channel."""
    known = configuration(variant)
    return {"mean": list(known.mean), "std": list(known.std)}


def size_of(variant: str) -> int:
    """Height and width, in pixels, of the images that the published weights were trained with."""
    size: int = configuration(variant).input_size[-1]
    return size


def published(variant: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The addresses of the weights called `variant`, and the beginnings of the names of its classifier's entries.
    Raises `BadInputError` if timm knows no such file."""
    known = configuration(variant)
    hub = known.hf_hub_id
    if "." not in variant:
        weights = ", ".join(f"timm/{name}" for name in timm.list_models(f"{variant}.*", pretrained=True)) or "none"
        raise BadInputError(f"timm/{variant} does not say which weights: choose among {weights}")
    if not hub:
        raise BadInputError(
            f"timm names no file on the hub for timm/{variant}: give a file of your own with the key weights"
        )
    hub, _, revision = hub.partition("@")
    name = known.hf_hub_filename or "model.safetensors"
    classifier = known.classifier or ()
    drop = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return (f"https://huggingface.co/{hub}/resolve/{revision or 'main'}/{name}",), tuple(f"{part}." for part in drop)
