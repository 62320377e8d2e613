"""Parameters are checked first: one message with file, key and fix."""

import copy
import json
import re
from pathlib import Path

import pytest
import yaml
from ruamel.yaml import YAML

from pipeline.base.config import read_params, read_yaml
from pipeline.base.files import BadInputError
from pipeline.base.recipe import Recipe
from pipeline.runs.run import checked_run
from tests import GRID

PARAMS = GRID / "params.yaml"


def changed(tmp_path, edit):
    content = copy.deepcopy(read_yaml(PARAMS))
    edit(content)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def steps(at):
    return {"name": "steps", "at": at, "factor": 0.2}


def adamw(**settings):
    return {"name": "adamw", "weight_decay": 0.0001} | settings


RECIPE = ("recipes", "glyphs")
OURS = {"file": "ours.pth", "sha256": "0" * 64}
WRONG = [
    (RECIPE, {"batch_sise": 32}, r"recipes\.glyphs\.batch_sise: unknown key, did you mean batch_size\?"),
    (RECIPE, {"epochs": "5"}, r"recipes\.glyphs\.epochs: .*integer.* found '5'"),
    (RECIPE, {"epochs": 0}, r"recipes\.glyphs\.epochs: .* greater than or equal to 1, found 0"),
    (RECIPE, {"epochs": True}, r"recipes\.glyphs\.epochs: .* found True"),
    (
        RECIPE,
        {"learning_rates": {"network": float("nan"), "proxies": 0.1}},
        r"recipes\.glyphs\.learning_rates\.network: .* found nan",
    ),
    (RECIPE, {"learning_rates": {"network": 0.1}}, r"recipes\.glyphs\.learning_rates\.proxies: this key is missing"),
    (RECIPE, {"optimiser": "adamw"}, r"recipes\.glyphs\.optimiser: write \{name: FILE, \.\.\.\} .* found 'adamw'"),
    (RECIPE, {"optimiser": {"name": "sgdd"}}, r"recipes\.glyphs\.optimiser: there is no file sgdd\.py .* adam, .* sgd"),
    (RECIPE, {"optimiser": {"name": "../adam"}}, r"recipes\.glyphs\.optimiser: write \{name: FILE"),
    (RECIPE, {"optimiser": {"name": "adam"}}, r"recipes\.glyphs\.optimiser\.weight_decay: this key is missing"),
    (
        RECIPE,
        {"optimiser": {"name": "adam", "weight_decay": 0.0, "epsilom": 1}},
        r"recipes\.glyphs\.optimiser\.epsilom: unknown key, did you mean epsilon\?",
    ),
    (
        RECIPE,
        {"optimiser": {"name": "sgd", "weight_decay": 0.0, "momentum": 0.9, "epsilon": 1e-8}},
        r"recipes\.glyphs\.optimiser\.epsilon: unknown key, choose among momentum, weight_decay, nesterov",
    ),
    (RECIPE, {"optimiser": {"name": "adam/x", "weight_decay": 0.0}}, r"optimiser: adam has no variants: write adam"),
    (RECIPE, {"optimiser": {"name": "torch"}}, r"optimiser: torch holds several of a library: .* as in torch/NAME"),
    (RECIPE, {"optimiser": {"name": "torch/SDG"}}, r"optimiser: SDG is not one of the names .* did you mean SGD\?"),
    (RECIPE, {"optimiser": {"name": "torch/LBFGS"}}, r"optimiser: LBFGS is not one of the names"),
    (RECIPE, {"optimiser": {"name": "torch/SGD", "lr": 0.1}}, r"optimiser: lr: unknown key, choose among momentum"),
    (RECIPE, {"optimiser": {"name": "torch/SGD", "momentum": "0.9"}}, r"momentum: give a number, found '0\.9'"),
    (RECIPE, {"optimiser": {"name": "torch/SGD", "momentum": -1.0}}, r"optimiser: Invalid momentum value: -1\.0"),
    (RECIPE, {"optimiser": {"name": "torch/Adam", "betas": [0.9]}}, r"optimiser: betas: give a list of 2 numbers"),
    (RECIPE, {"optimiser": {"name": "torch/SGD", "momentum": float("nan")}}, r"infinity and NaN are no settings"),
    (RECIPE, {"schedule": {"name": "steps", "factor": 0.1}}, r"schedule: give one of at, .* and every"),
    (RECIPE, {"schedule": {"name": "steps", "factor": 0.1, "at": [2], "every": 2}}, r"schedule: give one of at, "),
    (RECIPE, {"schedule": {"name": "cosine", "warm_up": 5.0}}, r"schedule: warm_up: 5\.0 epochs leave none of the rec"),
    (RECIPE, {"schedule": {"name": "torch/ReduceLROnPlateau"}}, r"schedule: ReduceLROnPlateau is not one of the"),
    (RECIPE, {"schedule": {"name": "torch/StepLR"}}, r"schedule: step_size: this key is missing"),
    (
        RECIPE,
        {"schedule": {"name": "torch/StepLR", "step_size": 2, "gama": 1}},
        r"gama: unknown key, did you mean gamma",
    ),
    (
        RECIPE,
        {"schedule": {"name": "torch/OneCycleLR", "max_lr": 1.0, "cycle_momentum": True}},
        r"cycle_momentum: unknown key",
    ),
    *(
        (RECIPE, {key: 1}, rf"recipes\.glyphs\.{key}: this key has a new place: {re.escape(place)}")
        for key, place in Recipe.MOVED.items()
    ),
    (RECIPE, {"backbone": "smal"}, r"recipes\.glyphs\.backbone: there is no file smal\.py .* small"),
    (RECIPE, {"mean": [0.1, 0.2]}, r"recipes\.glyphs\.mean: small takes 1 channels"),
    (RECIPE, {"pooling": "average"}, r"recipes\.glyphs\.pooling: small gives vectors, .* use none"),
    (
        RECIPE,
        {"backbone": "resnet50"},
        r"recipes\.glyphs\.pooling: resnet50 gives maps, which must be pooled: use average or average_and_max",
    ),
    (RECIPE, {"pretrained": True}, r"recipes\.glyphs\.pretrained: small has no published weights, use false"),
    (RECIPE, {"backbone": "timm/Not A Name"}, r"recipes\.glyphs\.backbone: after the slash write a name"),
    (RECIPE, {"backbone": "resnet18"}, r"pipeline/networks/backbones: .*, or a network of .* timm as timm/resnet18"),
    (RECIPE, {"backbone": "resnet50.a1_in1k"}, r"backbone: write timm/resnet50\.a1_in1k for a network of .* timm"),
    (RECIPE, {"backbone": "timn/resnet18"}, r"recipes\.glyphs\.backbone: there is no file timn\.py .* timm"),
    (RECIPE, {"weights": OURS}, r"recipes\.glyphs\.pretrained: it is false, but weights are given: use true"),
    (RECIPE, {"weights": OURS | {"sha256": "0" * 63}}, r"recipes\.glyphs\.weights\.sha256: give the 64 digits"),
    (RECIPE, {"weights": OURS | {"file": "../ours.pth"}}, r"recipes\.glyphs\.weights\.file: give the name of a file"),
    (RECIPE, {"weights": OURS | {"drops": []}}, r"recipes\.glyphs\.weights\.drops: unknown key, did you mean drop\?"),
    (RECIPE, {"pooling": "class_token"}, r"recipes\.glyphs\.pooling: only timm's networks have a class token"),
    (
        RECIPE,
        {"learning_rates": {"network": 0.1, "proxies": 0.1, "head": 0.0}},
        r"recipes\.glyphs\.learning_rates\.head: .* greater than 0",
    ),
    (RECIPE, {"head": "linaer"}, r"recipes\.glyphs\.head: .*'linear'.* found 'linaer'"),
    (RECIPE, {"recall_at": [2, 4]}, r"recipes\.glyphs\.recall_at: 1 is missing"),
    (RECIPE, {"metrics": ["map_at_r"]}, r"recipes\.glyphs\.metrics: recall is missing"),
    (RECIPE, {"metrics": ["recall", "recall"]}, r"recipes\.glyphs\.metrics: 'recall' comes twice|recall comes twice"),
    (RECIPE, {"metrics": ["recall", "nmmi"]}, r"recipes\.glyphs\.metrics\.nmmi: there is no file nmmi\.py .*, nmi"),
    (RECIPE, {"metrics": ["recall", {"name": "nmi", "kmean": 1}]}, r"metrics\.nmi\.kmean: .*did you mean kmeans\?"),
    (RECIPE, {"counting": "exact"}, r"counting: this key has a new place: metrics, as in"),
    (("losses", "proxy_an"), {"alpha": -1.0}, r"losses\.proxy_an\.alpha: .* greater than 0, found -1"),
    (("losses", "proxy_an"), {"alfa": 1.0}, r"losses\.proxy_an\.alfa: unknown key, did you mean alpha\?"),
    (("losses", "proxy_gml"), {"ratio": 1.5}, r"losses\.proxy_gml\.ratio: .* less than or equal to 1, found 1\.5"),
    (("losses", "proxy_gml"), {"proxies_per_class": 0}, r"losses\.proxy_gml\.proxies_per_class: .* found 0"),
    (RECIPE, {"evaluated_epochs": [0]}, r"recipes\.glyphs\.evaluated_epochs: .* number n from 1, for every n epochs"),
    (RECIPE, {"schedule": steps([0])}, r"recipes\.glyphs\.schedule\.at\.0: .* greater than or equal to 1, found 0"),
    (RECIPE, {"schedule": steps([6])}, r"recipes\.glyphs\.schedule: at: there is no epoch 6, the recipe has 5"),
    (RECIPE, {"schedule": steps([4, 4])}, r"recipes\.glyphs\.schedule: 4 comes twice"),
    (RECIPE, {"head_only_epochs": [7]}, r"recipes\.glyphs\.head_only_epochs: there is no epoch 7"),
    (RECIPE, {"evaluated_epochs": 6}, r"recipes\.glyphs\.evaluated_epochs: none of the 5 epochs is evaluated"),
    (RECIPE, {"samples_per_class": 3}, r"recipes\.glyphs\.samples_per_class: 3 does not divide the batch_size"),
    (RECIPE, {"augment": {"name": "flip"}}, r"recipes\.glyphs\.augment: .*list"),
    (RECIPE, {"augment": [{"name": "flop"}]}, r"recipes\.glyphs\.augment\.0: there is no file flop\.py"),
    (RECIPE, {"augment": [{"name": "flip", "p": 1}]}, r"recipes\.glyphs\.augment\.0\.p: unknown key"),
    (
        RECIPE,
        {"augment": [{"name": "flip"}, {"name": "random_resized_crop", "smallest": 0.5}]},
        r"recipes\.glyphs\.augment\.1: random_resized_crop comes first",
    ),
    (
        RECIPE,
        {"augment": [{"name": "random_resized_crop", "smallest": 0.0}]},
        r"recipes\.glyphs\.augment\.0\.smallest: .* greater than 0",
    ),
    *(
        (
            RECIPE,
            {"augment": [{"name": "shift", "pixels": size}]},
            "augment.0: pixels: .* move an image of 32 out of itself",
        )
        for size in (32, 10**9)
    ),
    (RECIPE, {"augment": [{"name": "torchvision/Resize", "size": 8}]}, r"augment\.0: Resize is not one of the names"),
    (RECIPE, {"augment": [{"name": "torchvision/ColorJitter", "hue": 3.0}]}, r"augment\.0: .*hue"),
    (RECIPE, {"test_resize": 40}, r"recipes\.glyphs\.test_resize: with the test_fit stored it has no effect"),
    (RECIPE, {"test_fit": "crop"}, r"recipes\.glyphs\.test_resize: this key is missing"),
    (RECIPE, {"test_fit": "crop", "test_resize": 16}, r"recipes\.glyphs\.test_resize: it is less than input_size"),
    (RECIPE, {"input_size": 28}, r"recipes\.glyphs\.input_size: small takes only images of 32 pixels"),
    (
        RECIPE,
        {"channel_order": "bgr"},
        r"recipes\.glyphs\.channel_order: small takes images of one channel, .* use rgb",
    ),
    (RECIPE, {"optimiser": adamw(epsilon=0.0)}, r"recipes\.glyphs\.optimiser\.epsilon: .* greater than 0"),
    (RECIPE, {"optimiser": adamw(epsilon=1e-60)}, r"optimiser\.epsilon: float32 cannot hold this value"),
    (RECIPE, {"optimiser": adamw(weight_decay=-1.0)}, r"optimiser\.weight_decay: .* greater than or equal to 0"),
    (("losses", "proxy_an"), {"loss": "proxy_am"}, r"losses\.proxy_an: there is no file proxy_am\.py"),
    (("tables", "glyphs", "rows"), {"loss": ["proxy_ann"]}, r"tables\.glyphs\.rows\.loss: proxy_ann has no settings"),
    (("tables", "glyphs"), {"rows": {"dimension": [8]}}, r"tables\.glyphs\.loss: .* missing and the rows name no loss"),
    (("tables", "glyphs"), {"datasets": ["cub"]}, r"tables\.glyphs: cub has no recipe, add recipes\.cub"),
    (("tables", "glyphs"), {"seeds": []}, r"tables\.glyphs\.seeds: .* at least 1 item"),
    (("machine",), {"device": "gpu"}, r"machine\.device: .* found 'gpu'"),
]


RECIPE_BOUNDS = [
    ("epochs", 10**23, "less than or equal to 100000"),
    ("evaluated_epochs", 10**23, "from 1, for every n epochs"),
    ("dimension", 10**8, "less than or equal to 65536"),
    ("dimension", 2**63, "less than or equal to 65536"),
    ("batch_size", 2**40, "less than or equal to 1000000"),
    ("cpu_threads", 10**6, "less than or equal to 1024"),
    ("cpu_threads", 2**31, "less than or equal to 1024"),
    ("cpu_threads", 0, "greater than or equal to 1"),
    ("input_size", 10**6, "less than or equal to 4096"),
    ("test_resize", 10**9, "less than or equal to 4096"),
    ("recall_at", [1, 10**30], "less than or equal to 1000000"),
    ("recall_at", [1, 2, 1], "1 comes twice"),
    ("head_only_epochs", [1, 1], "1 comes twice"),
    ("learning_rates", {"network": 1e39, "proxies": 0.1}, "float32 cannot hold this value"),
    ("clip_value", 1e-60, "float32 cannot hold this value"),
    ("std", [1e-60], "float32 cannot hold this value"),
    ("mean", [-1e300], "float32 cannot hold this value"),
    ("backbone", "../small", "letters a-z"),
]
MACHINE_BOUNDS = [("workers", -1, "greater than or equal to 0"), ("workers", 10**6, "less than or equal to 1024")]


def table(**update):
    """An edit of the table."""
    return lambda content: content["tables"]["glyphs"].update(update)


def loss_rows(*names):
    """An edit that gives losses of these names to the rows."""

    def edit(content):
        content["losses"] |= {name: {"loss": "proxy_nca"} for name in names}
        content["tables"]["glyphs"]["rows"] = {"loss": list(names)}

    return edit


def renamed(section, name):
    """An edit that renames the entry of a section that the table uses, the table's mention of it included."""

    def edit(content):
        old = "proxy_nca" if section == "losses" else "glyphs"
        content[section][name] = {"loss": old} if section == "losses" else content[section].pop(old)
        if section == "losses":
            content["tables"]["glyphs"]["rows"]["loss"] = [name]
        if section == "recipes":
            content["tables"]["glyphs"]["datasets"] = [name]

    return edit


ALPHA = {"loss": "proxy_an", "rows": {"alpha": [12.0, 32.0]}}
OUT_OF_FOLDER = [
    "../../../escaped", "/abs/path", "..", ".", "", "a/b", "a\nb", "a\0b", "-a", ".a", "raw_pixels", "Raw_Pixels",
    "x" * 300, "a b", "ä", "a:b", "a\\b", "$(x)", "a\u2028b",
]  # fmt: skip
BAD_NAMES = ["../x", "/x", "", "a b", "a/b", ".a", "-a", "a.b", "a\n", "x" * 300, "é"]
TABLES = [
    *((f"row {value[:20]!r}", loss_rows(value), r"tables\.glyphs\.rows: ") for value in OUT_OF_FOLDER),
    *(
        (f"{section} {name[:20]!r}", renamed(section, name), "a name has ")
        for section in ("tables", "recipes", "losses")
        for name in BAD_NAMES
    ),
    ("dataset ../x", table(datasets=["../x"]), r"datasets\.0: a name has only the letters"),
    (
        "the key loss ../x",
        table(loss="../x", rows={"dimension": [8]}),
        r"tables\.glyphs\.loss: a name has only the letters",
    ),
    ("1 and 1.0", table(loss="proxy_an", rows={"alpha": [1, 1.0]}), r"rows\.alpha: 1 and 1\.0 mean the same"),
    ("1 and '1'", table(loss="proxy_an", rows={"alpha": [1, "1"]}), r"rows\.alpha: 1 and '1' mean the same"),
    ("A and a", loss_rows("A", "a"), r"rows\.loss: 'A' and 'a' mean the same"),
    (
        "a-b with c, a with b-c",
        lambda content: (
            loss_rows("a", "a-b")(content),
            content["recipes"].update({f"{of}_glyphs": content["recipes"]["glyphs"] for of in ("b-c", "c")}),
            content["tables"]["glyphs"]["rows"].update(recipe=["b-c", "c"]),
        ),
        r"tables\.glyphs\.rows: \('a', 'b-c'\) and \('a-b', 'c'\) both name the folder a-b-c",
    ),
    ("a row twice", loss_rows("a", "a"), r"rows\.loss: 'a' comes twice"),
    ("a seed twice", table(seeds=[0, 1, 0]), r"seeds: 0 comes twice"),
    ("a dataset twice", table(datasets=["glyphs", "glyphs"]), r"datasets: 'glyphs' comes twice"),
    (
        "tables T and t",
        lambda content: content["tables"].update(Glyphs=content["tables"]["glyphs"]),
        "tables: .* mean the same",
    ),
    ("seed -1", table(seeds=[-1]), r"seeds\.0: .* greater than or equal to 0"),
    ("seed 3,000,000,000", table(seeds=[3_000_000_000]), r"seeds\.0: .* less than or equal to 2147483647"),
    ("seed True", table(seeds=[True]), r"seeds\.0: .* found True"),
    ("an unknown axis", table(loss="proxy_an", rows={"alfa": [1.0]}), r"rows\.alfa: unknown key, did you mean alpha"),
    (
        "an axis of another loss",
        table(loss="proxy_nca", rows={"alpha": [1.0]}),
        r"rows\.alpha: proxy_nca and recipes have no",
    ),
    (
        "an axis of one of two losses",
        table(rows={"loss": ["proxy_an", "proxy_nca"], "alpha": [1.0]}),
        r"rows\.alpha: proxy_nca and recipes have no",
    ),
    ("dimension: big", table(loss="proxy_an", rows={"dimension": ["big"]}), r"rows\.dimension: .* found 'big'"),
    ("dimension: 0", table(loss="proxy_an", rows={"dimension": [8, 0]}), r"rows\.dimension: .* found 0"),
    ("dimension: '8'", table(loss="proxy_an", rows={"dimension": ["8"]}), r"rows\.dimension: .* found '8'"),
    ("pooling: sum", table(loss="proxy_an", rows={"pooling": ["sum"]}), r"rows\.pooling: .* found 'sum'"),
    ("backbone: big", table(loss="proxy_an", rows={"backbone": ["big"]}), r"backbone: there is no file big\.py"),
    (
        "a row that contradicts",
        table(loss="proxy_an", rows={"batch_size": [32, 33], "samples_per_class": [2]}),
        "batch_size 33, samples_per_class 2 in recipes.glyphs: samples_per_class",
    ),
    (
        "alpha: true",
        table(loss="proxy_an", rows={"alpha": [True]}),
        r"rows\.alpha\.0: a row's value is a text or a number",
    ),
    (
        "alpha: null",
        table(loss="proxy_an", rows={"alpha": [None]}),
        r"rows\.alpha\.0: a row's value is a text or a number",
    ),
    ("alpha: .inf", table(loss="proxy_an", rows={"alpha": [float("inf")]}), r"rows\.alpha\.0: a row's value is a text"),
    ("a list as a value", table(loss="proxy_an", rows={"mean": [[0.1]]}), r"rows\.mean\.0: a row's value is a text"),
    (
        "an old key",
        table(loss="proxy_an", rows={"epsilon_added": ["before_correction"]}),
        r"rows\.epsilon_added: this key has a new place: optimiser\.epsilon_added",
    ),
    (
        "a nested key that its file does not have",
        table(loss="proxy_an", rows={"optimiser.momentum": [0.9]}),
        r"optimiser\.momentum 0\.9 in recipes\.glyphs: optimiser\.momentum: unknown key",
    ),
    (
        "a path into a number",
        table(loss="proxy_an", rows={"epochs.x": [1]}),
        r"rows\.epochs\.x: unknown key, did you mean epochs",
    ),
    ("no values", table(loss="proxy_an", rows={"alpha": []}), r"rows\.alpha: .* at least 1 item"),
    ("rate: 2.0", table(loss="proxy_an", rows={"rate": [2.0]}), r"rows\.rate: found 2\.0, give numbers with a point"),
    ("rate: 1", table(loss="proxy_an", rows={"rate": [1]}), r"rows\.rate: found 1, give numbers with a point"),
    ("gamma: 10^400", table(loss="proxy_an", rows={"gamma": [10**400]}), r"rows.*gamma|tables\.glyphs\.rows: "),
    ("gamma: 0", table(loss="proxy_an", rows={"gamma": [0]}), r"rows\.gamma: found 0, give whole numbers"),
    ("gamma: 10.5", table(loss="proxy_an", rows={"gamma": [10.5]}), r"rows\.gamma: found 10\.5, give whole numbers"),
    ("a subset, held out", table(loss="proxy_an", rows={"rate": [0.1]}, protocols=["held_out"]), "leave held_out out"),
    ("rate and gamma", table(loss="proxy_an", rows={"rate": [0.1], "gamma": [10]}), "rate and gamma each choose"),
    (
        "-0.1 first",
        table(loss="proxy_an", rows={"margin": [-0.1]}),
        r"rows: margin -0\.1: its first value begins with -",
    ),
    ("a text that is a word", table(loss="proxy_an", rows={"pooling": ["null"]}), "would be read as None"),
    ("losses that are numbers", table(rows={"loss": [1]}), r"rows\.loss: 1 is a number, give names"),
    ("two ways to say the loss", table(loss="proxy_an"), r"tables\.glyphs\.loss: the rows name the losses, remove"),
    ("10^20 runs", table(loss="proxy_an", rows={f"k{n}": list(range(100)) for n in range(10)}), "the limit is 10,000"),
]
ELSEWHERE = [
    ("a loss without its file", {"losses": {"mine": {"alpha": 1.0}}}, r"losses\.mine: there is no file mine\.py"),
    (
        "a key of another loss",
        {"losses": {"proxy_anchor": {"alfa": 1.0}}},
        r"losses\.proxy_anchor\.alfa: unknown key, did",
    ),
    (
        "a missing key of another loss",
        {"losses": {"proxy_gml": None}},
        r"losses\.proxy_gml\.ratio: this key is missing",
    ),
    (
        "a network without its file",
        {"recipes": {"glyphs": {"backbone": "big"}}},
        r"glyphs\.backbone: there is no file big",
    ),
    ("a loss that is none", {"losses": {"proxy_nca": {"loss": 3}}}, r"losses\.proxy_nca: .*3"),
]


@pytest.mark.parametrize(("key", "value", "message"), [*RECIPE_BOUNDS, *MACHINE_BOUNDS])
def test_numbers_have_bounds(tmp_path, key, value, message):
    part = "machine" if key == "workers" else "recipes.glyphs"

    def edit(content):
        (content["machine"] if key == "workers" else content["recipes"]["glyphs"]).update({key: value})

    with pytest.raises(BadInputError, match=rf"{part}\.{key}[.0-9a-z]*: .*{message}"):
        read_params(changed(tmp_path, edit))


@pytest.mark.parametrize(("edit", "message"), [case[1:] for case in TABLES], ids=[case[0] for case in TABLES])
def test_what_a_table_cannot_have_is_named_wherever_the_file_is_read(tmp_path, edit, message):
    path = changed(tmp_path, edit)
    with pytest.raises(BadInputError, match=message) as raised:
        read_params(path)
    assert str(raised.value).startswith(f"{path}:") and len(str(raised.value)) < 2000


@pytest.mark.parametrize(("update", "message"), [case[1:] for case in ELSEWHERE], ids=[case[0] for case in ELSEWHERE])
def test_mistakes_in_entries_that_are_not_this_runs_are_named(tmp_path, update, message):
    def edit(content):
        for section, entries in update.items():
            for name, keys in entries.items():
                content[section][name] = {} if keys is None else content[section].get(name, {}) | keys

    with pytest.raises(BadInputError, match=message):
        read_params(changed(tmp_path, edit), "glyphs", "proxy_an")


def test_values_of_rows_are_checked_by_the_loss_of_a_run(tmp_path):
    path = changed(tmp_path, table(loss="proxy_an", rows={"alpha": [12.0, 0.0]}))
    assert read_params(path).tables["glyphs"].rows == {"alpha": [12.0, 0.0]}
    with pytest.raises(BadInputError, match=r"tables\.glyphs\.rows\.alpha: .* greater than 0, found 0"):
        read_params(path, "glyphs", "proxy_an")


def test_a_key_that_rows_give_may_be_missing_in_the_entry(tmp_path):
    def edit(content):
        del content["losses"]["proxy_an"]["alpha"]
        content["tables"]["glyphs"].update(loss="proxy_an", rows={"alpha": [12.0, 32.0]})

    path = changed(tmp_path, edit)
    assert read_params(path, "glyphs", "proxy_an", ["loss.alpha=12.0"]).losses["proxy_an"]["alpha"] == 12.0


@pytest.mark.parametrize(("where", "update", "message"), WRONG)
def test_a_wrong_value_is_named(tmp_path, monkeypatch, where, update, message):
    monkeypatch.delenv("PIPELINE_DEVICE")

    def edit(content):
        for part in where:
            content = content[part]
        content.update(update)

    path = changed(tmp_path, edit)
    loss = where[1] if where[0] == "losses" else "proxy_an"
    with pytest.raises(BadInputError, match=message) as raised:
        checked_run(path, "glyphs", loss, 0, None, [])
    assert str(raised.value).startswith(f"{path}:")


def test_a_missing_key_is_named(tmp_path):
    path = changed(tmp_path, lambda content: (content["recipes"]["glyphs"].pop("std"), content.pop("machine")))
    with pytest.raises(BadInputError) as raised:
        read_params(path)
    assert "recipes.glyphs.std: this key is missing" in str(raised.value)
    assert "machine: this key is missing" in str(raised.value)


def test_another_losses_mistake_is_not_this_runs(tmp_path):
    path = changed(tmp_path, lambda content: content["losses"]["proxy_gml"].update(ratio=7.0))
    assert read_params(path, loss="proxy_an").losses["proxy_an"]["alpha"] == 32
    with pytest.raises(BadInputError, match="ratio"):
        read_params(path, loss="proxy_gml")


def test_a_run_changes_its_own_recipe_and_loss(tmp_path):
    changes = ["recipe.dimension=16", "recipe.optimiser.epsilon=1e-2", "loss.alpha=12.0"]
    params = read_params(PARAMS, "glyphs", "proxy_an", changes)
    assert (params.recipes["glyphs"].dimension, params.recipes["glyphs"].optimiser["epsilon"]) == (16, 0.01)
    assert params.losses["proxy_an"]["alpha"] == 12 and params.losses["proxy_anchor"]["alpha"] == 32
    with pytest.raises(BadInputError, match=r"dimensoin: unknown key, did you mean dimension\?"):
        read_params(PARAMS, "glyphs", "proxy_an", ["recipe.dimensoin=16"])
    with pytest.raises(BadInputError, match=r"recipe\.dimension is set twice"):
        read_params(PARAMS, "glyphs", "proxy_an", ["recipe.dimension=16", "recipe.dimension=8"])
    with pytest.raises(BadInputError, match=r"--set recipe\.mean=\[1 is not YAML"):
        read_params(PARAMS, "glyphs", "proxy_an", ["recipe.mean=[1"])
    for wrong in ("dimension=16", "recipe.dimension", "losses.alpha=1", "recipe.=1", "=1", ""):
        with pytest.raises(BadInputError, match=r"write recipe\.KEY=VALUE or loss\.KEY=VALUE"):
            read_params(PARAMS, "glyphs", "proxy_an", [wrong])
    with pytest.raises(BadInputError, match=r"recipes\.cub: there is no such entry to set epochs of"):
        read_params(PARAMS, "cub", "proxy_an", ["recipe.epochs=1"])


def test_an_entry_of_losses_may_name_its_file(tmp_path):
    path = changed(tmp_path, lambda content: content["losses"].update(small={"loss": "proxy_an", "alpha": 12.0}))
    with pytest.raises(BadInputError, match=r"losses\.small\.margin: this key is missing"):
        read_params(path, loss="small")
    params = changed(
        tmp_path, lambda content: content["losses"].update(small={"loss": "proxy_an", "alpha": 12.0, "margin": 0.1})
    )
    assert read_params(params, loss="small").loss("small") == ("proxy_an", {"alpha": 12.0, "margin": 0.1})


READ = {
    "~": None, "null": None, "NULL": None, "": None, "true": True, "False": False, "0": 0, "-0": 0, "+1": 1, "12": 12,
    "1e-05": 1e-5, "1e4": 1e4, "-2.5E+3": -2500.0, "1.e3": 1000.0, "12e03": 12000.0, "0.5": 0.5, ".5": 0.5, "-.5": -0.5,
    "1.": 1.0, "00.5": 0.5, "y": "y", "n": "n", "none": "none", "tRue": "tRue", "1e": "1e", "1.2.3": "1.2.3",
    "'010'": "010", '"yes"': "yes", "1e1_0": "1e1_0", "a b": "a b",
}  # fmt: skip
DIFFERS = [
    "yes", "No", "ON", "off", "010", "08", "-010", "0x1", "0b1", "0o17", "1_000", "1_0.5", "1:30", "190:20:30.15",
    "2024-01-01", "=",
]  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_words_and_numbers_are_read_as_dvc_reads_them(tmp_path, text):
    path = tmp_path / "words.yaml"
    path.write_text(f"a: {text}\nb: [{text or 'null'}]\n")
    found = read_yaml(path)
    assert found == YAML(typ="safe").load(path) == {"a": READ[text], "b": [READ[text]]}
    assert type(found["a"]) is type(READ[text])


@pytest.mark.parametrize("path", sorted(PARAMS.parent.glob("**/p*s*.yaml")), ids=lambda path: str(path.parent.name))
def test_files_are_read_as_dvc_reads_them(path):
    assert read_yaml(path) == YAML(typ="safe").load(path)


@pytest.mark.parametrize("text", DIFFERS)
@pytest.mark.parametrize("form", ["value", "key", "list", "--set"])
def test_what_readers_of_yaml_differ_over_is_refused_with_its_line(tmp_path, text, form):
    with pytest.raises(BadInputError, match=rf"line [12]: {re.escape(text)}: readers of YAML differ .* quote it"):
        if form == "--set":
            read_params(PARAMS, "glyphs", "proxy_an", [f"recipe.epochs={text}"])
        path = tmp_path / "words.yaml"
        path.write_text({"value": f"a: 1\nb: {text}\n", "key": f"a: 1\n{text}: 1\n"}.get(form, f"- a\n- {text}\n"))
        read_yaml(path)


NOT_READ = {
    "a: 1\nb: {c: 1}\na: 2\n": "line 3: the key a is in line 1 already",
    "a: {b: 1, 'b': 2}\n": "line 1: the key b is in line 1 already",
    "a: &a {b: 1}\nc: {<<: *a, <<: *a}\n": "line 2: the key << is in line 2 already",
    "a: [1\n": "is not YAML: line 2",
    "a: b: c\n": "is not YAML: line 1, column 5: mapping values",
    "a: *b\n": "is not YAML: line 1, column 4: found undefined alias",
    "a: 1\n---\na: 2\n": "is not YAML: line 2.* another document",
    "\ta: 1\n": "is not YAML: line 1, column 1",
    "a: !!python/name:os.system x\n": "line 1: 'x' has the tag .* leave it out",
    "a: !!int '010'\n": "line 1: '010' has the tag",
    "a: !!set {b: null}\n": "line 1: the tag .*set is not known here",
    "a: &b [*b]\n": r"line 1: \*b is inside of what it refers to",
    "? [a]\n: 1\n": "line 1: a key has to be a text",
    "1: a\n": "line 1: the key 1 is no text, quote it",
    "null: a\n": "line 1: the key null is no text, quote it",
    "a: " + "9" * 5000: "line 1: a number of 5,000 digits",
    "[" * 100_000: "line 1: lists and mappings are nested more than 50 deep",
    "a: <<\n": "is not YAML: line 1",
    "a: b\0\n": "is not YAML: .*control characters",
    b"\xff\xfe\x00": "is not text in UTF-8",
    b"a: caf\xe9\n": "is not text in UTF-8",
}


@pytest.mark.parametrize("text", NOT_READ, ids=list(NOT_READ.values()))
def test_what_is_not_yaml_is_named_with_its_line(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInputError, match=NOT_READ[text]) as raised:
        read_yaml(path)
    assert str(raised.value).startswith(str(path)) and len(str(raised.value)) < 1000


@pytest.mark.parametrize("content", ["", "[]", "3", "a", "tables: 3", "{machine: {device: {a: {b: [1, 2]}}}}"])
def test_a_file_of_another_kind_is_named(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_text(content)
    with pytest.raises(BadInputError, match=rf"{path}:\n  "):
        read_params(path)


def test_a_folder_and_a_file_that_is_closed_to_us_are_named(tmp_path, monkeypatch):
    with pytest.raises(BadInputError, match="cannot be read: Is a directory"):
        read_params(tmp_path)

    def refuse(*arguments, **keywords):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(BadInputError, match="cannot be read: Permission denied"):
        read_params(PARAMS)


def test_an_anchor_is_no_door_to_another_entry(tmp_path):
    path = tmp_path / "params.yaml"
    text = (
        PARAMS.read_text()
        .replace("  glyphs: # a run", "  glyphs: &of # a run")
        .replace("\nlosses:", "  other: *of\n\nlosses:")
    )
    path.write_text(text)
    params = read_params(path, "glyphs", "proxy_an", ["recipe.dimension=16"])
    assert (params.recipes["glyphs"].dimension, params.recipes["other"].dimension) == (16, 64)


def test_broken_and_missing_files_are_named(tmp_path):
    with pytest.raises(BadInputError, match="missing"):
        read_params(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(BadInputError, match=r"broken\.yaml is not YAML"):
        read_params(tmp_path / "broken.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(BadInputError, match=r"empty\.yaml"):
        read_params(tmp_path / "empty.yaml")


def test_a_whole_number_of_a_float_is_the_same_run():
    """As `dvc exp run -S losses.proxy_an.alpha=12` writes it where a file has 12.0."""
    runs = [
        checked_run(PARAMS, "glyphs", "proxy_an", 0, None, [f"loss.alpha={value}"]) for value in ("12", "12.0", "13")
    ]
    assert json.dumps(runs[0].settings()) == json.dumps(runs[1].settings()) != json.dumps(runs[2].settings())
    proxies = checked_run(PARAMS, "glyphs", "proxy_gml", 0, None, ["loss.proxies_per_class=2"]).loss_settings
    assert type(proxies["proxies_per_class"]) is int


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e400", "[1.0, .nan]", "{a: .inf}"])
def test_a_setting_of_a_loss_is_finite(tmp_path, value):
    """Also one that no run of the file uses: its key could not be computed."""
    text = (GRID / "params.yaml").read_text()
    path = tmp_path / "params.yaml"
    path.write_text(re.sub(r"alpha: 32\.0", f"alpha: {value}", text))
    with pytest.raises(
        BadInputError, match=r"losses\.proxy_an\.alpha: a setting is a finite number, found (nan|-?inf)"
    ):
        read_params(path)
