"""Checks that a recipe and its backbone fit. They use an outline of the backbone (torch's meta device): no image is
read, and nothing is computed."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from pipeline.base.config import Recipe
from pipeline.base.files import BadInputError, submodule
from pipeline.networks.network import batch_norms, outlined
from pipeline.networks.published import file_name

ATTRIBUTES = ("channels", "features", "spatial", "input_size")


def backbone_problems(recipe: Recipe) -> list[str]:
    """The problems between a recipe and its backbone, whose module is imported. Each begins with the recipe's key."""
    try:
        backbone = outlined(recipe)
    except BadInputError as error:
        return [f"backbone: {error}"]
    except Exception as error:  # A user's own file, or a library, may raise any error.
        return [f"backbone: {recipe.backbone} cannot be built with {_sizes(recipe)}: {_first_line(error)}"]
    lacking = [name for name in ATTRIBUTES if not hasattr(backbone, name)]
    if lacking:
        return [f"backbone: {recipe.backbone} lacks the attribute {name}, add it to its class" for name in lacking]
    found = _settings_problems(recipe, backbone)
    return found or _shape_problems(recipe, backbone) + _chance_problems(recipe, backbone) + _input_problems(recipe)


def check_backbone(recipe: Recipe, source: str) -> None:
    """Raise `BadInputError` if a recipe and its backbone do not fit. `source` is the file and the key of the recipe,
    such as "params.yaml: recipes.cub"."""
    path, _, key = source.rpartition(": ")
    if found := backbone_problems(recipe):
        raise BadInputError("\n  ".join([f"{path}:", *(f"{key}.{problem}" for problem in found)]))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().split("\n", 1)[0]


def _sizes(recipe: Recipe) -> str:
    return f"pooling {recipe.pooling} and input_size {recipe.input_size}"


def _settings_problems(recipe: Recipe, backbone: Any) -> list[str]:
    """Keys of the recipe that contradict the backbone's attributes."""
    found = [
        f"{key}: {recipe.backbone} takes {backbone.channels} channels: give one value for each"
        for key in ("mean", "std")
        if len(getattr(recipe, key)) != backbone.channels
    ]
    if backbone.channels == 1 and recipe.channel_order != "rgb":
        found.append(f"channel_order: {recipe.backbone} takes images of one channel, which have no order: use rgb")
    if backbone.input_size not in (None, recipe.input_size):
        found.append(f"input_size: {recipe.backbone} takes only images of {backbone.input_size} pixels: use that size")
    if backbone.spatial and recipe.pooling == "none":
        found.append(f"pooling: {recipe.backbone} gives maps, which must be pooled: use average or average_and_maximum")
    if not backbone.spatial and recipe.pooling not in ("none", "class_token"):
        found.append(f"pooling: {recipe.backbone} gives vectors, which are not pooled, use none")
    if not batch_norms(backbone) and recipe.batch_norm != "trained":
        found.append(f"batch_norm: {recipe.backbone} has no batch norms that could be fixed: use trained")
    if recipe.pretrained and recipe.weights is None and file_name(recipe.backbone) is None:
        found.append(f"pretrained: {recipe.backbone} has no published weights, use false, or give weights of your own")
    return found


def _shape_problems(recipe: Recipe, backbone: Any) -> list[str]:
    """The problem if a batch does not pass the backbone, or does not give the shape that the attributes promise."""
    images = torch.empty(2, backbone.channels, recipe.input_size, recipe.input_size, device="meta")
    try:
        with torch.inference_mode():
            features = backbone(images)
        shape = tuple(features.shape)
    except Exception as error:
        taken = f"images of {recipe.input_size} x {recipe.input_size} with pooling {recipe.pooling}"
        return [f"backbone: {recipe.backbone} does not take {taken}: {_first_line(error)}"]
    expected, kind = ((2, backbone.features, ...), "maps") if backbone.spatial else ((2, backbone.features), "vectors")
    if shape[:2] != expected[:2] or len(shape) != (4 if backbone.spatial else 2):
        promised = str(expected).replace("Ellipsis", "height, width")
        return [f"backbone: {recipe.backbone} promises {kind} {promised} and gives {shape}: correct its attributes"]
    return []


def _chance_problems(recipe: Recipe, backbone: nn.Module) -> list[str]:
    """Layers that draw random numbers in training from a generator whose state no checkpoint keeps."""
    for name, layer in backbone.named_modules():
        if getattr(layer, "drop_prob", 0) or (isinstance(layer, _DropoutNd) and layer.p):
            return [
                f"backbone: {recipe.backbone} draws random numbers in training (layer {name}), which a resumed run "
                "would not repeat: remove that layer"
            ]
    return []


def _input_problems(recipe: Recipe) -> list[str]:
    """Keys of the recipe that give a library's published weights other pixels than those they were trained with."""
    file, _, variant = recipe.backbone.partition("/")
    if not variant or not recipe.pretrained or recipe.weights:
        return []
    module = submodule("networks.backbones", file)
    try:
        module.published(variant)
    except BadInputError as error:
        return [f"backbone: {error}"]
    wanted, scale = module.input_of(variant), recipe.pixel_maximum
    found = []
    for key, values in wanted.items():
        shown = [round(scale * value, 4) for value in values]
        if not np.allclose(getattr(recipe, key), shown, rtol=1e-3):
            found.append(
                f"{key}: {recipe.backbone} was trained with {shown} at pixel_maximum {scale}: use these values"
            )
    if recipe.channel_order != "rgb":
        found.append(f"channel_order: {recipe.backbone} was trained with rgb: use rgb")
    return found
