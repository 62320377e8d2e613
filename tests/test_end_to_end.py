"""From archives to metrics, by command lines, on look-alikes: every recipe of the papers, every loss and setting, each
network killed and resumed, with other workers, and in the other modes. Images are of 64 pixels where networks allow."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
import yaml

from pipeline.base.files import submodule
from pipeline.runs.run import read_history
from tests import lookalikes, swap
from tests.lookalikes import CARS_COUNTS, INSHOP_COUNTS, REPOSITORY, SOP_COUNTS, project
from tests.server import Served, serve

PAPERS = {
    paper: yaml.safe_load((REPOSITORY / "papers" / paper / "params.yaml").read_text())
    for paper in ("proxygml", "proxy_an")
}
CUB_COUNTS = {"train": (24, 4), "test": (24, 4), "held_out_train": (12, 2), "held_out_test": (12, 2)}
COUNTS = {"cub": CUB_COUNTS, "cars": CARS_COUNTS, "sop": SOP_COUNTS, "inshop": INSHOP_COUNTS}
NETWORKS = {"bn_inception": ["last_linear."], "resnet50": ["fc."], "deit_small_distilled": ["head.", "head_dist."]}
LOSSES = ("proxy_an", "proxy_anchor", "proxy_nca")
KEPT = ("best_test_epoch.pt", "last_epoch.pt", "history.csv", "run.json")


def write_look_alike_weights(folder):
    """Files of the published names and layouts, with random numbers: one old without counters, one wrapped."""
    folder.mkdir(parents=True)
    for name, classifiers in NETWORKS.items():
        torch.manual_seed(1)
        state = submodule("networks.backbones", name).Backbone().state_dict()
        if name == "bn_inception":
            state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        state |= {f"{classifier}{key}": torch.zeros(3) for classifier in classifiers for key in ("weight", "bias")}
        torch.save({"model": state} if name == "deit_small_distilled" else state, folder / f"{name}.pth")


def run_chains(folder, name, chains, **environment):
    """What tests/run_stages.py found of each chain; every command must have ended as it should."""
    (folder / f"{name}.json").write_text(json.dumps(chains))
    script = str(Path(__file__).with_name("run_stages.py"))
    subprocess.run(
        [sys.executable, script, f"{name}.json", name],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": "."} | environment,
        check=True,
    )
    found = {chain: json.loads((folder / name / f"{chain}.json").read_text()) for chain in chains}
    for chain, results in found.items():
        codes = [expected for _, expected, _ in chains[chain]]
        assert [result["code"] for result in results] == codes, f"{chain}: {results[-1]}"
    return found


def data_chains():
    """The stages of every dataset, and the weights."""
    chains = {name: [[[stage, name], 0, None] for stage in ("download", "convert", "split")] for name in COUNTS}
    for name in ("cub", "cars"):
        chains[name].append([["subsets", name, "--rates", "0.5", "--gammas", "10", "--seeds", "0"], 0, None])
    return chains | {"weights": [[["download", network], 0, None] for network in NETWORKS]}


def small(paper, name):
    """Changes that make a recipe run in seconds on a look-alike."""
    recipe = PAPERS[paper]["recipes"][name]
    dataset = name.rsplit("_", 1)[-1]
    changes = {"epochs": 2, "cpu_threads": 1, "batch_size": 4 if dataset in ("sop", "inshop") else 6}
    changes["recall_at"] = [1, 2]  # of the look-alikes' three images and more
    if recipe["backbone"] != "deit_small_distilled":
        changes |= {"input_size": 64, "test_resize": 72}
    if paper == "proxygml":
        changes |= {"schedule": {"name": "constant"}, "evaluated_epochs": 1}
    return changes


def train(paper, name, folder, loss, *options, kill=None, expected=0, **changes):
    words = ["train", "--params", f"papers/{paper}/params.yaml", "--dataset", name.rsplit("_", 1)[-1], "--recipe", name]
    words += ["--loss", loss, "--seed", "0", "--out", f"data/runs/{folder}/0", "--device", "cpu", "--workers", "0"]
    sets = [f"recipe.{key}={json.dumps(value)}" for key, value in (small(paper, name) | changes).items()]
    sets += ["loss.ratio=0.9"] if paper == "proxygml" else []  # or so few classes would leave the loss without effect
    return [[*words, *options, "--set", *sets], -9 if kill else expected, kill]


def evaluate(folder, expected=0):
    words = ["evaluate", f"data/runs/{folder}/0", "--out", f"metrics/runs/{folder}/0.json", "--device", "cpu"]
    return [words, expected, None]


ONCE_MORE = {"proxygml-cub": 12, "proxy_an-cub": 9, "proxy_an-deit_small_distilled_sop": 3}
"""The runs of three epochs, whose third trains the whole network, and the step at which they are killed."""


def recipe_chains():
    """Every recipe, trained and evaluated; every loss with every network."""
    chains = {}
    for paper, params in PAPERS.items():
        for place, name in enumerate(params["recipes"]):
            run = f"{paper}-{name}"
            loss = f"proxy_gml_{name}" if paper == "proxygml" else LOSSES[(place + place // 4) % 3]
            changes = {"epochs": 3} if run in ONCE_MORE else {}
            chains[run] = [train(paper, name, run, loss, **changes), evaluate(run)]
    return chains


def other_chains():
    """Runs of `recipe_chains` and `setting_chains` that are killed and resumed, or have other workers. They are done
    first, and forgotten by the store, which would take them for the same runs."""
    chains = {}
    for run, kill in ONCE_MORE.items():
        words = [
            f"data/runs/{run}-killed/0" if word == f"data/runs/{run}/0" else word for word in recipe_chains()[run][0][0]
        ]
        chains[f"{run}-killed"] = [[words, -9, kill], [words, 0, None]]
    quick = QUICK | {"head_only_epochs": []}
    return chains | {"workers": [train("proxy_an", "cub", "workers", "proxy_an", "--workers", "2", **quick)]}


QUICK = {"backbone": "small", "pretrained": False, "pooling": "none", "input_size": 32, "test_resize": 36}
QUICK |= {"channel_order": "rgb", "mean": [0.5], "std": [0.25], "pixel_maximum": 1.0}
"""The embedded default's network in a paper's recipe, for all that is not about networks."""


def setting_chains():
    """Subsets, the held-out protocol, workers, and the other precisions and layouts."""
    chains = {}
    for paper, loss in (("proxy_an", "proxy_an"), ("proxygml", "proxy_gml_cub")):
        for option, value in (("--partial", "0.5"), ("--imbalanced", "10")):
            run = f"{paper}{option}"
            chains[run] = [train(paper, "cub", run, loss, option, value, **QUICK), evaluate(run)]
        run = f"{paper}-held_out"
        choice = train(paper, "cub", f"{run}-choice", loss, "--choose-epoch", **QUICK)
        held_out = train(paper, "cub", run, loss, "--held-out", **QUICK)
        chains[run] = [[held_out[0], 2, None], choice, evaluate(f"{run}-choice"), held_out, evaluate(run)]
    quick = QUICK | {"head_only_epochs": []}
    for mode in ({}, {"precision": "bfloat16"}, {"precision": "tf32"}, {"memory_format": "contiguous"}):
        run = f"small-{next(iter(mode.values()), 'float32')}"
        chains[run] = [train("proxy_an", "cub", run, "proxy_an", **quick, **mode), evaluate(run)]
    return chains


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The project's folder after all of it, and what every command printed."""
    folder = project(tmp_path_factory.mktemp("end_to_end") / "project", COUNTS, weights=True)
    for paper in PAPERS:
        (folder / "papers" / paper).mkdir(parents=True)
        params = folder / "papers" / paper / "params.yaml"
        shutil.copy(REPOSITORY / "papers" / paper / "params.yaml", params)
        swap(params, "  workers: 8\n", "  workers: 0\n")
    # Embeddings are made 256 at a time, which takes DeiT half a minute here.
    swap(folder / "pipeline/training/embedding.py", "\nEMBEDDING_BATCH = 256\n", "\nEMBEDDING_BATCH = 8\n")
    mirror = folder.parent / "mirror"
    lookalikes.cub(mirror / "raw/cub", range(6), more=4)
    lookalikes.cars_combined(mirror / "raw/cars")
    lookalikes.sop(mirror / "raw/sop")
    lookalikes.inshop(folder / "data/raw/inshop")
    write_look_alike_weights(mirror / "weights")
    files = {f"/{path.relative_to(mirror)}": Served(path.read_bytes()) for path in mirror.rglob("*.*")}
    with serve(files) as base:
        run_chains(folder, "fetched", data_chains(), PIPELINE_MIRRORS=base)
    others = run_chains(folder, "others", other_chains())
    shutil.rmtree(folder / "data/store")
    yield folder, others | run_chains(folder, "runs", recipe_chains() | setting_chains())
    shutil.rmtree(folder)  # gigabytes of weights


def history_of(folder, run):
    return read_history(folder / "data/runs" / run / "0/history.csv")


@pytest.mark.parametrize("run", list(recipe_chains()))
def test_every_recipe_trains_and_is_evaluated(trained, run):
    folder, _ = trained
    paper, name = run.split("-")
    recipe = PAPERS[paper]["recipes"][name] | small(paper, name)
    history = history_of(folder, run)
    epochs = 3 if run in ONCE_MORE else 2
    assert [line["epoch"] for line in history] == list(range(1, epochs + 1))
    assert all(math.isfinite(line["loss"]) for line in history)
    every = recipe.get("evaluated_epochs", 1)
    evaluated = [epoch for epoch in range(1, epochs + 1) if epoch % every == 0 or epoch == epochs]
    assert [line["epoch"] for line in history if "recall@1" in line] == evaluated
    found = json.loads((folder / f"metrics/runs/{run}/0.json").read_text())
    settings = found["run"]["content"]["settings"]
    assert settings["recipe"]["backbone"] == recipe["backbone"] and settings["protocol"] == "test"
    assert found["metrics"].keys() == {"best_test_epoch", "last_epoch"}
    assert found["metrics"]["last_epoch"]["epoch"] == epochs
    for values in found["metrics"].values():
        recalls = {key for key in values if key.startswith("recall@")}
        assert recalls == {f"recall@{k}" for k in recipe["recall_at"]} and 0 <= values["nmi_arithmetic"] <= 1 + 1e-9
    weights = torch.load(folder / f"data/runs/{run}/0/last_epoch.pt", weights_only=True)
    assert weights["embedding.weight"].shape[0] == 512


@pytest.mark.parametrize("name", ["cars", "deit_small_distilled_cars", "bn_inception_cars"])
def test_a_run_starts_from_the_pretrained_weights(trained, name):
    """In Proxy-AN's first two epochs the trunk rests, and with it what the file gave it."""
    folder, _ = trained
    weights = torch.load(folder / f"data/runs/proxy_an-{name}/0/last_epoch.pt", weights_only=True)
    published = torch.load(folder / f"data/weights/{PAPERS['proxy_an']['recipes'][name]['backbone']}.pth")
    published = published.get("model", published)
    trunk = {key.removeprefix("backbone."): value for key, value in weights.items() if key.startswith("backbone.")}
    classifiers = tuple(classifier for names in NETWORKS.values() for classifier in names)
    given = {key: value for key, value in published.items() if not key.startswith(classifiers)}
    assert given.keys() == {key for key in trunk if not key.endswith("num_batches_tracked") or key in given}
    assert all(torch.equal(trunk[key], value) for key, value in given.items())


@pytest.mark.parametrize("run", ONCE_MORE)
def test_killed_and_resumed_it_ends_with_the_same_bytes(trained, run):
    folder, printed = trained
    assert "goes on from epoch 3, step 1" in printed[f"{run}-killed"][1]["output"]
    for name in KEPT:
        whole, again = (folder / "data/runs" / out / "0" / name for out in (run, f"{run}-killed"))
        assert whole.read_bytes() == again.read_bytes(), name


def test_workers_do_not_show_in_the_bytes(trained):
    folder, _ = trained
    for name in KEPT:
        assert (folder / f"data/runs/workers/0/{name}").read_bytes() == (
            folder / f"data/runs/small-float32/0/{name}"
        ).read_bytes(), name


@pytest.mark.parametrize(
    ("run", "setting", "images"),
    [
        ("proxy_an--partial", {"rate": 0.5}, 12),
        ("proxygml--partial", {"rate": 0.5}, 12),
        ("proxy_an--imbalanced", {"gamma": 10}, 10),  # 6, 6 / 10 ** (1/3), 6 / 10 ** (2/3), 6 / 10
        ("proxygml--imbalanced", {"gamma": 10}, 10),
        ("proxy_an-cub", {}, 24),
    ],
)
def test_a_run_on_a_subset_sees_its_images(trained, run, setting, images):
    folder, _ = trained
    found = json.loads((folder / f"metrics/runs/{run}/0.json").read_text())["run"]
    assert found["content"]["settings"]["subset"] == setting and found["images"] == images


@pytest.mark.parametrize("paper", PAPERS)
def test_the_held_out_protocol_chooses_an_epoch_and_never_looks_at_the_test_set(trained, paper):
    folder, printed = trained
    choice = history_of(folder, f"{paper}-held_out-choice")
    recalls = [line["recall@1"] for line in choice]
    best = 1 + recalls.index(max(recalls))
    run = folder / f"data/runs/{paper}-held_out/0"
    assert sorted(path.name for path in run.iterdir()) == ["code.json", "held_out.pt", "history.csv", "run.json"]
    history = history_of(folder, f"{paper}-held_out")
    assert len(history) == best and all("recall@1" not in line for line in history)
    assert sorted(path.name for path in (folder / f"data/runs/{paper}-held_out-choice/0").iterdir()) == [
        "code.json",
        "history.csv",
        "run.json",
    ]
    assert "with --choose-epoch first" in printed[f"{paper}-held_out"][0]["output"], (
        "a held-out run needs the one that chooses"
    )
    looked = json.loads((folder / f"metrics/runs/{paper}-held_out-choice/0.json").read_text())
    assert looked["metrics"] == {"held_out_classes": {"epoch": best, "recall@1": max(recalls), "recall@2": ANY}}
    assert looked["retrieved"] == {"images": 12, "classes": 2}
    found = json.loads((folder / f"metrics/runs/{paper}-held_out/0.json").read_text())
    assert found["run"]["content"]["settings"]["protocol"] == "held_out" and found["run"]["classes"] == 4
    assert {name: values["epoch"] for name, values in found["metrics"].items()} == {"held_out": best}
    read = found["run"]["content"]["data"]
    assert [path for path in read if "splits" in path] == ["data/splits/cub/train.csv"]


def test_precisions_and_layouts(trained):
    folder, _ = trained
    histories = {run: history_of(folder, f"small-{run}") for run in ("float32", "bfloat16", "tf32", "contiguous")}
    losses = {run: [line["loss"] for line in history] for run, history in histories.items()}
    assert losses["tf32"] == losses["float32"], "a CPU has none"
    assert losses["contiguous"] == pytest.approx(losses["float32"], rel=1e-3)
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05) and losses["bfloat16"] != losses["float32"]
    weights = torch.load(folder / "data/runs/small-bfloat16/0/last_epoch.pt", weights_only=True)
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}
