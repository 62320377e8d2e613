"""The comparisons of losses use the recipes and settings that they are said to use."""

from pathlib import Path

from pipeline.base.config import read_params
from tests import GRID

ROOT = Path(__file__).parent.parent


def differing(one, other):
    rest = other.model_dump()
    return {key for key, value in one.model_dump().items() if value != rest[key]}


def test_recipes_and_settings_are_those_they_are_said_to_be():
    glyphs, four, proxy_an, proxy_gml = (
        read_params(ROOT / "papers" / grid / "params.yaml")
        for grid in ("comparison_glyphs", "comparison", "proxy_an", "proxygml")
    )
    default = read_params(GRID / "params.yaml").recipes["glyphs"]
    assert differing(glyphs.recipes["glyphs"], default) == {"samples_per_class", "metrics"}  # without other_groups
    for dataset in ("cub", "cars", "sop", "inshop"):
        assert four.recipes[dataset] == proxy_an.recipes[dataset]
        ours, of = four.recipes[f"bn_inception_{dataset}"], "sop" if dataset == "inshop" else dataset
        allowed = {"samples_per_class"} | ({"recall_at", "metrics"} if dataset == "inshop" else set())
        assert differing(ours, proxy_gml.recipes[of]) == allowed
        assert four.losses[f"proxy_gml_{dataset}"] == proxy_gml.losses[f"proxy_gml_{of}"]
    names = set(four.tables["resnet50"].rows["loss"])
    assert names and names <= set(glyphs.tables["glyphs"].rows["loss"])  # it may also have losses of yours
    assert {name: four.losses[name] for name in names - {"proxy_gml"}} == {
        name: glyphs.losses[name] for name in names - {"proxy_gml"}
    }
    for name in four.recipes:
        read_params(ROOT / "papers/comparison/params.yaml", name)
    assert all(set(table.rows["loss"]) == names for table in four.tables.values())
