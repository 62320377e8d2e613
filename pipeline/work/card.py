"""The model card of an exported network: what it is, and code that uses it without this project."""

from typing import Any

import yaml

OPEN = {1: 'Image.open(path).convert("L")', 3: 'Image.open(path).convert("RGB")'}

FITS = {
    "stored": """\
    assert image.shape[1:] == ({size}, {size}), "the network takes images of this size"
    return image[None]""",
    "crop": """\
    height, width = image.shape[1:]
    shorter = min(height, width)
    image = resized(image, int({resize} * height / shorter), int({resize} * width / shorter))
    top, left = (round((side - {size}) / 2) for side in image.shape[1:])
    return image[None, :, top : top + {size}, left : left + {size}]""",
    "squash": """\
    return resized(image, {size}, {size})[None]""",
    "pad": """\
    longer = max(image.shape[1:])
    height, width = (max(1, {size} * side // longer) for side in image.shape[1:])
    square = torch.tensor({colour}, dtype=torch.uint8)[:, None, None].repeat(1, {size}, {size})
    top, left = ({size} - height) // 2, ({size} - width) // 2
    square[:, top : top + height, left : left + width] = resized(image, height, width)
    return square[None]""",
}
"""How a test image becomes a square, as `pipeline/training/images.py` does it."""

CODE = '''\
import numpy as np
import torch
from PIL import Image


def resized(image, height, width):
    if tuple(image.shape[1:]) == (height, width):
        return image
    return torch.nn.functional.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def prepared(path):
    """An image as uint8 (1, {channels}, {size}, {size})."""
    pixels = np.array({opened})
    image = torch.from_numpy(pixels.reshape(*pixels.shape[:2], {channels})).permute(2, 0, 1)
{fit}


{load}

embedding = embed(prepared("image.png"))  # float32 (1, {dimension}), of unit length
'''

LOAD = {
    "model.pt2": 'embed = torch.export.load("model.pt2").module()',
    "model.onnx": """\
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
embed = lambda images: session.run(None, {"images": images.numpy()})[0]""",
}

TIMM = """
The backbone alone, without its head, is in `trunk`:

```python
import timm

trunk = timm.create_model("local-dir:trunk")
```
"""


def code(config: dict[str, Any], file: str) -> str:
    """Python that prepares an image and embeds it with `file`, model.pt2 or model.onnx. It needs torch, numpy and
    Pillow."""
    of = config["preprocessing"]
    return CODE.format(
        channels=of["channels"],
        size=of["size"],
        opened=OPEN[of["channels"]],
        fit=FITS[of["fit"]].format(**of),
        load=LOAD[file],
        dimension=config["dimension"],
    )


def _measured(metrics: dict[str, Any] | None, dataset: str) -> list[str]:
    """The lines on what was measured."""
    if metrics is None:
        return ["It has not been evaluated here."]
    said = f"On the test images of `{dataset}`, whose classes training never saw, in percent:"
    lines = [said, "", "| | |", "|---|---|"]
    chance = metrics.get("recall@1_over_test_classes")
    for name, value in metrics.items():
        if isinstance(value, float):
            interval = ""
            if name == "recall@1" and chance:
                interval = f" ({100 * chance['low']:.2f} to {100 * chance['high']:.2f} over other test classes, 95 %)"
            lines.append(f"| {name} | {100 * value:.2f}{interval} |")
    return [*lines, "", "One run of one seed: nothing is known here of chance over trainings."]


def _metadata(config: dict[str, Any], licence: str) -> dict[str, Any]:
    """The hub's metadata."""
    numbers = {name: value for name, value in (config["metrics"] or {}).items() if isinstance(value, float)}
    results = [
        {
            "task": {"type": "image-feature-extraction", "name": "Image retrieval"},
            "dataset": {"type": config["dataset"], "name": config["dataset"]},
            "metrics": [{"type": name, "name": name, "value": round(100 * of, 2)} for name, of in numbers.items()],
        }
    ]
    index = {"model-index": [{"name": _name(config), "results": results}]} if numbers else {}
    return {
        "license": licence,
        "library_name": "timm" if config["backbone"].startswith("timm/") else "pytorch",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["image-retrieval", "deep-metric-learning", config["loss"]],
    } | index


def _name(config: dict[str, Any]) -> str:
    return f"{config['backbone'].replace('/', '-')}-{config['loss']}-{config['dataset']}"


def card(config: dict[str, Any], licence: str) -> str:
    """README.md of an exported network. `licence` is a name of the hub's list."""
    began = config["began_from"]
    beginning = "random weights"
    if began:
        beginning = f"{began['from']} (SHA-256 {began['sha256']}); its terms: {began['terms']}"
    decoded = config["preprocessing"]["decoded_size"]
    graphs = [file for file in LOAD if file in config["files"]]
    lines = [
        "---",
        yaml.safe_dump(_metadata(config, licence), sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        f"# {_name(config)}",
        f"An embedding network: {config['backbone']} with {config['dimension']} dimensions, trained with "
        f"{config['loss']} on `{config['dataset']}`. Near images have a large inner product. It began from "
        f"{beginning}.",
        "",
        "## What was measured",
        *_measured(config["metrics"], config["dataset"]),
        "",
        "## Use it",
    ]
    for file in graphs:
        lines += [f"With `{file}`:", "", "```python", code(config, file).rstrip(), "```", ""]
    if not graphs:
        lines.append(
            "No graph could be written: the weights in `model.safetensors` need the project that trained them."
        )
    if decoded:
        lines.append(f"In evaluation, larger images were shrunk to {decoded} pixels when they were decoded, not here.")
    if config["backbone"].startswith("timm/"):
        lines.append(TIMM)
    lines += [
        "",
        "## Where it comes from",
        f"Weights `{config['weights']}` of the run `{config['key']}`, seed {config['seed']}, made with "
        "Proxy losses, reproduced. `config.json` has its settings, `model.safetensors` its weights.",
        "",
    ]
    return "\n".join(lines)
