"""A trained network for others: its weights, what they are, a model card, and graphs that need no code of this project.

`model.safetensors` has the weights and `config.json` says what they are: network, preprocessing, key of the run,
metrics. `model.pt2` (torch.export) and `model.onnx` take uint8 images (batch, channels, size, size), RGB or grey, and
give embeddings, float32 (batch, dimension) of unit length; mean and standard deviation are inside. `trunk` is the
backbone alone if it is timm's, as `timm.create_model` reads it. `README.md` is the card in the hub's form.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.base.files import BadInputError, sha256, write_json, write_text
from pipeline.base.recipe import Recipe
from pipeline.networks.network import load_network, outlined, prepare
from pipeline.networks.published import FILES
from pipeline.runs import store
from pipeline.runs.record import QUERIES, MetricsRecord, TrainingRecord
from pipeline.statistics.classes import bootstrap
from pipeline.training.images import mean_colour
from pipeline.work.card import card

ONNX = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20
TOLERANCE = 1e-5
"""The largest difference of any number of an embedding between a graph and the network."""


class Whole(nn.Module):
    """A network with its preprocessing: uint8 images (batch, channels, height, width), RGB or grey, to embeddings."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, recipe: Recipe):
        super().__init__()
        self.network, self.bgr, self.scale = network, recipe.channel_order == "bgr", 255 / recipe.pixel_maximum
        self.register_buffer("mean", torch.tensor(recipe.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(recipe.std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings, float32 (batch, dimension)."""
        pixels = images.flip(1) if self.bgr else images
        embeddings: Tensor = self.network((pixels.to(torch.float32) / self.scale - self.mean) / self.std)
        return embeddings


def write(folder: Path, record: TrainingRecord, weights: Path, licence: str) -> list[str]:
    """Write a run's network to `folder`, which must not exist. Returns a line for each graph that is not written, and
    why."""
    # In plain float32, whatever was faster in training: a graph is for any machine.
    recipe = record.recipe.model_copy(update={"precision": "float32", "memory_format": "contiguous"})
    device = prepare(recipe, "cpu")
    torch.set_deterministic_debug_mode("default")  # exporters trace with operators of their own
    network = load_network(recipe, weights, device).eval().requires_grad_(False)
    folder.mkdir()
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "key": record.key})
    whole = Whole(network, recipe).eval()
    refused = [line for make in (_program, _onnx) if (line := make(whole, recipe, folder))]
    if record.recipe.backbone.startswith("timm/"):
        _trunk(network.backbone.trunk, folder / "trunk")
    config = described(record, weights, folder)
    write_json(folder / "config.json", config)
    write_text(folder / "README.md", card(config, licence))
    return refused


def _examples(recipe: Recipe, count: int) -> Tensor:
    """Random images, uint8 (count, channels, size, size)."""
    shape = (count, outlined(recipe).channels, recipe.input_size, recipe.input_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


def _apart(whole: Whole, recipe: Recipe, run: Any) -> float:
    """The largest difference between a graph and the network, for batches of one and of five."""
    batches = [_examples(recipe, count) for count in (1, 5)]
    return max(float((run(images) - whole(images)).abs().max()) for images in batches)


def _program(whole: Whole, recipe: Recipe, folder: Path) -> str:
    """Write model.pt2, and return why it is not written."""
    path = folder / "model.pt2"
    try:
        batch = {0: torch.export.Dim("batch", min=1)}
        torch.export.save(torch.export.export(whole, (_examples(recipe, 2),), dynamic_shapes=(batch,)), path)
        apart = _apart(whole, recipe, torch.export.load(path).module())
    except Exception as error:  # what an exporter raises for an operator that it lacks is of no fixed kind
        path.unlink(missing_ok=True)
        return f"model.pt2 is not written: torch.export refuses {recipe.backbone}: {_first_line(error)}"
    return _too_far(path, apart)


def _onnx(whole: Whole, recipe: Recipe, folder: Path) -> str:
    """Write model.onnx, and return why it is not written."""
    path = folder / "model.onnx"
    if missing := [name for name in ONNX if importlib.util.find_spec(name) is None]:
        return f"model.onnx is not written: {', '.join(missing)} missing: `make .venv/tests` installs them"
    import onnxruntime

    try:
        torch.onnx.export(
            whole,
            (_examples(recipe, 2),),
            path,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["images"],
            output_names=["embeddings"],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        apart = _apart(whole, recipe, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]))
    except Exception as error:  # as in _program
        path.unlink(missing_ok=True)
        return f"model.onnx is not written: ONNX refuses {recipe.backbone}: {_first_line(error)}"
    return _too_far(path, apart)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _too_far(path: Path, apart: float) -> str:
    if apart <= TOLERANCE:
        return ""
    path.unlink()
    return f"{path.name} is not written: its embeddings are off by {apart:.1e}, more than {TOLERANCE}"


def _trunk(trunk: Any, folder: Path) -> None:
    """The backbone alone, as `timm.create_model("local-dir:trunk")` reads it."""
    from timm.models import save_for_hf

    save_for_hf(trunk, str(folder), model_config={"num_classes": 0}, safe_serialization=True)


def described(record: TrainingRecord, weights: Path, folder: Path) -> dict[str, Any]:
    """The content of config.json."""
    recipe, settings = record.recipe, record.settings
    channels = outlined(recipe).channels
    evaluation = evaluation_of(record, weights.stem)
    return {
        "key": record.key,
        "weights": weights.stem,
        "dataset": settings["dataset"],
        "loss": settings["loss"],
        "loss_settings": settings["loss_settings"],
        "seed": settings["seed"],
        "backbone": recipe.backbone,
        "pooling": recipe.pooling,
        "head": recipe.head,
        "dimension": recipe.dimension,
        "trained_in": recipe.precision,
        "preprocessing": {
            "channels": channels,
            "fit": recipe.test_fit,
            "resize": recipe.test_resize,
            "size": recipe.input_size,
            "colour": mean_colour(recipe, channels),
            "decoded_size": recipe.decoded_size,
            "channel_order": recipe.channel_order,
            "pixel_maximum": recipe.pixel_maximum,
            "mean": recipe.mean,
            "std": recipe.std,
        },
        "began_from": _began_from(record),
        "metrics": evaluation,
        "files": {path.name: sha256(path) for path in sorted(folder.glob("model.*"))},
        "torch": torch.__version__,
    }


def _began_from(record: TrainingRecord) -> dict[str, Any] | None:
    """The pretrained weights that the run began from, by hash and address, and whose terms they have; None if it began
    from random ones."""
    recipe = record.recipe
    if not recipe.pretrained:
        return None
    known = FILES.get(recipe.backbone)
    where = known.page if known else recipe.backbone
    terms = "those of their publisher, whom nobody has asked for you (NOTICE)"
    return {"sha256": record.content["data"]["pretrained"]["sha256"], "from": where, "terms": terms}


def evaluation_of(record: TrainingRecord, rule: str) -> dict[str, Any] | None:
    """The metrics of a run's weights, as fractions, by the last evaluation that the store has; None if it has none. If
    it kept what its queries found, Recall@1 has a 95 % interval over test classes."""
    known = [of for of in store.records(MetricsRecord) if of.run and of.run.key == record.key and rule in of.metrics]
    if not known:
        return None
    found: dict[str, Any] = dict(known[-1].metrics[rule])
    queries = store.folder(known[-1].key) / QUERIES
    if queries.is_file() and rule in ("last_epoch", "held_out"):  # queries.npz is of these weights
        with np.load(queries, allow_pickle=False) as kept:
            chance = bootstrap(kept["recall"] * kept["queries"], kept["queries"])
        found["recall@1_over_test_classes"] = {"low": chance.low, "high": chance.high, "classes": chance.classes}
    return found


def check_licence(licence: str) -> str:
    """A licence's name on the hub. Raises `BadInputError` for a text that is no such name."""
    if not licence or not all(part.isalnum() for part in licence.replace(".", "-").split("-")):
        raise BadInputError(f"--licence is {licence!r}: give a name of the hub's list, such as mit or cc-by-4.0")
    return licence
