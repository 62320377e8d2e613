"""The code in a run's key is not too small: every function of the package that ran is covered by the key of the run, or
stands in a short list with its reason. Runs of every kind are made for this, on tiny images, in a few steps each."""

import importlib
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from PIL import Image

from pipeline.base.config import read_params
from pipeline.base.files import sha256
from pipeline.base.recipe import Recipe, Weights
from pipeline.convert import main as convert
from pipeline.networks.network import make_backbone
from pipeline.runs import key, reach, store
from pipeline.runs.code import PACKAGE
from pipeline.runs.key import evaluation_key, training_key
from pipeline.runs.run import make_run
from pipeline.split import main as split
from pipeline.subsets import main as subsets
from pipeline.training import embedding, graphs, loop, resident
from pipeline.work.job import Job, do, evaluate_run, train_run
from tests import GRID, textures
from tests.test_graphs import stand_in

ROOT = Path(__file__).parent.parent
UNCOVERED = reach.NOT_COMPUTING | {
    **dict.fromkeys(
        (f"pipeline.base.{name}" for name in ("config", "recipe", "choices", "checks", "problems")),
        "settings: their values are in the key",
    ),
    "pipeline.base.environment": "describes what is held; what changes bits is an entry point",
    "pipeline.base.files": "finds files, reads and writes them",
    "pipeline.work.copies": "copies checkpoints",
    "pipeline.work.job": "takes a run, calls where its code begins, and writes its record",
    "pipeline.metrics.by_name.*.limits": "refuses what cannot be evaluated",
    "pipeline.runs.key": "makes keys",
    "pipeline.runs.reach": "makes keys",
    "pipeline.runs.protocols": "describes protocols",
    "pipeline.runs.record": "records",
    "pipeline.runs.run": "what is run: its values are in the key",
    "pipeline.runs.store": "keeps what was made",
}
"""What runs and is in no key, and why."""
BACKBONES = sorted(file.stem for file in (PACKAGE / "networks/backbones").glob("[!_]*.py"))


PARAMS = [
    read_params(path)
    for path in [GRID / "params.yaml", ROOT / "params.yaml", *sorted(ROOT.glob("papers/*/params.yaml"))]
]
LOSSES = sorted({params.loss(name)[0] for params in PARAMS for name in params.losses})
CONSTANT = {"name": "constant"}
PLAIN = {"epochs": 2, "batch_size": 4, "recall_at": [1], "schedule": CONSTANT, "dimension": 8, "cpu_threads": 1}
PLAIN |= {
    "metrics": [of for of in PARAMS[0].recipes["glyphs"].metrics if of["name"] != "other_groups"]
}  # no groups here


def stage(main, *words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["stage", *words])
        main()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with data of three kinds, as working directory: `little` has grey images of the small network's size,
    `photos` has colour images of many sizes, and `shop` has queries and a gallery."""
    folder = tmp_path_factory.mktemp("reached")
    for file in PACKAGE.rglob("*.py"):  # so that no import runs while functions are counted
        if file.parent != PACKAGE:
            importlib.import_module(".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts))
    importlib.import_module("torch._dynamo")  # by the first optimiser
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(textures, "SIDES", (40, 60))
        patch.setattr(embedding, "EMBEDDING_BATCH", 8)  # networks see batches of this size, whatever they are asked for
        raw = Path("data/raw")
        textures.write(raw / "photos", 8, 2)
        textures.write(raw / "shop", 8, 2)
        (raw / "shop/test").rename(raw / "shop/query")
        textures.write(raw / "rest", 8, 3)
        (raw / "rest/test").rename(raw / "shop/gallery")
        for path in sorted((raw / "photos").rglob("*.jpg")):
            target = raw / "little" / path.relative_to(raw / "photos").with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).convert("L").resize((32, 32)).save(target)
        for name in ("little", "photos", "shop"):
            stage(convert, name)
            stage(split, name)
        stage(subsets, "little", "--rates", "0.5", "--gammas", "2", "--seeds", "0", "--folds", "2")
        yield folder


@contextmanager
def called():
    """The functions of the package that are called within the block, also in other threads."""
    found = set()

    def look(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(f"{PACKAGE}/"):
            found.add(frame.f_code)

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def places(function):
    """The module and the definition at its top level that hold a function."""
    parts = Path(function.co_filename).relative_to(PACKAGE.parent).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    for name, statements in reach._module(module).definitions.items():
        for statement in statements:
            first = min(line.lineno for line in [statement, *getattr(statement, "decorator_list", [])])
            if first <= function.co_firstlineno <= statement.end_lineno:
                yield f"{module}.{name}"


def explained(place):
    return any(fnmatchcase(place, known) or place.startswith(f"{known}.") for known in UNCOVERED)


def make(run):
    """Train and evaluate a run as a worker does; give what was called, is in no key, and is not explained."""
    lacking = set()
    works = [(training_key, train_run)] if run.trained else []
    for make_key, work in [*works, (evaluation_key, evaluate_run)]:
        of = make_key(run, "cpu")
        with called() as functions:
            do(Job(run, "a run", "cpu", 0), of, work)
        assert store.is_done(of.digest) and functions
        for function in functions:
            found = list(places(function))
            assert found, function
            lacking |= {place for place in found if not {place} & {*of.code} and not explained(place)}
    return sorted(lacking)


def settings(file):
    """An entry of a params file with a loss that a file of pipeline/losses holds, and the file's params."""
    return next((params, name) for params in PARAMS for name in params.losses if params.loss(name)[0] == file)


def run_of(dataset="little", params=PARAMS[0], loss="proxy_an", **changes):
    fields = {name: changes.pop(name) for name in ("protocol", "rate", "gamma") if name in changes}
    recipe = PARAMS[0].recipes["glyphs"].model_copy(update=PLAIN | changes)
    given = params.model_copy(update={"recipes": {"one": recipe}})
    return make_run(Path("params.yaml"), given, dataset, loss, 0, "one", **fields)


CROPPED = [{"name": "random_resized_crop", "smallest": 0.3}, {"name": "flip"}]
COLOUR = {
    **{"augment": CROPPED, "test_fit": "crop", "test_resize": 36, "mean": [0.5], "std": [0.2]},
    **{"backbone": "mobilenet_v2", "pooling": "average"},
}


@pytest.mark.parametrize("file", LOSSES)
def test_each_loss(project, file):
    params, name = settings(file)
    assert make(run_of(params=params, loss=name)) == []


@pytest.mark.parametrize("file", BACKBONES)
def test_each_backbone(project, file):
    name = {"timm": "timm/resnet10t"}.get(file, file)
    recipe = run_of().recipe
    kind = importlib.import_module(f"pipeline.networks.backbones.{file}").Backbone
    size = getattr(kind, "input_size", None) or 32
    changes = COLOUR if file != "small" else {}
    maps = file != "timm" and kind.spatial
    pooling = "average_and_maximum" if maps else "none"
    changes = changes | {"backbone": name, "input_size": size, "test_resize": size, "pooling": pooling, "epochs": 1}
    assert recipe.backbone == "small"
    assert make(run_of("photos" if file != "small" else "little", **changes)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {
            "samples_per_class": 2,
            "head": "normalised",
            "metrics": [
                {"name": "recall", "counting": "exact"},
                {"name": "class_map_at_r"},
                {"name": "nmi", "kmeans": "scikit-learn"},
            ],
        },
        {
            "rate": 0.5,
            "head": "normalised_orthogonal",
            "metrics": [{"name": "recall", "counting": "drop_first"}],
            "batch_norm": "fixed",
        },
        {"gamma": 2, "head_only_epochs": [1], "frozen_gradients": "zero", "batch_norm": "fixed_statistics"},
        {"dataset": "shop", **COLOUR},
        {"dataset": "shop", "decoded_size": 36, **COLOUR, "test_fit": "pad", "precision": "bfloat16"},
        {"dataset": "photos", **COLOUR, "test_fit": "squash", "channel_order": "bgr"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_that_take_other_ways(project, changes):
    assert make(run_of(**changes)) == []


def test_each_protocol(project):
    test = run_of()
    choice = replace(test, protocol="choose_epoch")
    held_out = replace(test, protocol="held_out", chosen_by=choice)
    second = replace(test, seed=1)
    ensemble = replace(test, protocol="ensemble", members=(test, second))
    plain = replace(test, loss="none", loss_settings={})
    pixels, untrained = (replace(plain, protocol=protocol) for protocol in ("raw_pixels", "untrained"))
    runs = [test, second, choice, replace(choice, fold="2of2"), held_out, ensemble, pixels, untrained]
    assert {run.protocol for run in runs} == {*key.EVALUATION}
    for run in runs:
        assert make(run) == [], run.protocol


READ = {
    "raw_pixels": {"pooling": "of an outline of the backbone, whose number of channels alone is used"},
    "untrained": {
        **dict.fromkeys(("head", "dimension", "batch_norm_momentum"), "of a head that is drawn after the backbone"),
        "weights": "their hash is in the key",
    },
}
"""Protocol -> the recipe's keys that the evaluation reads and that change nothing there, and why."""


class WatchedRecipe(Recipe):
    """A recipe that notes which of its keys are read."""

    read: ClassVar[set[str]] = set()

    def __getattribute__(self, name):
        if name in Recipe.model_fields:
            WatchedRecipe.read.add(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("protocol", key.SEEN)
def test_the_key_of_a_run_without_training_has_the_settings_that_it_reads(project, tmp_path, protocol):
    changes = {"protocol": protocol, "channel_order": "bgr", "test_fit": "pad", "test_resize": None, "decoded_size": 48}
    plain = run_of("photos", **COLOUR | changes)
    recipe = WatchedRecipe.model_validate(plain.recipe.model_dump())
    run = replace(plain, recipe=recipe, loss="none", loss_settings={}, seed=0)
    made = evaluation_key(run, "cpu")
    WatchedRecipe.read.clear()
    evaluate_run(Job(run, "a run", "cpu", 0), made, tmp_path)
    assert WatchedRecipe.read - {*READ[protocol], "recall_at", "metrics"} == {*key.SEEN[protocol]}
    assert {*made.content["training"]["recipe"]} <= {*key.SEEN[protocol]}


def test_pretrained_weights(project):
    backbone = make_backbone("mobilenet_v2", "average", 32)
    torch.save(getattr(backbone, "trunk", backbone).state_dict(), "weights.pth")
    Path("data/weights").mkdir()
    Path("weights.pth").rename("data/weights/mine.pth")
    own = Weights(file="mine.pth", sha256=sha256(Path("data/weights/mine.pth")))
    assert make(run_of("photos", **COLOUR, pretrained=True, weights=own)) == []


def test_images_that_stay_on_the_device(project, monkeypatch):
    monkeypatch.setattr(resident, "usable", lambda memory, size: True)
    run = run_of("photos", **COLOUR, epochs=1)
    assert make(run) == []


def test_graphs(project, monkeypatch):
    monkeypatch.setattr(loop, "GraphedNetwork", partial(_graphed, loop.GraphedNetwork))
    captured = []
    monkeypatch.setattr(graphs, "capture", lambda *given: captured.append(given) or stand_in(*given[:2]))
    assert make(run_of(epochs=3)) == []
    assert captured


def _graphed(kind, recipe, network, criterion, optimiser, device, wanted):
    return kind(recipe, network, criterion, optimiser, device, True)
