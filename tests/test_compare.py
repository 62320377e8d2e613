"""The comparison table: ranking, paired test and its correction, and runs that are lacking."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.base.config import read_params
from pipeline.compare import holm, paired

ROOT = Path(__file__).parent.parent


def compare(folder, recalls, seeds=(0, 1, 2), fails=0):
    """The comparison of rows -> Recall@1 by seed."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    losses = list(recalls)
    content["tables"] = {"all": {"datasets": ["glyphs"], "rows": {"loss": losses}, "seeds": list(seeds)}}
    content["losses"] |= {loss: {"loss": "proxy_nca"} for loss in losses}
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    for row, values in recalls.items():
        for seed, value in enumerate(values):
            path = folder / "runs/glyphs" / row / f"{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            metrics = {"recall@1": value, "map@r": value / 2, "nmi_arithmetic": 0.5}
            path.write_text(json.dumps({"metrics": {"last_epoch": metrics, "best_test_epoch": {}}}))
    command = [sys.executable, "-m", "pipeline.compare", "--params", folder / "params.yaml", "--dataset", "glyphs"]
    command += ["--table", "all", "--runs", folder / "runs", "--out", folder / "tables/glyphs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == fails, done.stderr
    return done.stderr if fails else (folder / "tables/glyphs.md").read_text()


def test_rows_are_ranked_and_tested_against_the_best_by_seed(tmp_path):
    # Differences of proxy_nca: -1, -2, -3 points: mean -2, t = -2 / (1 / sqrt 3) = -3.4641; p = 0.0742 by tables.
    page = compare(
        tmp_path,
        {"proxy_nca": [0.39, 0.48, 0.57], "proxy_an": [0.40, 0.50, 0.60], "circle": [0.10, 0.10, 0.10]},
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    cells = {row[0]: row for row in rows[2:]}
    assert list(cells) == ["proxy_an", "proxy_nca", "circle"]
    assert cells["proxy_an"][1:] == ["50.00 ± 24.84", "25.00 ± 12.42", "50.00 ± 0.00", "best", "", ""]
    assert cells["proxy_nca"][4:] == ["-2.00 ± 2.48", "0.074", "0.074"]
    assert cells["circle"][5:] == ["0.020", "0.040"]
    written = json.loads((tmp_path / "tables/glyphs.json").read_text())
    assert written["proxy_nca"]["difference"]["mean"] == pytest.approx(-0.02)
    assert written["circle"]["p_holm"] == pytest.approx(2 * written["circle"]["p"])
    assert "p" not in written["proxy_an"]


def test_rows_that_lack_a_run_are_named_and_not_tested(tmp_path):
    page = compare(tmp_path, {"proxy_an": [0.5, 0.6, 0.7], "proxy_nca": [0.9, 0.9], "circle": [0.4, 0.5, 0.5]})
    assert "Not run, and not compared: proxy_nca/2." in page and "| proxy_nca" not in page
    assert "corrected for 1 comparisons" in page


def test_others_numbers_below(tmp_path):
    """The four datasets' comparison, as its stages call it, with made-up metrics."""
    for loss, value in {"proxy_an": 0.6, "circle": 0.5, "proxy_gml": 0.7}.items():
        for seed in range(3):
            path = tmp_path / f"cub/{loss}/{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            metrics = {"recall@1": value + seed * value / 100, "map@r": value / 2, "nmi_arithmetic": 0.5}
            path.write_text(json.dumps({"metrics": {"last_epoch": metrics}}))
    command = [sys.executable, "-m", "pipeline.compare", "--params", "papers/comparison/params.yaml"]
    command += ["--dataset", "cub", "--table", "resnet50"]
    command += ["--published", "papers/comparison/published.yaml", "ResNet-50", "--runs", tmp_path]
    page = subprocess.run(
        [*command, "--out", tmp_path / "cub"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    found = re.findall(r"^\| (\w+) +\| [\d.]+ +\| [\d.]+ +\| 50\.00", page, re.M)
    assert found == ["proxy_gml", "proxy_an", "circle"]
    assert re.search(r"Not run, and not compared: proxy_anchor/0, .*, sup_con/0\.", page)
    assert re.search(r"^\| Multi-Similarity +\| ResNet-50 \| 67\.3 +\| 78\.2", page, re.M)
    assert "Theirs: One protocol, 512 dimensions, rerun by the authors of IDML; README table" in page
    assert "| BN-Inception" not in page


def differing(one, other):
    return {key for key, value in one.model_dump().items() if value != getattr(other, key)}


def test_recipes_and_settings_are_those_they_are_said_to_be():
    glyphs, four, default, proxy_an, proxy_gml = (
        read_params(ROOT / place / "params.yaml")
        for place in ("papers/comparison/glyphs", "papers/comparison", ".", "papers/proxy_an", "papers/proxygml")
    )
    assert differing(glyphs.recipes["glyphs"], default.recipes["glyphs"]) == {"samples_per_class", "cpu_threads"}
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


def test_what_cannot_be_compared_is_refused(tmp_path):
    assert "holds no row of" in compare(tmp_path, {"proxy_an": [], "circle": []}, fails=2)


def test_one_seed_is_ranked_and_not_tested(tmp_path):
    page = compare(tmp_path, {"circle": [0.4], "proxy_an": [0.5]}, [0])
    assert "One seed tells no loss from another" in page and page.index("| proxy_an") < page.index("| circle")


def test_holms_correction():
    # Holm's own way: 0.01 x 4, then 0.02 x 3, then 0.03 x 2, kept in order, then 0.5.
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.4, 0.4]) == pytest.approx([0.8, 0.8]) and holm([0.9, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_equal_rows_do_not_differ():
    assert paired([0.5, 0.6], [0.5, 0.6]) == 1.0
    assert paired([0.5, 0.6, 0.7], [0.4, 0.5, 0.61]) < 0.01
