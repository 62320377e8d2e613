"""papers/*/params.yaml against what the papers' code does (the fact files), in the papers' own units."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.base.config import read_params
from pipeline.data.manifests import Row
from pipeline.datasets import cars, cub, inshop, sop
from pipeline.networks.freezing import set_trainable
from pipeline.networks.network import EmbeddingNetwork
from pipeline.runs.run import Run
from pipeline.subsets import imbalanced, partial
from pipeline.training.loop import evaluates
from pipeline.training.optimiser import build_schedule, learning_rates
from pipeline.training.plan import plan_batches

PAPERS = Path(__file__).parent.parent / "papers"
GML, AN = (read_params(PAPERS / paper / "params.yaml") for paper in ("proxygml", "proxy_an"))
DATASETS = {"cub": cub, "cars": cars, "sop": sop, "inshop": inshop}
RECIPES = [
    *(pytest.param(GML, name, id=f"proxygml-{name}") for name in GML.recipes),
    *(pytest.param(AN, name, id=f"proxy_an-{name}") for name in AN.recipes),
]

PROXY_GML = {
    "": ("cub", "cars", "sop"),
    "batch, shuffled, last one kept": (32, 32, 32),
    "epochs": (50, 50, 50),
    "r": (0.05, 0.05, 0.05),
    "N": (12, 12, 1),
    "lambda": (0.3, 0.3, 0.0),
    "learning rate of the proxies": (0.03, 0.03, 0.3),
    "batch norm in eval mode while training": (True, True, False),
    "Recall@": ("1 2 4 8", "1 2 4 8", "1 10 100 1000"),
    "own image dropped by": ("its position", "its position", "dropping the first"),
    "k-means": ("scikit-learn", "scikit-learn", "faiss"),
}
PROXY_AN = {
    "": ("cub", "cars", "sop", "inshop"),
    "learning rate, network": (1.5e-4, 1e-4, 5e-4, 5e-4),
    "proxies: times": (500, 100, 100, 100),
    "both x0.5 every (epochs)": (5, 5, 20, 10),
    "epochs": (50, 50, 100, 100),
    "batch = classes x samples of each": ("27 x 3", "27 x 3", "40 x 2", "40 x 2"),
    "trunk's batch norm frozen": (True, True, False, False),
    "evaluated every (epochs)": (1, 1, 2, 1),
    "Recall@": ("1 2 4 8", "1 2 4 8", "1 10 100 1000", "1 10 20 30 40 50"),
    "counted": ("first dropped", "first dropped", "first dropped", "strictly greater"),
}


def column(table, name):
    place = table[""].index(name)
    return {key: values[place] for key, values in table.items() if key}


def ours():
    """What the papers leave to us."""
    left = {"precision": "float32", "memory_format": "channels_last", "cpu_threads": 8}
    # Keys that the papers have no use for.
    return left | {"epoch_steps": None, "weights": None, "test_fit": "crop", "decoded_size": None}


def images():
    """RandomResizedCrop(224) with torchvision's default scale and a flip; shorter side to 256, centre crop 224."""
    crop = {"name": "random_resized_crop", "smallest": 0.08}
    return {"input_size": 224, "test_resize": 256, "augment": [crop, {"name": "flip"}]}


IMAGENET = {
    "channel_order": "rgb",
    "pixel_maximum": 1.0,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


@pytest.mark.parametrize("name", PROXY_GML[""])
def test_proxy_gml_is_the_authors_commands(name):
    facts = column(PROXY_GML, name)
    assert GML.recipes[name].model_dump() == ours() | images() | {
        # BN-Inception pretrained on ImageNet, 7x7 average pooling, linear layer to 512
        "backbone": "bn_inception",
        "pretrained": True,
        "pooling": "average",
        "head": "linear",
        "dimension": 512,
        # the trunk's scale and shift train while its statistics stay
        "batch_norm": "fixed_statistics" if facts["batch norm in eval mode while training"] else "trained",
        "batch_norm_momentum": 0.1,
        # frozen after epoch 1 and thawed after epoch 2, with gradients of zeros (torch before 2.0)
        "head_only_epochs": [2],
        "frozen_gradients": "zero",
        "epochs": facts["epochs"],
        "evaluated_epochs": [1, 2, *range(35, 51)],
        "batch_size": facts["batch, shuffled, last one kept"],
        "samples_per_class": None,
        # Adam, eps 0.01, weight decay 1e-4, network 1e-4; both rates x0.1 at the start of epochs 20 and 40; the README
        # names PyTorch 1.2, which adds epsilon before the bias correction
        "optimiser": {"name": "adam", "weight_decay": 1e-4, "epsilon": 0.01, "epsilon_added": "before_correction"},
        "learning_rates": {"network": 1e-4, "head": None, "proxies": facts["learning rate of the proxies"]},
        "schedule": {"name": "steps", "at": [20, 40], "every": None, "factor": 0.1},
        "clip_value": None,
        # RGB to BGR, values 0..255, mean [104, 117, 128], std 1
        "channel_order": "bgr",
        "pixel_maximum": 255.0,
        "mean": [104.0, 117.0, 128.0],
        "std": [1.0, 1.0, 1.0],
        "recall_at": [int(k) for k in facts["Recall@"].split()],
        "metrics": metrics(
            {"its position": "exact", "dropping the first": "drop_first"}[facts["own image dropped by"]],
            facts["k-means"],
        ),
    }
    settings = {"ratio": facts["r"], "proxies_per_class": facts["N"], "regulariser_weight": facts["lambda"]}
    assert GML.loss(f"proxy_gml_{name}") == ("proxy_gml", settings)


def metrics(counting, kmeans):
    return [{"name": "recall", "counting": counting}, {"name": "map_at_r"}, {"name": "nmi", "kmeans": kmeans}]


def proxy_an_on(name):
    """The ResNet-50 recipe of a dataset."""
    facts = column(PROXY_AN, name)
    classes, samples = map(int, facts["batch = classes x samples of each"].split(" x "))
    rate = facts["learning rate, network"]
    return (
        ours()
        | images()
        | IMAGENET
        | {
            # average + maximum pooling summed; LayerNorm, BatchNorm1d, Linear(512)
            "backbone": "resnet50",
            "pretrained": True,
            "pooling": "average_and_maximum",
            "head": "normalised",
            "dimension": 512,
            # thawed after the two frozen epochs, scale and shift too; only the running statistics stay
            "batch_norm": "fixed_statistics" if facts["trunk's batch norm frozen"] else "trained",
            "batch_norm_momentum": 0.1,
            "head_only_epochs": [1, 2],
            "frozen_gradients": "none",
            "epochs": facts["epochs"],
            "evaluated_epochs": facts["evaluated every (epochs)"],
            "batch_size": classes * samples,
            "samples_per_class": samples,
            # AdamW as PyTorch has it, weight decay 1e-4; gradients clipped by value at 10
            "optimiser": {"name": "adamw", "weight_decay": 1e-4, "epsilon": 1e-8, "epsilon_added": "after_correction"},
            "learning_rates": {
                "network": rate,
                "head": None,
                "proxies": pytest.approx(rate * facts["proxies: times"], rel=1e-12),
            },
            "schedule": {"name": "steps", "at": None, "every": facts["both x0.5 every (epochs)"], "factor": 0.5},
            "clip_value": 10.0,
            "recall_at": [int(k) for k in facts["Recall@"].split()],
            "metrics": metrics(
                {"first dropped": "drop_first", "strictly greater": "strict"}[facts["counted"]], "faiss"
            ),
        }
    )


@pytest.mark.parametrize("name", PROXY_AN[""])
def test_proxy_an_is_the_authors_files(name):
    assert AN.recipes[name].model_dump() == proxy_an_on(name)


@pytest.mark.parametrize("name", PROXY_AN[""])
def test_proxy_ans_other_networks_differ_in_network_and_input_alone(name):
    # 1024, same head, momentum 0.9; BGR, mean .4078/.4588/.502, std .0039 on 0..1
    assert AN.recipes[f"bn_inception_{name}"].model_dump() == proxy_an_on(name) | {
        "backbone": "bn_inception",
        "batch_norm_momentum": 0.9,
        "channel_order": "bgr",
        "mean": [0.4078, 0.4588, 0.502],
        "std": [0.0039, 0.0039, 0.0039],
    }
    # mean of class and distillation token; same head, its linear layer orthogonal with zero bias
    assert AN.recipes[f"deit_small_distilled_{name}"].model_dump() == proxy_an_on(name) | {
        "backbone": "deit_small_distilled",
        "pooling": "none",
        "head": "normalised_orthogonal",
        "batch_norm": "trained",
    }


def test_there_is_no_other_recipe_or_loss():
    ablation = ["SML", "SM", "SL", "S", "ML", "M", "L", "none"]
    main = [f"proxy_gml_{name}" for name in GML.recipes]
    assert list(GML.recipes) == ["cub", "cars", "sop"] and list(GML.losses) == [*main, *ablation, "own_class_alone"]
    assert GML.losses["own_class_alone"] == GML.losses["proxy_gml_cars"] | {"own_class_alone": True}
    for name in ablation:
        parts = {"own_class_bonus": "S" in name, "masked_softmax": "M" in name}
        weight = 0.3 if "L" in name else 0.0
        assert GML.losses[name] == GML.losses["proxy_gml_cars"] | parts | {"regulariser_weight": weight}
    networks = ("", "bn_inception_", "deit_small_distilled_")
    assert list(AN.recipes) == [network + name for network in networks for name in PROXY_AN[""]]
    assert {name: AN.loss(name) for name in AN.losses} == {
        "proxy_an": ("proxy_an", {"alpha": 32.0, "margin": 0.1}),
        "proxy_anchor": ("proxy_anchor", {"alpha": 32.0, "margin": 0.1}),
        "proxy_nca": ("proxy_nca", {}),
    }
    for params, paper in ((GML, "proxygml"), (AN, "proxy_an")):
        for recipe in params.recipes:
            read_params(PAPERS / paper / "params.yaml", recipe)
        for loss in params.losses:
            read_params(PAPERS / paper / "params.yaml", loss=loss)


@pytest.mark.parametrize(("params", "name"), RECIPES)
def test_learning_rates_over_all_epochs(params, name):
    recipe = params.recipes[name]
    schedule = build_schedule(recipe, 2)
    rates = [learning_rates(recipe, schedule(epoch, step)) for epoch in range(1, recipe.epochs + 1) for step in (1, 2)]
    assert rates[::2] == rates[1::2], "the same in all steps of an epoch"
    found = [(of["network"], of["proxies"]) for of in rates[::2]]
    assert all(of["head"] == of["network"] for of in rates)
    if params is GML:
        factors = [1.0] * 19 + [0.1] * 20 + [0.01] * 11
        first = (1e-4, 0.3 if name == "sop" else 0.03)
    else:
        dataset = name.rsplit("_", 1)[-1]
        length, epochs = {"cub": (5, 50), "cars": (5, 50), "sop": (20, 100), "inshop": (10, 100)}[dataset]
        factors = [0.5**part for part in range(epochs // length) for _ in range(length)]
        first = {"cub": (1.5e-4, 0.075), "cars": (1e-4, 0.01)}.get(dataset, (5e-4, 0.05))
    expected = [(first[0] * factor, first[1] * factor) for factor in factors]
    assert torch.allclose(torch.tensor(found), torch.tensor(expected), rtol=1e-6, atol=0)
    assert len(found) == len(expected)


@pytest.mark.parametrize(("params", "name"), RECIPES)
def test_evaluated_epochs(params, name):
    recipe = params.recipes[name]
    found = [epoch for epoch in range(1, recipe.epochs + 1) if evaluates(recipe, epoch)]
    if params is GML:
        assert found == [1, 2, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50]
    else:
        assert found == (list(range(2, 101, 2)) if name.endswith("sop") else list(range(1, recipe.epochs + 1)))


@lru_cache
def network_of(backbone, head):
    given = [*GML.recipes.values(), *AN.recipes.values()]
    return EmbeddingNetwork(next(recipe for recipe in given if (recipe.backbone, recipe.head) == (backbone, head)))


@pytest.mark.parametrize(("params", "name"), RECIPES)
def test_what_trains_in_which_epoch(params, name):
    """Warm-up and batch norms of each recipe; what then moves, tests/test_freezing.py shows."""
    recipe = params.recipes[name]
    network = network_of(recipe.backbone, recipe.head)
    norms = {module for module in network.backbone.modules() if isinstance(module, nn.BatchNorm2d)}
    resting = {1: False, 2: True, 3: False} if params is GML else {1: True, 2: True, 3: False}
    statistics_stay = name in ("cub", "cars", "bn_inception_cub", "bn_inception_cars")
    assert bool(norms) == ("deit" not in name)
    for epoch in (*range(1, 5), recipe.epochs):
        set_trainable(network, recipe, epoch)
        trains = not resting.get(epoch, False)
        # Scale and shift of the batch norms among them, always.
        assert {parameter.requires_grad for parameter in network.backbone.parameters()} == {trains}, epoch
        zeros = params is GML and epoch == 2
        assert all((parameter.grad is not None) == zeros for parameter in network.backbone.parameters()), epoch
        assert {norm.training for norm in norms} == ({not statistics_stay} if norms else set()), epoch
        assert all(parameter.requires_grad for parameter in network.embedding.parameters())
        assert all(module.training for module in network.norms.modules()), "the head's own norms"


def labels_of(rows):
    return torch.from_numpy(np.unique([row.label for row in rows], return_inverse=True)[1])


def training_rows(name):
    """As many images and classes as the dataset trains on, the classes of one size or of two."""
    images, classes = DATASETS[name].EXPECTED["train"][:2]
    return [Row(image, image % classes, f"{image}.jpg") for image in range(images)]


def plan(params, name, labels, whole_set=None, **subset):
    run = Run(name, params.recipes[name], "proxy_an", {}, 2024, **subset)
    return plan_batches(run, labels, whole_set or len(labels))


@pytest.mark.parametrize(
    ("params", "name", "steps"),
    [
        (GML, "cub", 184),  # 5,864 images: 183 batches of 32 and one of 8
        (GML, "cars", 252),  # 8,054: 251 and 22 left
        (GML, "sop", 1861),  # 59,551: 1,860 and 31 left
        (AN, "cub", 72),  # 72 * 81 = 5,832
        (AN, "cars", 99),  # 99 * 81 = 8,019
        (AN, "sop", 744),  # 744 * 80 = 59,520
        (AN, "inshop", 323),  # 323 * 80 = 25,840
    ],
)
def test_steps_of_an_epoch(params, name, steps):
    batches = plan(params, name, labels_of(training_rows(name)))
    assert batches.steps == len(batches.epoch(1)) == steps


def test_a_whole_number_of_batches_ends_before_the_last():
    """Strictly: of 8,100 images, 100 batches of 81, the 100th is not drawn."""
    rows = [Row(image, image % 98, "") for image in range(8100)]
    assert plan(AN, "cars", labels_of(rows)).steps == 99
    assert plan(AN, "cars", labels_of([*rows, Row(8100, 0, "")])).steps == 100
    # So it is of a partial set: int(8100 * 0.5) = 4,050 are 50 batches, of which the 50th is not drawn.
    assert plan(AN, "cars", labels_of(partial(rows, 0.5)), len(rows), rate=0.5).steps == 49


@pytest.mark.parametrize(
    ("name", "steps"),
    [("cub", [7, 14, 21, 28, 36, 43, 50, 57, 65, 72]), ("cars", [9, 19, 29, 39, 49, 59, 69, 79, 89, 99])],
)
def test_steps_of_a_partial_epoch(name, steps):
    """(int(images * rate) - 1) // 81, such as (int(586.4) - 1) // 81 = 7."""
    rows = training_rows(name)
    for tenths, expected in enumerate(steps, 1):
        kept = labels_of(partial(rows, tenths / 10))
        batches = plan(AN, name, kept, len(rows), rate=tenths / 10)
        assert batches.steps == len(batches.epoch(1)) == expected, tenths


@pytest.mark.parametrize("gamma", [10, 20, 50, 100, 150])
def test_steps_of_an_imbalanced_epoch(gamma):
    """As many as the kept images give, by the strict rule; CUB's smallest training class has 41 images."""
    rows = [row for row in training_rows("cub") if row.label or row.image < 4100]
    kept = [max(1, int(41 * gamma ** (-rank / 99))) for rank in range(100)]
    chosen = imbalanced(rows, gamma, 2024, {label: f"{label:03}" for label in range(100)})
    batches = plan(AN, "cub", labels_of(chosen), gamma=gamma)
    assert batches.steps == len([count for count in range(0, sum(kept), 81) if count + 81 < sum(kept)])
    assert {len(members) for members in batches.members} == set(kept)
