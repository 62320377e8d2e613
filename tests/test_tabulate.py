"""The table from metrics files: means, intervals, missing runs, strangers."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.tables.rows import Cell

ROOT = Path(__file__).parent.parent
METRICS = ("recall@1", "recall@2", "recall@4", "recall@8", "map@r", "nmi_arithmetic")


def tabulate(folder, runs, params=ROOT / "params.yaml"):
    """Tables of the root's grid for `runs`: row -> seed -> {selection: value of every metric}."""
    for row, seeds in runs.items():
        for seed, selections in seeds.items():
            path = folder / "runs/glyphs" / row / f"{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            metrics = {selection: dict.fromkeys(METRICS, value) for selection, value in selections.items()}
            path.write_text(json.dumps({"metrics": metrics}))
    command = [sys.executable, "-m", "pipeline.tabulate", "--table", "glyphs", "--raw-pixels", "--params", params]
    command += ["--runs", folder / "runs", "--out", folder / "tables/glyphs"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return printed, {path.suffix: path.read_text() for path in (folder / "tables").iterdir()}


def test_interval_is_students():
    cell = Cell([0.45, 0.47, 0.52], [])
    assert cell.mean == pytest.approx(0.48)
    # t(0.975, 2) = 4.302653 (printed tables), standard deviation 0.036056
    assert cell.half_width == pytest.approx(4.302653 * 0.0360555 / 3**0.5, rel=1e-5)
    assert cell.text("±") == "48.00 ± 8.96"
    assert Cell([0.5], []).text("±") == "50.00" and Cell([], []).text("±") == "not run"


def test_a_part_of_the_grid(tmp_path):
    printed, tables = tabulate(
        tmp_path,
        {
            "raw_pixels": {0: {"no_training": 0.25}},
            "proxy_an": {
                0: {"best_test_epoch": 0.5, "last_epoch": 0.4},
                1: {"best_test_epoch": 0.6, "last_epoch": 0.5},
                9: {"best_test_epoch": 0.0, "last_epoch": 0.0},  # of no run in the grid
            },
        },
    )
    best, last = printed.split("**Last epoch")
    assert "| proxy_an     | 55.00 ± 63.53" in best and "| proxy_an     | 45.00 ± 63.53" in last
    assert "| raw_pixels   | 25.00 " in best and "| proxy_gml    | not run" in best
    assert (
        "Not run: glyphs/proxy_gml/0, glyphs/proxy_gml/1, glyphs/proxy_gml/2, glyphs/proxy_an/2, glyphs/proxy_anchor/0"
        in printed
    )
    assert "- glyphs/proxy_an: [0](../runs/glyphs/proxy_an/0.json)" in tables[".md"]
    aggregate = json.loads(tables[".json"])["glyphs"]
    assert aggregate["proxy_an"]["last_epoch"]["map@r"] == {"mean": 0.45, "half_width": 0.63531, "n": 2}
    assert aggregate["proxy_nca"]["last_epoch"] == {}
    rows = list(csv.DictReader(tables[".csv"].splitlines()))
    assert {row["row"] for row in rows} == {"raw_pixels", "proxy_an"}
    runs = next(row["runs"] for row in rows if row["row"] == "proxy_an").split()
    assert [Path(run).name for run in runs] == ["0.json", "1.json"]
    assert r"proxy\_an & 45.00 $\pm$ 63.53 &" in tables[".tex"] and tables[".tex"].count(r"\midrule") == 2


def test_nothing_run_yet(tmp_path):
    printed, tables = tabulate(tmp_path, {})
    assert "| raw_pixels   | not run" in printed and tables[".csv"].count("\n") == 1
    assert "Nothing was run." in printed and "interval" not in printed


@pytest.mark.parametrize("planned", [1, 3])
def test_one_seed_has_no_interval_and_nothing_speaks_of_one(tmp_path, planned):
    params = tmp_path / "params.yaml"
    params.write_text((ROOT / "params.yaml").read_text().replace("[0, 1, 2]", str(list(range(planned)))))
    printed, tables = tabulate(tmp_path, {"proxy_an": {0: {"best_test_epoch": 0.5, "last_epoch": 0.4}}}, params)
    assert "Each number is of one run: of its spread over seeds nothing is known." in printed
    assert "interval" not in printed + tables[".md"] and "±" not in printed + tables[".md"]


def test_a_row_of_one_run_beside_others_is_told_apart(tmp_path):
    values = {"best_test_epoch": 0.5, "last_epoch": 0.4}
    printed, _ = tabulate(tmp_path, {"proxy_an": {0: values, 1: values}, "proxy_nca": {0: values}})
    assert "95 % t-interval over 3 seeds; without ±: one run; raw_pixels: one measurement." in printed
