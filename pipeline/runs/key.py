"""The definition of "the same run": its key. This is the SHA-256 of everything that decides the run's bytes, and of
nothing else.

The key of a training covers
- its settings: dataset, loss and all its settings, seed, protocol, subset, and the recipe without the keys that only
  evaluation reads; defaults of the recipe's keys are left out, so a new key changes no run that does not use it;
- its data, by their hashes: the packed index, which has the place and the SHA-256 of every image, and the manifests
  that the run reads; the SHA-256 that the pretrained weights must have; if another run chose the epoch, that run's key;
- the code that computes, by its syntax tree: what the training loop, the loss and the backbone import (`runs/code.py`);
- the versions of the packages that compute (`runs/packages.py`);
- the kind of device, cpu or cuda, and the instructions that the CPU's kernels use.

The key does not cover what does not change the bytes: the engine, the number of loader processes, file names, the grid
and the table that ask for the run, Python's version, comments. The model of the GPU is only in made.json.

The key of an evaluation covers the training's key, the code of the evaluation, and what only the evaluation reads: the
test manifests and some of the recipe's keys. A changed metric therefore trains nothing again.
"""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipeline
from pipeline.base.config import Recipe
from pipeline.base.files import BadInputError, sha256
from pipeline.data.checksums import pins
from pipeline.networks.published import CLASSIFIERS, FILES, file_name
from pipeline.runs.code import code_hash
from pipeline.runs.packages import versions
from pipeline.runs.run import EVALUATED, Run

TRAINING = "pipeline.training.loop"
EVALUATION = "pipeline.evaluation.evaluation"


def digest(content: Any) -> str:
    """SHA-256 of a value that JSON can represent. The order of its keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


@functools.cache
def device_kind(device: str) -> str:
    """cpu or cuda, as machine.device says; auto is cuda if torch sees a GPU."""
    if device != "auto":
        return device
    # Without a driver there is no need to ask torch, whose import takes seconds.
    if not any(Path(place).exists() for place in ("/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia")):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@functools.cache
def _hash(path: Path, size: int, changed: int) -> str:
    return sha256(path)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, computed only once while its size and time do not change. Raises `NotReadyError` if the file
    does not exist."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise NotReadyError(path) from None
    return _hash(path, status.st_size, status.st_mtime_ns)


class NotReadyError(BadInputError):
    """A file of a run's data does not exist yet, so the run has no key."""

    def __init__(self, path: Path):
        self.path = path
        super().__init__(f"{path} is missing: run the stages that make it (`dvc repro`)")


def retrieved_manifests(dataset: str) -> list[Path]:
    """The manifests of the retrieved images: test, or query and gallery if the dataset has these."""
    splits = Path("data/splits") / dataset
    parts = ("query", "gallery") if (splits / "query.csv").is_file() else ("test",)
    return [splits / f"{part}.csv" for part in parts]


def pretrained_hash(recipe: Recipe) -> dict[str, Any]:
    """The SHA-256 that the pretrained weights of a recipe must have, and the entries that are left out of them.

    The SHA-256 is the one in the recipe, the published one, or the one pinned by the first good download; the file need
    not exist for these. If none is known, it is that of the file. The entries that are left out of a library's weights
    follow from the library's version, which is in the key. Raises `BadInputError` if the network has no published
    weights.
    """
    backbone = recipe.backbone
    if recipe.weights is not None:
        return {"sha256": recipe.weights.sha256, "without": recipe.weights.drop}
    name = file_name(backbone)
    if name is None:
        raise BadInputError(f"{backbone} has no published weights: set pretrained: false")
    expected = pins().get(f"weights/{name}") or (FILES[backbone].sha256 if backbone in FILES else None)
    if expected is None:
        expected = file_hash(Path("data/weights") / name)
    return {"sha256": expected, "without": CLASSIFIERS.get(backbone, ())}


def backbone_module(recipe: Recipe) -> str:
    """The dotted name of the file of a recipe's backbone."""
    return f"pipeline.networks.backbones.{recipe.backbone.partition('/')[0]}"


@dataclass(frozen=True)
class Key:
    """A key (`digest`), and the content that it is the hash of. The record shows the content."""

    digest: str
    content: dict[str, Any]


SEEN = (
    *("backbone", "pretrained", "pooling", "input_size", "test_resize", "smallest_crop", "test_fit", "decoded_size"),
    *("channel_order", "pixel_maximum", "mean", "std", "precision", "memory_format", "cpu_threads"),
)
"""The recipe's keys that decide what its backbone gives for an image before training."""


def _not_trained(run: Run, device: str) -> dict[str, Any]:
    """Everything that decides the embeddings of a run that is not trained."""
    if run.members:
        return {"protocol": run.protocol, "members": [evaluation_key(member, device).digest for member in run.members]}
    settings = run.settings()
    if run.protocol == "untrained":
        settings["recipe"] = {key: value for key, value in settings["recipe"].items() if key in SEEN}
        settings["pretrained"] = pretrained_hash(run.recipe) if run.recipe.pretrained else None
    return settings


def _machine(device: str) -> dict[str, Any]:
    kind = device_kind(device)
    return {"device": kind, "instructions": pipeline.INSTRUCTIONS, "packages": versions(kind == "cuda")}


def training_key(run: Run, device: str) -> Key:
    """The key of a run's training. `device` is a value of machine.device. Raises `NotReadyError` if some of its data do
    not exist."""
    settings = run.settings()
    # For the user's own weights the hash counts, which is among the data, and not the file's name.
    left_out = (*EVALUATED, "weights")
    settings["recipe"] = {key: value for key, value in settings["recipe"].items() if key not in left_out}
    manifests = [run.manifest]
    if run.protocol == "test":
        manifests += retrieved_manifests(run.dataset)
    elif run.protocol == "choose_epoch":
        manifests.append(Path("data/splits") / run.dataset / "held_out_test.csv")
    if run.rate is not None:
        manifests.append(Path("data/splits") / run.dataset / "train.csv")  # the epoch's length comes from it
    files = [Path("data/packed") / run.dataset / "index.csv", *manifests]
    data: dict[str, Any] = {path.as_posix(): file_hash(path) for path in files}
    if run.recipe.pretrained:
        data["pretrained"] = pretrained_hash(run.recipe)
    if run.chosen_by is not None:
        data["chosen_by"] = training_key(run.chosen_by, device).digest
    modules = (TRAINING, f"pipeline.losses.{run.loss}", backbone_module(run.recipe))
    content = {"settings": settings, "data": data, "code": code_hash(*modules), **_machine(device)}
    return Key(digest(content), content)


def evaluation_key(run: Run, device: str, trained: str | None = None) -> Key:
    """The key of the evaluation of a run's weights: of those trained under the key `trained`, or else under the run's
    current key. Raises `NotReadyError` if some of its data do not exist."""
    files = [Path("data/packed") / run.dataset / "index.csv"]
    if run.protocol == "choose_epoch":  # such a run is only evaluated by its history
        files.append(Path("data/splits") / run.dataset / "held_out_test.csv")
    else:
        files += retrieved_manifests(run.dataset)
    content = {
        "training": (trained or training_key(run, device).digest) if run.trained else _not_trained(run, device),
        "settings": {key: getattr(run.recipe, key) for key in (*EVALUATED, "recall_at")},
        "data": {path.as_posix(): file_hash(path) for path in files},
        "code": code_hash(EVALUATION, backbone_module(run.recipe)),
        **_machine(device),
    }
    return Key(digest(content), content)
