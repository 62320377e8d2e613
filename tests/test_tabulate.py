"""Tables from metrics files: means, intervals, missing runs, strangers, rankings."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.runs.grid import grid_runs
from pipeline.tables.ranking import holm, paired
from pipeline.tables.rows import Cell
from tests.records import write_metrics

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project's folder with the embedded default's params, or those that a test makes of them."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(folder, change):
    content = yaml.safe_load((folder / "params.yaml").read_text())
    change(content)
    (folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def write(folder, row, seed, **selections):
    """The metrics file of one run of the default's table."""
    run = next(run for run in grid_runs("default") if (run.row, run.run.seed) == (row, seed))
    return write_metrics(folder, run, selections)


def tabulate(folder, grid="default", name="glyphs", fails=0):
    """What is printed, and the table's files by their ending."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.tabulate", grid],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == fails, done.stderr
    tables = folder / "metrics/tables" / grid
    return done.stdout + done.stderr, {path.suffix: path.read_text() for path in tables.glob(f"{name}.*")}


def test_interval_is_students():
    cell = Cell([0.45, 0.47, 0.52], [], 3)
    assert cell.mean == pytest.approx(0.48)
    # t(0.975, 2) = 4.302653 (printed tables), standard deviation 0.036056
    assert cell.half_width == pytest.approx(4.302653 * 0.0360555 / 3**0.5, rel=1e-5)
    assert cell.text("±") == "48.00 ± 8.96"
    assert Cell([0.5], [], 1).text("±") == "50.00" and Cell([], [], 3).text("±") == "not run"
    assert Cell([0.5], [], 3).text("±") == "50.00 (n = 1)", "n stands where it is not what was planned"


def test_a_part_of_the_grid(folder):
    write(folder, "raw_pixels", 0, no_training=0.25)
    for seed, best in ((0, 0.5), (1, 0.6)):
        write(folder, "proxy_an", seed, best_test_epoch=best, last_epoch=best - 0.1)
    stranger = folder / "metrics/runs/default/glyphs/glyphs/proxy_an/9.json"
    stranger.write_text("{}")  # of no run in the grid
    printed, tables = tabulate(folder)
    best, last = printed.split("**Last epoch")
    assert "| proxy_an     | 55.00 ± 63.53 (n = 2)" in best and "| proxy_an     | 45.00 ± 63.53 (n = 2)" in last
    assert "| raw_pixels   | 25.00 " in best and "| proxy_gml    | not run" in best
    assert "Not run: glyphs/proxy_gml/0, glyphs/proxy_gml/1, glyphs/proxy_gml/2, glyphs/proxy_an/2, " in printed
    assert "**3 of 13 planned runs are in this table.**" in tables[".md"] and "3 of 13 planned runs" in tables[".tex"]
    assert "- glyphs/proxy_an: [0](../../runs/default/glyphs/glyphs/proxy_an/0.json)" in tables[".md"]
    aggregate = json.loads(tables[".json"])["glyphs"]
    assert aggregate["proxy_an"]["last_epoch"]["map@r"] == {"mean": 0.45, "half_width": 0.63531, "n": 2, "planned": 3}
    assert aggregate["proxy_nca"] == {}
    rows = list(csv.DictReader(tables[".csv"].splitlines()))
    assert {row["row"] for row in rows} == {"raw_pixels", "proxy_an"}
    assert {(row["n"], row["planned"]) for row in rows} == {("1", "1"), ("2", "3")}
    runs = next(row["runs"] for row in rows if row["row"] == "proxy_an").split()
    assert [Path(run).name for run in runs] == ["0.json", "1.json"]
    assert r"proxy\_an & 45.00 $\pm$ 63.53 (n = 2) &" in tables[".tex"] and tables[".tex"].count(r"\midrule") == 3
    headlines = folder / "metrics/headlines/default/glyphs/glyphs"
    assert json.loads((headlines / "proxy_an.json").read_text()) == {"Recall@1": 45.0, "MAP@R": 45.0}
    assert {path.name for path in headlines.iterdir()} == {"proxy_an.json", "raw_pixels.json"}


def test_nothing_run_yet(folder):
    printed, tables = tabulate(folder)
    assert "| raw_pixels   | not run" in printed and tables[".csv"].count("\n") == 1
    assert "**Nothing of this table has been run.**" in tables[".md"]


def test_a_failure_is_named_and_a_run_that_is_there_outranks_it(folder):
    for seed in (0, 1, 2):
        write(folder, "proxy_an", seed, best_test_epoch=0.5, last_epoch=0.5)
    errors = folder / "metrics/runs/default/glyphs/glyphs"
    for place in ("proxy_an/1", "proxy_nca/0"):
        path = errors / f"{place}.error.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"error": "the loss is nan at epoch 3"}))
    printed, _ = tabulate(folder)
    assert "Failed: glyphs/proxy_nca/0: the loss is nan at epoch 3" in printed and "proxy_an/1: the loss" not in printed
    assert "| proxy_an     | 50.00 ± 0.00 " in printed


def test_one_seed_has_no_interval(folder):
    edit(folder, lambda content: content["tables"]["glyphs"].update(seeds=[0]))
    write(folder, "proxy_an", 0, best_test_epoch=0.5, last_epoch=0.5)
    printed, tables = tabulate(folder)
    assert "One run of one seed" in printed and "interval" not in tables[".md"] and "±" not in tables[".md"]


def test_runs_of_other_settings_are_not_shown(folder):
    write(folder, "proxy_an", 0, best_test_epoch=0.5, last_epoch=0.5)
    edit(folder, lambda content: content["losses"]["proxy_an"].update(alpha=12.0))
    printed, _ = tabulate(folder)
    assert "Run with other settings than now, and not shown: glyphs/proxy_an/0." in printed
    assert "| proxy_an     | not run" in printed


def test_a_table_depends_on_its_inputs_alone(folder, tmp_path_factory):
    for seed in (0, 1, 2):
        write(folder, "proxy_an", seed, best_test_epoch=0.5 + seed / 100, last_epoch=0.5)
    _, tables = tabulate(folder)
    other = tmp_path_factory.mktemp("clutter")
    for place in ("params.yaml", "metrics/runs"):
        source = folder / place
        shutil.copytree(source, other / place) if source.is_dir() else shutil.copy(source, other)
    for name in (
        "data/store/x.error.json",
        "data/failures/a.json",
        "data/runs/default/glyphs/glyphs/proxy_an/1/run.json",
    ):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_text("{}")
    assert tabulate(other)[1] == tables


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", "<html>", '{"schema_number": 2}', '{"schema_number": 1, "key": "a"}']
)
def test_a_damaged_metrics_file_is_named(folder, text):
    write(folder, "proxy_an", 0, best_test_epoch=0.5, last_epoch=0.5).write_text(text)
    printed, tables = tabulate(folder, fails=2)
    assert re.search(r"error: metrics/runs/default/glyphs/glyphs/proxy_an/0\.json ", printed)
    assert "Traceback" not in printed and not tables


def ranked(folder, recalls, seeds=(0, 1, 2)):
    """The default's table as a ranking of rows -> Recall@1 by seed."""

    def change(content):
        table = content["tables"]["glyphs"]
        table.update(rows={"loss": list(recalls)}, seeds=list(seeds), layout="ranked", raw_pixels=False)

    edit(folder, change)
    for row, values in recalls.items():
        for seed, value in enumerate(values):
            last = {"recall@1": value, "map@r": value / 2, "nmi_arithmetic": 0.5}
            write(folder, row, seed, best_test_epoch=0.9, last_epoch=last)
    return tabulate(folder)


def test_rows_are_ranked_and_tested_against_the_best_by_seed(folder):
    # Differences of proxy_nca: -1, -2, -3 points: mean -2, t = -2 / (1 / sqrt 3) = -3.4641; p = 0.0742 by tables.
    recalls = {"proxy_nca": [0.39, 0.48, 0.57], "proxy_an": [0.40, 0.50, 0.60], "proxy_gml": [0.10, 0.10, 0.10]}
    page, tables = ranked(folder, recalls)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    cells = {row[0]: row for row in rows[2:]}
    assert list(cells) == ["proxy_an", "proxy_nca", "proxy_gml"]
    assert cells["proxy_an"][1:] == ["50.00 ± 24.84", "25.00 ± 12.42", "50.00 ± 0.00", "best", "", ""]
    assert cells["proxy_nca"][4:] == ["-2.00 ± 2.48", "0.074", "0.074"]
    assert cells["proxy_gml"][5:] == ["0.020", "0.040"]
    written = json.loads(tables[".json"])["glyphs"]
    assert written["proxy_nca"]["less_the_best"]["mean"] == pytest.approx(-0.02)
    tests = written["proxy_gml"]["less_the_best"]
    assert tests["p_holm"] == pytest.approx(2 * tests["p"]) and "less_the_best" not in written["proxy_an"]
    assert r"proxy\_nca & 48.00" in tables[".tex"]


def test_rows_that_lack_a_run_are_named_and_not_compared(folder):
    page, _ = ranked(folder, {"proxy_an": [0.5, 0.6, 0.7], "proxy_nca": [0.9, 0.9], "proxy_gml": [0.4, 0.5, 0.5]})
    assert "Not compared, because runs are missing: proxy_nca." in page and "| proxy_nca" not in page
    assert "corrected for 1 comparisons" in page and "Not run: glyphs/proxy_nca/2." in page


def test_one_seed_is_ranked_and_not_tested(folder):
    page, tables = ranked(folder, {"proxy_gml": [0.4], "proxy_an": [0.5]}, [0])
    assert "no test was made" in page and page.index("| proxy_an") < page.index("| proxy_gml")
    assert "p, Holm" not in page and "1.000" not in page and "p_holm" not in tables[".json"]


def test_holms_correction():
    # Holm's own way: 0.01 x 4, then 0.02 x 3, then 0.03 x 2, kept in order, then 0.5.
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.4, 0.4]) == pytest.approx([0.8, 0.8]) and holm([0.9, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_equal_rows_do_not_differ():
    assert paired([0.5, 0.6], [0.5, 0.6]) == 1.0
    assert paired([0.5, 0.6, 0.7], [0.4, 0.5, 0.61]) < 0.01
