"""The comparisons of losses use the recipes and settings that they are said to use."""

from pathlib import Path

from pipeline.base.config import read_params

ROOT = Path(__file__).parent.parent


def differing(one, other):
    return {key for key, value in one.model_dump().items() if value != getattr(other, key)}


def test_recipes_and_settings_are_those_they_are_said_to_be():
    glyphs, four, default, proxy_an, proxy_gml = (
        read_params(ROOT / place / "params.yaml")
        for place in ("papers/comparison_glyphs", "papers/comparison", ".", "papers/proxy_an", "papers/proxygml")
    )
    assert differing(glyphs.recipes["glyphs"], default.recipes["glyphs"]) == {"samples_per_class"}
    for dataset in ("cub", "cars", "sop", "inshop"):
        assert four.recipes[dataset] == proxy_an.recipes[dataset]
        ours, of = four.recipes[f"bn_inception_{dataset}"], "sop" if dataset == "inshop" else dataset
        allowed = {"samples_per_class"} | ({"recall_at", "counting"} if dataset == "inshop" else set())
        assert differing(ours, proxy_gml.recipes[of]) == allowed
        assert four.losses[f"proxy_gml_{dataset}"] == proxy_gml.losses[f"proxy_gml_{of}"]
    names = set(glyphs.tables["glyphs"].rows["loss"])
    assert {name: four.losses[name] for name in names - {"proxy_gml"}} == {
        name: glyphs.losses[name] for name in names - {"proxy_gml"}
    }
    for name in four.recipes:
        read_params(ROOT / "papers/comparison/params.yaml", name)
    assert all(set(table.rows["loss"]) == names for table in four.tables.values())
