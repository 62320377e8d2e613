"""Parameters are checked first: one message with file, key and mend."""

import copy
from pathlib import Path

import pytest
import yaml
from ruamel.yaml import YAML

from pipeline.config import read_params, read_yaml
from pipeline.files import BadInputError

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
    (("table",), {"losses": ["proxy_ann"]}, r"table\.losses: proxy_ann has no settings"),
    (("table",), {"seeds": []}, r"table\.seeds: .* at least 1 item"),
    (("table",), {"dataset": "cub"}, r"table\.dataset: cub has no recipe"),
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
