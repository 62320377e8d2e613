"""What is walked on the pretended GPU and compared with the CPU, byte by byte. Prints JSON: case -> what was found.

python -m tests.pretended_runs FOLDER [PATTERN]
"""

import contextlib
import hashlib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import pipeline  # noqa: F401  # before torch is used
from pipeline.base.config import read_params
from pipeline.metrics.clustering import clustering
from pipeline.metrics.retrieval import nearest, retrieval
from pipeline.networks import network as networks
from pipeline.networks.freezing import set_trainable
from pipeline.networks.network import EmbeddingNetwork, prepare
from pipeline.runs import store
from pipeline.training import checkpoint, embedding, graphs, images, loading, loop
from pipeline.training.augment import Augment
from pipeline.training.augmentations import torchvision as augmentations_of_torchvision
from pipeline.training.memory import Memory
from pipeline.training.optimiser import build_optimiser, build_schedule, set_learning_rates
from pipeline.training.optimisers import torch as optimisers_of_torch
from pipeline.training.parts import build_loss
from pipeline.training.schedules import torch as schedules_of_torch
from pipeline.training.step import training_step
from pipeline.work import evaluation, job
from tests import pretended_gpu as gpu
from tests import test_augmentations
from tests.small_run import small_run
from tests.test_graphs import stand_in
from tests.test_trajectories import Maps

ROOT = Path(__file__).parent.parent
PAPERS = ("proxygml", "proxy_an", "comparison")
GRIDS = {name: read_params(ROOT / "papers" / name / "params.yaml") for name in PAPERS}
CPU = torch.device("cpu")
CLASSES, EPOCHS = 9, 2


def digest(value: Any) -> str:
    """The SHA-256 of the bytes of tensors, arrays, and lists and dicts of them."""
    if isinstance(value, gpu.Pretended):
        value = value.inner
    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous().numpy()
    if isinstance(value, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    if isinstance(value, dict):
        return hashlib.sha256(repr([(name, digest(part)) for name, part in value.items()]).encode()).hexdigest()
    if isinstance(value, list | tuple):
        return hashlib.sha256(repr([digest(part) for part in value]).encode()).hexdigest()
    return repr(value)


def steps(
    grid: str,
    recipe_name: str,
    loss: str | None,
    size: int,
    device: torch.device,
    graphed: bool = False,
    epochs: tuple[int, ...] = (1, 3, 3),
    batch: int = 12,
    resumed: bool = False,
    **changes: Any,
) -> tuple[Any, dict[str, int]]:
    """The losses and the state after a step in each of `epochs`, the first of which are those of the head alone, and
    the waits of the last step. Images are augmented, and learning rates scheduled, as the recipe says. `resumed`: the
    last step is taken by an optimiser that goes on from a checkpoint."""
    params = GRIDS[grid]
    recipe = params.recipes[recipe_name].model_copy(
        update={"dimension": 16, "pretrained": False, "cpu_threads": 1} | changes
    )
    prepare(recipe, "cpu")
    torch.manual_seed(0)
    network = EmbeddingNetwork(recipe).to(device)
    loss = loss or ("proxy_an" if grid == "proxy_an" else params.loss_entry("proxy_gml", recipe_name))
    module, settings = params.loss(loss)
    if module == "proxy_gml":
        settings |= {"ratio": 0.4}
    criterion = build_loss(module, settings, CLASSES, recipe.dimension, "test").to(device)
    optimiser = build_optimiser(recipe, network, criterion)
    made = graphs.GraphedNetwork(recipe, network, criterion, optimiser, device, wanted=graphed)
    shape = (batch, getattr(network.backbone, "channels", 3), size, size)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    labels, losses, rows = torch.arange(batch) // 3, [], np.arange(batch)
    kept, factor = loading.StoredImages(pixels, labels, Augment(recipe, 0)), build_schedule(recipe, 2)
    for number, epoch in enumerate(epochs):
        set_trainable(network, recipe, epoch)
        made.begin(epoch, pixels, labels)
        if resumed and number == len(epochs) - 1:
            state = checkpoint.on_host(optimiser.state_dict())
            optimiser = build_optimiser(recipe, network, criterion)
            optimiser.load_state_dict(state)
        fetched = kept.__getitems__((epoch, rows, rows))
        gpu.WAITS.clear()
        images, of_images = kept.finish(fetched, device)
        set_learning_rates(optimiser, recipe, factor(epoch, 1))
        losses.append(training_step(recipe, made, criterion, optimiser, images, of_images, device))
    waits = dict(gpu.WAITS)
    if graphed:
        assert set(made.found.values()) == {"used: the same bits"}, made.found
    return [losses, network.state_dict(), criterion.state_dict()], waits


FAILED = "not used: from epoch 2: CUDA out of memory. Tried to allocate 2.00 GiB."


def without_memory_at_last(network, images, captured=[]):  # noqa: B006  # counts the captures of the process
    """A capture that works for the first phase and not for the second."""
    captured.append(1)
    if len(captured) > 1:
        raise torch.OutOfMemoryError(FAILED.partition(": from epoch 2: ")[2])
    return stand_in(network, images)


def whole_run(folder: Path, device: torch.device, cuda_graphs: str = "never", **changes):
    """The bytes of all files of a run that is trained and evaluated, and all its waits."""
    folder.mkdir()
    os.chdir(folder)
    run = small_run(folder, epochs=EPOCHS, **changes)

    def here(recipe, kind):
        prepare(recipe, "cpu")
        return device

    job.prepare = here
    gpu.WAITS.clear()
    processes, asked = 1, job.Job(run, "run", "cpu", 0, cuda_graphs=cuda_graphs)
    while (code := job.perform(asked)) == job.GRAPHS_FAILED:
        processes += 1
    assert code == 0
    made = json.loads(next(store.STORE.glob("*/history.csv")).with_name("made.json").read_text())
    if device.type == gpu.NAME:
        assert (processes, made["cuda_graphs"]) == (2, {"never": FAILED}) if cuda_graphs == "auto" else (1, {})
    files = sorted(path for path in store.STORE.rglob("*") if path.is_file() and path.name != "made.json")
    kept = [path for path in files if path.parent != store.STORE]
    assert {path.name for path in kept} >= {"history.csv", "last_epoch.pt", "metrics.json", "queries.npz"}
    return {path.name: np.frombuffer(path.read_bytes(), np.uint8) for path in kept}, dict(gpu.WAITS)


class Room(Memory):
    """The pretended GPU has room for all images."""

    def __init__(self, device: torch.device, shared_by: int = 1):
        super().__init__(device)
        self.left = 10**9 if device.type == gpu.NAME else 0


def searches(device: torch.device, counting: str, narrow: bool, apart: bool):
    """The metrics, the nearest images and the clusters of 150 embeddings, and their waits."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(150, 16, generator=generator) + (1e4 if narrow else 0)
    embeddings = torch.nn.functional.normalize(embeddings).to(device)
    labels = (torch.arange(150) // 5).to(device)
    gallery = {"gallery": embeddings[70:], "gallery_labels": labels[70:]} if apart else {}
    queries = embeddings[:70] if apart else embeddings
    gpu.WAITS.clear()
    found = retrieval(queries, labels[: len(queries)], [1, 4], counting=counting, **gallery)
    rows = torch.arange(20, device=device)
    near = nearest(queries, rows, 4, gallery=gallery.get("gallery"))
    clusters = clustering(embeddings, torch.arange(150) // 5, seed=0, kmeans="faiss")
    return [found, near, clusters], dict(gpu.WAITS)


SCHEDULES = {
    "steps": {"every": 1, "factor": 0.5},
    "cosine": {"warm_up": 1},
    "torch/CosineAnnealingLR": {"T_max": 3},
    "torch/CosineAnnealingWarmRestarts": {"T_0": 2},
    "torch/CyclicLR": {"base_lr": 0.1, "max_lr": 1.0},
    "torch/ExponentialLR": {"gamma": 0.9},
    "torch/MultiStepLR": {"milestones": [1]},
    "torch/OneCycleLR": {"max_lr": 1.0},
    "torch/StepLR": {"step_size": 1},
}
OPTIMISERS = {
    "adam": {"weight_decay": 1e-4, "epsilon_added": "before_correction"},
    "adamw": {"weight_decay": 1e-4},
    "sgd": {"momentum": 0.9, "weight_decay": 1e-4},
}
WAITING = ("Adafactor", "NAdam")
"""Optimisers of torch that are left out because they wait for a GPU. ASGD, too, but not on the pretended one, which
cannot make its tensors."""
AUGMENTATIONS = {f"torchvision/{name}": settings for name, settings in test_augmentations.SETTINGS.items()} | {
    "colour_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4},
    "shift": {"pixels": 2},
    "torchvision/ElasticTransform": {"sigma": 1.0},
}


def by_name() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every optimiser, schedule and augmentation that a recipe can choose by its name: the recipe's key, the name, and
    settings. A crop has no place in a step: the runs with resident images walk it."""
    rooms: dict[str, tuple[Any, dict[str, dict[str, Any]]]] = {
        "optimiser": (optimisers_of_torch, OPTIMISERS),
        "schedule": (schedules_of_torch, SCHEDULES),
        "augment": (augmentations_of_torchvision, AUGMENTATIONS),
    }
    for key, (adapter, settings) in rooms.items():
        folder, library = Path(adapter.__file__).parent, Path(adapter.__file__).stem
        files = {path.stem for path in folder.glob("[a-z]*.py")} - {library, "random_resized_crop"}
        for name in [*sorted(files), *(f"{library}/{variant}" for variant in adapter.NAMES)]:
            yield key, name, {"name": name} | settings.get(name, {})


def left_out(name: str, device: torch.device) -> tuple[Any, dict[str, int]]:
    """Steps with an optimiser of torch that a recipe cannot choose."""
    names, optimisers_of_torch.NAMES = optimisers_of_torch.NAMES, (name,)
    try:
        return steps("proxy_an", "cub", None, Maps.size, device, resumed=True, optimiser={"name": f"torch/{name}"})
    finally:
        optimisers_of_torch.NAMES = names


def cases(folder: Path) -> dict[str, Any]:
    """Name -> a function of the device."""
    found: dict[str, Any] = {}
    crop = {"name": "random_resized_crop", "smallest": 0.3}
    jitter = {"name": "colour_jitter", "brightness": 0.4, "contrast": 0.4}
    small = {"augment": [crop, {"name": "flip"}, jitter], "test_fit": "crop", "test_resize": 32}
    found["run, loaded"] = lambda device: whole_run(folder / f"loaded_{device.type}", device)
    found["run, resident"] = lambda device: whole_run(folder / f"resident_{device.type}", device, **small)
    found["run, graphs that fail"] = lambda device: whole_run(
        folder / f"graphs_{device.type}", device, "auto", head_only_epochs=[1]
    )
    for grid in ("comparison", "proxygml"):
        for loss in GRIDS[grid].losses:
            found[f"loss {loss}"] = lambda device, grid=grid, loss=loss: steps(grid, "cub", loss, Maps.size, device)
    for grid, loss in (("proxygml", "proxy_gml_cub"), ("proxy_an", "proxy_an")):
        found[f"graphs {grid}"] = lambda device, grid=grid, loss=loss: steps(
            grid, "cub", loss, Maps.size, device, graphed=True, batch_norm="trained"
        )
    alone = {"epochs": (3,), "batch": 3}
    papers = {"bn_inception": ("proxygml", "cub", 64), "resnet50": ("proxy_an", "cub", 64)}
    papers["deit_small_distilled"] = ("proxy_an", "deit_small_distilled_cub", 224)
    for name, (grid, recipe, size) in papers.items():
        found[f"network {name}"] = lambda device, words=(grid, recipe, None, size): steps(*words, device, **alone)
    variants = {"mobilenet_v2": 64, "efficientnet_lite0": 64, "small": 32, "timm/resnet10t": 64}
    for name, size in variants.items():
        changes: dict[str, Any] = alone | {"backbone": name}
        if name == "small":
            changes |= {"pooling": "none", "head": "linear", "mean": [0.3], "std": [0.4], "channel_order": "rgb"}
        found[f"network {name.partition('/')[0]}"] = lambda device, size=size, changes=changes: steps(
            "proxy_an", "cub", None, size, device, **changes
        )
    for key, name, chosen in by_name():
        changed = {key: [chosen] if key == "augment" else chosen}
        found[f"chosen {key} {name}"] = lambda device, changed=changed: steps(
            "proxy_an", "cub", None, Maps.size, device, resumed=True, **changed
        )
    for name in WAITING:
        found[f"left out {name}"] = lambda device, name=name: left_out(name, device)
    for counting in ("exact", "strict", "drop_first"):
        for apart in (False, True) if counting != "drop_first" else (False,):
            for narrow in (False, True):
                name = f"search {counting}{', gallery' * apart}{', narrow cone' * narrow}"
                found[name] = lambda device, words=(counting, narrow, apart): searches(device, *words)
    return found


def main() -> None:
    """Walk every case on the CPU and on the pretended GPU."""
    folder, only = Path(sys.argv[1]), (*sys.argv[2:], "")[0]
    torch.set_num_threads(1)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    # A view of this kind of tensor cannot be made in inference mode, which differs from no_grad in speed alone.
    loop.embed = evaluation.embed = torch.no_grad()(embedding.embed.__wrapped__)
    loop.Memory = evaluation.Memory = Room
    backbones, result = networks.submodule, {}
    # The CPU's attention is one kernel, that of any other device is written in PyTorch's operations: other last bits.
    torch.backends.cuda.enable_flash_sdp(False)
    for name, case in cases(folder).items():
        if not re.match(only, name):
            continue
        graphs.capture = without_memory_at_last if name == "run, graphs that fail" else stand_in
        mapped = name.startswith(("loss", "graphs", "chosen", "left out"))
        networks.submodule = (lambda *words: SimpleNamespace(Backbone=Maps)) if mapped else backbones
        try:
            started = time.process_time()
            expected, _ = case(CPU)
            gpu.LINES.clear()
            images._on_device.cache_clear()
            with gpu.Pretend():
                found, waits = case(gpu.DEVICE)
            names = found if isinstance(found, dict) else range(len(found))
            apart = [key for key in names if digest(found[key]) != digest(expected[key])]
            lines = {where: sorted(lines) for where, lines in gpu.LINES.items()}
            result[name] = {"apart": apart, "waits": waits, "lines": lines}
            result[name]["seconds"] = round(time.process_time() - started, 2)
        except Exception:
            result[name] = {"error": traceback.format_exc()}
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(result))


if __name__ == "__main__":
    main()
