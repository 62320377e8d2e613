"""Parameters are checked first: one message with file, key and mend."""

import copy
from pathlib import Path

import pytest
import yaml
from ruamel.yaml import YAML

from pipeline.base.config import read_params, read_yaml
from pipeline.base.files import BadInputError

PARAMS = Path(__file__).parent.parent / "params.yaml"


def changed(tmp_path, edit):
    content = copy.deepcopy(read_yaml(PARAMS))
    edit(content)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


RECIPE = ("recipes", "glyphs")
WRONG = [
    (RECIPE, {"batch_sise": 32}, r"recipes\.glyphs\.batch_sise: unknown key, did you mean batch_size\?"),
    (RECIPE, {"epochs": "5"}, r"recipes\.glyphs\.epochs: .*integer.* found '5'"),
    (RECIPE, {"epochs": 0}, r"recipes\.glyphs\.epochs: .* greater than or equal to 1, found 0"),
    (RECIPE, {"epochs": True}, r"recipes\.glyphs\.epochs: .* found True"),
    (RECIPE, {"network_learning_rate": float("nan")}, r"recipes\.glyphs\.network_learning_rate: .* found nan"),
    (RECIPE, {"optimiser": "sgdd"}, r"recipes\.glyphs\.optimiser: .*'adam' or 'adamw'.* found 'sgdd'"),
    (RECIPE, {"backbone": "smal"}, r"recipes\.glyphs\.backbone: there is no file smal\.py .* small"),
    (RECIPE, {"mean": [0.1, 0.2]}, r"recipes\.glyphs\.mean: small takes 1 channels"),
    (RECIPE, {"pooling": "average"}, r"recipes\.glyphs\.pooling: small gives vectors, .* use none"),
    (
        RECIPE,
        {"backbone": "resnet50"},
        r"recipes\.glyphs\.pooling: resnet50 gives maps, use average or average_and_max",
    ),
    (RECIPE, {"pretrained": True}, r"recipes\.glyphs\.pretrained: small has no published weights, use false"),
    (RECIPE, {"head": "linaer"}, r"recipes\.glyphs\.head: .*'linear'.* found 'linaer'"),
    (RECIPE, {"recall_at": [2, 4]}, r"recipes\.glyphs\.recall_at: 1 is missing"),
    (("losses", "proxy_an"), {"alpha": -1.0}, r"losses\.proxy_an\.alpha: .* greater than 0, found -1"),
    (("losses", "proxy_an"), {"alfa": 1.0}, r"losses\.proxy_an\.alfa: unknown key, did you mean alpha\?"),
    (("losses", "proxy_gml"), {"ratio": 1.5}, r"losses\.proxy_gml\.ratio: .* less than or equal to 1, found 1\.5"),
    (("losses", "proxy_gml"), {"proxies_per_class": 0}, r"losses\.proxy_gml\.proxies_per_class: .* found 0"),
    (
        RECIPE,
        {"decay_epochs": [0]},
        r"recipes\.glyphs\.decay_epochs: .* number n from 1, for every n epochs",
    ),
    (RECIPE, {"decay_epochs": [6]}, r"recipes\.glyphs\.decay_epochs: there is no epoch 6, the recipe has 5"),
    (RECIPE, {"head_only_epochs": [7]}, r"recipes\.glyphs\.head_only_epochs: there is no epoch 7"),
    (RECIPE, {"evaluated_epochs": 6}, r"recipes\.glyphs\.evaluated_epochs: none of the 5 epochs is evaluated"),
    (RECIPE, {"samples_per_class": 3}, r"recipes\.glyphs\.samples_per_class: 3 does not divide the batch_size"),
    (RECIPE, {"smallest_crop": 0.08}, r"recipes\.glyphs\.shift: images that are cropped .* use 0"),
    (RECIPE, {"test_resize": 16}, r"recipes\.glyphs\.test_resize: it is less than input_size"),
    (RECIPE, {"input_size": 28}, r"recipes\.glyphs\.input_size: small takes 32 pixels"),
    (RECIPE, {"channel_order": "bgr"}, r"recipes\.glyphs\.channel_order: small takes one channel, use rgb"),
    (RECIPE, {"epsilon": 0.0}, r"recipes\.glyphs\.epsilon: .* greater than 0"),
    (("losses", "proxy_an"), {"loss": "proxy_am"}, r"losses\.proxy_an: there is no file proxy_am\.py"),
    (("tables", "glyphs", "rows"), {"loss": ["proxy_ann"]}, r"tables\.glyphs\.rows\.loss: proxy_ann has no settings"),
    (("tables", "glyphs"), {"rows": {"dimension": [8]}}, r"tables\.glyphs\.loss: .* missing and the rows name no loss"),
    (("tables", "glyphs"), {"datasets": ["cub"]}, r"tables\.glyphs: cub has no recipe, add recipes\.cub"),
    (("tables", "glyphs"), {"seeds": []}, r"tables\.glyphs\.seeds: .* at least 1 item"),
    (("machine",), {"device": "gpu"}, r"machine\.device: .* found 'gpu'"),
]


@pytest.mark.parametrize(("where", "update", "message"), WRONG)
def test_a_wrong_value_is_named(tmp_path, where, update, message):
    def edit(content):
        for part in where:
            content = content[part]
        content.update(update)

    path = changed(tmp_path, edit)
    loss = where[1] if where[0] == "losses" else "proxy_an"
    with pytest.raises(BadInputError, match=message) as raised:
        read_params(path, "glyphs", loss)
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
    changes = ["recipe.dimension=16", "recipe.epsilon=1e-2", "loss.alpha=12.0"]
    params = read_params(PARAMS, "glyphs", "proxy_an", changes)
    assert (params.recipes["glyphs"].dimension, params.recipes["glyphs"].epsilon) == (16, 0.01)
    assert params.losses["proxy_an"]["alpha"] == 12 and params.losses["proxy_anchor"]["alpha"] == 32
    with pytest.raises(BadInputError, match=r"dimensoin: unknown key, did you mean dimension\?"):
        read_params(PARAMS, "glyphs", "proxy_an", ["recipe.dimensoin=16"])
    for wrong in ("dimension=16", "recipe.dimension", "losses.alpha=1"):
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


def test_numbers_are_read_as_dvc_reads_them(tmp_path):
    path = tmp_path / "numbers.yaml"
    path.write_text("a: 1e-05\nb: 1e4\nc: 0.5\nd: -2.5E+3\ne: 7\nf: 1.e3\ng: 12e03\n")
    assert (
        read_yaml(path)
        == YAML(typ="safe").load(path)
        == {"a": 1e-5, "b": 1e4, "c": 0.5, "d": -2500.0, "e": 7}
        | {
            "f": 1000.0,
            "g": 12000.0,
        }
    )
    assert read_yaml(PARAMS) == YAML(typ="safe").load(PARAMS)


def test_broken_and_missing_files_are_named(tmp_path):
    with pytest.raises(BadInputError, match="missing"):
        read_params(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(BadInputError, match=r"broken\.yaml is not YAML"):
        read_params(tmp_path / "broken.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(BadInputError, match=r"empty\.yaml"):
        read_params(tmp_path / "empty.yaml")
