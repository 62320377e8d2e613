"""The definition of "the same run": its key. This is the SHA-256 of everything that decides the run's bytes, and of
nothing else.

The key of a training covers
- its settings: dataset, loss and all its settings, seed, protocol, subset, and the recipe without the keys that only
  evaluation reads; defaults of the recipe's keys are left out, so a new key changes no run that does not use it;
- its data, by their hashes: the packed index, which has the place and the SHA-256 of every image, and the manifests
  that the run reads; the SHA-256 that the pretrained weights must have; if another run chose the epoch, that run's key;
- the code that computes: the definitions that training reaches by name, by their syntax trees (`runs/reach.py`);
- the versions of the packages that compute (`runs/packages.py`);
- the kind of device, cpu or cuda, and the instructions that the CPU's kernels use.

The key does not cover what does not change the bytes: the engine, the number of loader processes, file names, the grid
and the table that ask for the run, Python's version, comments. The model of the GPU is only in made.json.

The key of an evaluation covers the training's key, the code of the evaluation, and what only the evaluation reads: the
test manifests and some of the recipe's keys. A metric that is added or changed trains nothing again; only a change of
what training itself computes with does, such as `recall_at_k`, by which it chooses the best epoch.
"""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipeline
from pipeline.base import gpu
from pipeline.base.choices import ROOMS, chosen_file
from pipeline.base.config import Recipe
from pipeline.base.files import BadInputError, sha256
from pipeline.base.recipe import room_of
from pipeline.data.checksums import pins
from pipeline.data.groups import FILE as GROUPS
from pipeline.data.index import FILE as INDEX
from pipeline.networks.published import CLASSIFIERS, FILES, file_name
from pipeline.runs.packages import versions
from pipeline.runs.protocols import Protocol
from pipeline.runs.reach import Choices, code, code_hash
from pipeline.runs.run import EVALUATED, Run

EVERY = ("pipeline.base.environment.PORTABLE", "pipeline.base.environment.SET", "pipeline.networks.network.prepare")
"""Where the code begins that decides the bytes of any run (`runs/reach.py`)."""
TRAINING = (*EVERY, "pipeline.training.loop.Training")
CHOSEN_EPOCH = ("pipeline.runs.run.best_epoch", "pipeline.runs.run.read_history")
EMBEDDED = (*EVERY, "pipeline.work.evaluation.TestImages", "pipeline.base.arrays.write_arrays")
KEPT = (*EMBEDDED, "pipeline.work.job.kept_weights", "pipeline.work.evaluation.evaluate_weights")
EVALUATION: dict[Protocol, tuple[str, ...]] = {
    "test": KEPT,
    "held_out": KEPT,
    "choose_epoch": (*EVERY, *CHOSEN_EPOCH, "pipeline.work.evaluation.held_out_retrieved"),
    "raw_pixels": (*EMBEDDED, "pipeline.work.evaluation.evaluate_pixels"),
    "untrained": (*EMBEDDED, "pipeline.work.evaluation.evaluate_untrained"),
    "ensemble": (*EMBEDDED, "pipeline.work.evaluation.evaluate_ensemble"),
}


def digest(content: Any) -> str:
    """SHA-256 of a value that JSON can represent. The order of its keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


@functools.cache
def device_kind(device: str) -> str:
    """cpu or cuda, as machine.device says; auto is cuda if there is a GPU. Raises `BadInputError` if there is one that
    PyTorch cannot use, because the runs would otherwise go on the CPU, under other keys, and take months."""
    if device != "auto":
        return device
    if why := gpu.problem():  # asks torch, whose import takes seconds, only if there is a GPU
        raise BadInputError(f"machine.device: auto: {why}")
    return "cuda" if gpu.is_there() else "cpu"


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
        _, folder, dataset, *_ = (*path.parts, "", "")
        stage = "subsets" if folder == "subsets" else "split"
        cure = f"dvc repro {stage}" if dataset == "glyphs" else f"dvc repro data/dvc.yaml:{stage}@{dataset}"
        first = "" if dataset == "glyphs" else ", after `python -m pipeline.choose GRID`"
        super().__init__(f"{path} is missing: run the stages that make it (`{cure}`{first})")


def retrieved_manifests(dataset: str) -> list[Path]:
    """The manifests of the retrieved images: test, or query and gallery if the dataset has these."""
    splits = Path("data/splits") / dataset
    parts = ("query", "gallery") if (splits / "query.csv").is_file() else ("test",)
    return [splits / f"{part}.csv" for part in parts]


def groups_file(run: Run) -> list[Path]:
    """The file with the groups of a dataset's images; none if they have no groups. Raises `BadInputError` if a metric
    of the recipe needs groups that are not there."""
    path = Path("data/packed") / run.dataset / GROUPS
    if path.is_file():
        return [path]
    if "other_groups" in dict(run.recipe.metrics_by_name()) and path.with_name(INDEX).is_file():
        raise BadInputError(
            f"{run.source}.metrics.other_groups: the images of {run.dataset} have no groups ({path} is missing): leave "
            "the metric out, or say the groups (docs/datasets.md)"
        )
    return []


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


def choices(run: Run) -> Choices:
    """The files that a run's settings choose, by the room that they are in."""
    found: dict[str, set[str]] = {room.package: set() for room in ROOMS.values()}
    found |= {"losses": {run.loss}, "networks.backbones": {chosen_file(run.recipe.backbone)}}
    for place, name, _ in run.recipe.choices():
        found[ROOMS[room_of(place)].package].add(chosen_file(name))
    found[ROOMS["metric"].package] = {name for name, _ in run.recipe.metrics_by_name()}
    return tuple((room, tuple(sorted(found[room]))) for room in sorted(found))


@dataclass(frozen=True)
class Key:
    """A key (`digest`), the content that it is the hash of, and the code whose hash is in the content, definition by
    definition (`reach.code`). The record keeps the content."""

    digest: str
    content: dict[str, Any]
    code: dict[str, str]


PIXELS = (
    *("backbone", "input_size", "test_resize", "test_fit", "decoded_size"),
    *("channel_order", "pixel_maximum", "mean", "cpu_threads"),
)
"""The recipe's keys that decide the pixels of a test image: the backbone has the number of channels, and the mean is
the colour of margins."""
SEEN = {
    "raw_pixels": PIXELS,
    "untrained": (*PIXELS, "pretrained", "pooling", "std", "precision", "memory_format"),
}
"""Protocol of runs without training -> the recipe's keys that decide what is evaluated: the pixels themselves, or what
the backbone gives for them before training."""


def settings_of(run: Run) -> dict[str, Any]:
    """The settings of a run that its key covers: of its training, or of the run without training."""
    settings = run.settings()
    # For the user's own weights the hash counts, which is among the data, and not the file's name.
    left_out = (*EVALUATED, "weights")
    settings["recipe"] = {
        key: value
        for key, value in settings["recipe"].items()
        if (key in SEEN[run.protocol] if run.protocol in SEEN else key not in left_out)
    }
    return settings


def _not_trained(run: Run, device: str) -> dict[str, Any]:
    """Everything that decides the embeddings of a run that is not trained."""
    settings = settings_of(run)
    if run.members:
        settings["members"] = [evaluation_key(member, device).digest for member in run.members]
    if run.protocol == "untrained":
        settings["pretrained"] = pretrained_hash(run.recipe) if run.recipe.pretrained else None
    return settings


def _machine(device: str) -> dict[str, Any]:
    kind = device_kind(device)
    return {"device": kind, "instructions": pipeline.INSTRUCTIONS, "packages": versions(kind == "cuda")}


def training_key(run: Run, device: str) -> Key:
    """The key of a run's training. `device` is a value of machine.device. Raises `NotReadyError` if some of its data do
    not exist."""
    manifests = [run.manifest]
    if run.protocol == "test":
        manifests += retrieved_manifests(run.dataset)
    elif run.protocol == "choose_epoch":
        manifests.append(run.held_out)
    if run.rate is not None:
        manifests.append(Path("data/splits") / run.dataset / "train.csv")  # the epoch's length comes from it
    files = [Path("data/packed") / run.dataset / "index.csv", *manifests]
    data: dict[str, Any] = {path.as_posix(): file_hash(path) for path in files}
    if run.recipe.pretrained:
        data["pretrained"] = pretrained_hash(run.recipe)
    if run.chosen_by is not None:
        data["chosen_by"] = training_key(run.chosen_by, device).digest
    lines = code(TRAINING + (CHOSEN_EPOCH if run.chosen_by else ()), choices(run))
    content = {"settings": settings_of(run), "data": data, "code": code_hash(lines), **_machine(device)}
    return Key(digest(content), content, lines)


def evaluation_key(run: Run, device: str, trained: str | None = None) -> Key:
    """The key of the evaluation of a run's weights: of those trained under the key `trained`, or else under the run's
    current key. Raises `NotReadyError` if some of its data do not exist."""
    files = [Path("data/packed") / run.dataset / "index.csv"]
    if run.protocol == "choose_epoch":  # such a run is only evaluated by its history
        files.append(run.held_out)
    else:
        files += [*retrieved_manifests(run.dataset), *groups_file(run)]
    lines = code(EVALUATION[run.protocol], choices(run))
    content = {
        "training": (trained or training_key(run, device).digest) if run.trained else _not_trained(run, device),
        # A run that chooses an epoch is evaluated by its history, which has Recall@K as the training computed it.
        "settings": {
            key: getattr(run.recipe, key) for key in (*EVALUATED, "recall_at") if run.protocol != "choose_epoch"
        },
        "data": {path.as_posix(): file_hash(path) for path in files},
        "code": code_hash(lines),
        **_machine(device),
    }
    return Key(digest(content), content, lines)
