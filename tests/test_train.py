"""Training: the same bytes again, whatever loads the images, and what it refuses."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from pipeline.base import sampling
from pipeline.base.config import read_params
from pipeline.runs.run import read_history
from pipeline.training.augment import Augment
from pipeline.training.batches import Shuffled
from pipeline.training.loading import StoredImages, training_batches
from pipeline.training.optimiser import build_schedule, learning_rates
from tests import GRID


def train(project, out, *options, loss="proxy_an", fails=0):
    command = ["python", "-m", "pipeline.train", "--dataset", "glyphs", "--loss", loss, "--seed", "0"]
    return project.run(*command, "--out", str(out), *options, fails=fails)


def test_the_same_bytes_on_a_rerun_with_any_number_of_workers(project, tmp_path):
    runs = project.folder / "data/runs/default/glyphs/glyphs/proxy_an"
    first, other = runs / "0", runs / "1"
    key = json.loads((first / "run.json").read_text())["key"]
    for workers in ("0", "1", "4"):
        shutil.rmtree(project.folder / "data/store" / key)
        train(project, tmp_path / workers, "--workers", workers)
        for name in ("best_test_epoch.pt", "last_epoch.pt", "history.csv", "run.json"):
            assert (tmp_path / workers / name).read_bytes() == (first / name).read_bytes(), f"{name}, {workers} workers"
    assert (other / "last_epoch.pt").read_bytes() != (first / "last_epoch.pt").read_bytes()


def test_losses_of_one_seed_start_from_the_same_network(project):
    histories = [
        read_history(project.folder / f"data/runs/default/glyphs/glyphs/{loss}/0/history.csv")
        for loss in ("proxy_an", "proxy_nca")
    ]
    assert [len(lines) for lines in histories] == [2, 2]
    line = histories[0][1]
    assert line["epoch"] == 2 and line["network_learning_rate"] == pytest.approx(0.001)
    assert {name for name in line if "@" in name} == {"recall@1", "recall@2", "recall@4", "recall@8"}
    assert re.fullmatch("[0-9a-f]{16}", line["weights"]) and line["weights"] != histories[0][0]["weights"]


LOOK = """
import sys
import torch
from pipeline import train
from pipeline.losses import proxy_an
from pipeline.networks.network import EmbeddingNetwork

seen = []

def look(where, value):
    tf32 = torch.backends.cuda.matmul.allow_tf32
    seen.append([where, str(value.dtype), torch.is_autocast_enabled("cpu"), tf32])

class Look(torch.autograd.Function):
    @staticmethod
    def forward(context, embeddings):
        look("loss", embeddings)
        return embeddings.clone()

    @staticmethod
    def backward(context, gradient):
        look("loss, backward", gradient)
        return gradient

def network(self, images, forward=EmbeddingNetwork.forward):
    embeddings = forward(self, images)
    look("network", embeddings)
    if embeddings.requires_grad:
        embeddings.register_hook(lambda gradient: look("network, backward", gradient))
    return embeddings

EmbeddingNetwork.forward = network
proxy_an.Loss.forward = lambda self, embeddings, labels, forward=proxy_an.Loss.forward: forward(
    self, Look.apply(embeddings), labels
)
train.main()
print(sorted(set(map(str, seen))))
"""


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_losses_are_in_float32_forward_and_backward_whatever_the_precision(project, tmp_path, precision):
    """In a backward pass inside autocast, a loss's own products would be rounded."""
    words = ["--dataset", "glyphs", "--loss", "proxy_an", "--seed", "0", "--out", str(tmp_path / "out")]
    words += ["--set", f"recipe.precision={precision}", "recipe.epochs=1", "recipe.schedule={name: constant}"]
    (tmp_path / "look.py").write_text(LOOK)
    script = ["env", "PYTHONPATH=.", "python", str(tmp_path / "look.py")]
    last = project.run(*script, *words, "--device", "cpu").splitlines()[-1]
    tf32 = precision == "tf32"
    parts = {"loss": False, "loss, backward": False, "network": tf32, "network, backward": tf32}
    assert last == str(sorted(str([part, "torch.float32", False, rounds]) for part, rounds in parts.items()))


RESIDENT = """
from types import SimpleNamespace

import pipeline
import torch
from pipeline import train
from pipeline.training import loop, resident

loop.Memory = lambda *words: SimpleNamespace(device=torch.device("cpu"), left=1, take=lambda size: True)
resident.usable = lambda memory, size: True
made, crop = [], resident.crop
resident.crop = lambda *arguments: made.append(1) or crop(*arguments)
train.main()
print(len(made), "batches cropped on the device")
"""


@pytest.mark.parametrize("workers", ["2"])
def test_a_run_whose_images_stay_on_the_device_gives_the_same_bytes(project, tmp_path, workers):
    """On the CPU, where PyTorch's words stand in for the kernel; the loader decodes what the other run keeps."""
    words = [
        "--set",
        "recipe.augment="
        "[{name: random_resized_crop, smallest: 0.3}, {name: flip}, {name: colour_jitter, contrast: 0.4}]",
        "recipe.test_fit=squash",
        "--workers",
        workers,
        "--device",
        "cpu",
    ]
    train(project, tmp_path / "loaded", *words)
    key = json.loads((tmp_path / "loaded/run.json").read_text())["key"]
    shutil.copytree(tmp_path / "loaded", tmp_path / "kept")
    shutil.rmtree(project.folder / "data/store" / key)
    (tmp_path / "resident.py").write_text(RESIDENT)
    given = ["--dataset", "glyphs", "--loss", "proxy_an", "--seed", "0", "--out", str(tmp_path / "stayed")]
    output = project.run("env", "PYTHONPATH=.", "python", str(tmp_path / "resident.py"), *given, *words)
    assert int(output.splitlines()[-1].split()[0]) > 100, output
    for name in ("best_test_epoch.pt", "last_epoch.pt", "history.csv", "run.json"):
        assert (tmp_path / "stayed" / name).read_bytes() == (tmp_path / "kept" / name).read_bytes(), name
    shutil.rmtree(project.folder / "data/store" / key)


def test_weights_load_without_pickled_code_and_keep_their_names(project):
    weights = torch.load(project.folder / "data/runs/default/glyphs/glyphs/proxy_an/0/last_epoch.pt", weights_only=True)
    assert weights["embedding.weight"].shape == (64, 1024)
    assert weights["backbone.blocks.0.convolution.weight"].shape == (16, 1, 5, 5)


def test_every_position_of_every_epoch_has_its_own_draw():
    images = torch.arange(256, dtype=torch.uint8).repeat(20, 1).view(20, 1, 16, 16)
    labels = torch.arange(20)
    recipe = read_params(GRID / "params.yaml").recipes["glyphs"]
    recipe = recipe.model_copy(update={"augment": [{"name": "shift", "pixels": 2}]})

    def batches(batch_size, workers):
        shifted = StoredImages(images, labels, Augment(recipe, 7))
        loader = training_batches(shifted, Shuffled(20, batch_size, 7), range(1, 4), workers, torch.device("cpu"))
        return [torch.cat(parts) for parts in zip(*loader, strict=True)]

    pixels, seen = batches(8, 0)
    for other_size, workers in ((20, 0), (5, 2)):
        for found, expected in zip(batches(other_size, workers), (pixels, seen), strict=True):
            assert torch.equal(found, expected), "draws depend on the batch size or on the workers"
    assert all(torch.equal(epoch.sort().values, labels) for epoch in seen.view(3, 20))
    assert not torch.equal(seen[:20], seen[20:40])
    shifted = {tuple(image.flatten().tolist()) for image in pixels}
    assert 20 < len(shifted) <= 25, "each of the 5 x 5 shifts, over 60 images"


def test_draws_are_pinned():
    # A change of these would change every result silently.
    assert sampling.order(0, 1, 8).tolist() == [3, 6, 5, 0, 1, 2, 4, 7]
    assert sampling.uniform(3, "shift", 2, (2,)).tolist() == [0.7210619265002964, 0.15728333553900964]


def test_learning_rates_decay_at_their_epochs():
    recipe = read_params(GRID / "params.yaml").recipes["glyphs"]
    schedule = build_schedule(recipe, 10)
    rates = [learning_rates(recipe, schedule(epoch, 10)) for epoch in range(1, 6)]
    found = [(of["network"], of["proxies"]) for of in rates]
    assert np.allclose(found, np.outer([1, 1, 1, 0.2, 0.04], [0.005, 0.1]))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p["recipes"]["glyphs"].update(batch_size=4000), r"recipes\.glyphs\.batch_size: 4000 is more than"),
        (
            lambda p: p["losses"]["proxy_an"].update(alfa=1.0),
            r"losses\.proxy_an\.alfa: unknown key, did you mean alpha\?",
        ),
        (
            lambda p: p["losses"].update(proxy_an={"alpha": 1.0, "margin": "big"}),
            r"losses\.proxy_an\.margin: .*valid number.* found 'big'",
        ),
        (
            lambda p: (p["recipes"]["glyphs"].update(recall_at=[1, 5000]), p["tables"]["glyphs"].pop("columns")),
            r"recipes\.glyphs: its runs cannot be evaluated:\n  recall_at: 5000 is more than the 3106 images",
        ),
        (
            lambda p: p["recipes"]["glyphs"].update(recall_at=[1, 4]),
            r"tables\.glyphs\.columns: recall@2: unknown key, did you mean recall@",
        ),
    ],
)
def test_bad_parameters_exit_with_2_and_one_message(project, tmp_path, edit, message):
    project.edit_params(edit)
    try:
        output = train(project, tmp_path / "out", fails=2)
    finally:
        project.run("git", "checkout", "--", "params.yaml")
    said = re.sub(r"^.*: trains small with proxy_an on .*\n", "", output)  # if only the data show the mistake
    assert re.search(message, said) and "Traceback" not in said and said.startswith("error: params.yaml")
    assert not (tmp_path / "out").exists()


def test_a_ratio_without_effect_exits_with_2(project, tmp_path):
    project.edit_params(lambda p: p["losses"]["proxy_gml"].update(ratio=0.03, proxies_per_class=4))
    try:
        output = train(project, tmp_path / "out", loss="proxy_gml", fails=2)
    finally:
        project.run("git", "checkout", "--", "params.yaml")
    assert "params.yaml: losses.proxy_gml: ratio 0.03 keeps ceil(r*C*N) = 4 proxies" in output


def test_an_unknown_loss_or_dataset_exits_with_2(project, tmp_path):
    assert "losses.proxy_bn: there are no settings" in train(project, tmp_path / "out", loss="proxy_bn", fails=2)
    output = train(project, tmp_path / "out", "--dataset", "cub", fails=2)
    assert "recipes.cub: there is no such recipe, add it or use one of glyphs" in output


def test_a_loss_that_is_not_finite_stops_the_run(project, tmp_path):
    project.edit_params(
        lambda p: p["recipes"]["glyphs"].update(
            learning_rates={"network": 1e30, "proxies": 0.1}, optimiser={"name": "adamw", "weight_decay": 1e10}
        )
    )
    try:
        output = train(project, tmp_path / "out", fails=1)
    finally:
        project.run("git", "checkout", "--", "params.yaml")
    assert re.search(r"the loss is (nan|inf) at epoch 1, step \d+, .* of 1e\+30 .* the last finite loss is", output)
    assert not (tmp_path / "out").exists() and not list(tmp_path.iterdir())


def test_an_output_folder_that_is_somebody_elses_is_refused(project, tmp_path):
    """Before anything is trained: the folder that holds the clone, git's, the code, a link to somebody's folder."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work")
    (tmp_path / "link").symlink_to(theirs)

    def files():
        paths = project.folder.rglob("*")
        return sorted(path for path in paths if not re.search("data/store|__pycache__", str(path)))

    before = files()
    for out in ("..", ".", ".git", "pipeline", "data", "README.md", theirs, tmp_path / "link"):
        output = train(project, out, fails=2)
        assert re.search("is a (folder|file) that this stage did not make|is a symbolic link", output), out
        assert "epoch" not in output and "Traceback" not in output
    assert (theirs / "thesis.tex").read_text() == "years of work" and (tmp_path / "link").is_symlink()
    assert before == files()


def test_a_run_of_the_same_place_is_replaced(project, tmp_path):
    for margin in ("0.1", "0.2"):
        train(
            project,
            tmp_path / "out",
            "--set",
            f"loss.margin={margin}",
            "recipe.epochs=1",
            "recipe.schedule={name: constant}",
        )
        record = json.loads((tmp_path / "out/run.json").read_text())
        assert record["content"]["settings"]["loss_settings"]["margin"] == float(margin)
    stored = [json.loads(path.read_text()) for path in (project.folder / "data/store").glob("*/run.json")]
    settings = [record["content"]["settings"] for record in stored if record["epochs"] == 1]
    margins = [setting["loss_settings"].get("margin") for setting in settings]
    assert {0.1, 0.2} <= set(margins), "the run that was there before is in the store"


def test_a_run_with_loader_processes_that_fails_ends(project, tmp_path):
    """Its loaders ignore SIGTERM, with which Python ends such processes: they have to be ended otherwise."""
    options = ("--workers", "2", "--set", "recipe.learning_rates.network=1e30", "recipe.optimiser.weight_decay=1e10")
    command = ["timeout", "120", "python", "-m", "pipeline.train", "--dataset", "glyphs", "--loss", "proxy_an"]
    output = project.run(*command, "--seed", "0", "--out", str(tmp_path / "out"), *options, fails=1)
    assert "error: the loss is nan at epoch 1, step 2" in output
