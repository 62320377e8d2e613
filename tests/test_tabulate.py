"""Tables from metrics files: means, intervals, missing runs, strangers, rankings."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import markdown_it
import numpy as np
import pytest
import yaml
from scipy import stats

from pipeline.runs.grid import grid_runs
from pipeline.tables import formats
from pipeline.tables.notes import what_lacks
from pipeline.tables.rows import Cell, collect_table
from tests import GRID
from tests.records import write_metrics

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project's folder with the embedded default's params, or those that a test makes of them."""
    shutil.copy(GRID / "params.yaml", tmp_path)
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
    assert cell.text() == "48.00 ± 8.96"
    assert Cell([0.5], [], 1).text() == "50.00" and Cell([], [], 3).text() == "not run"
    assert Cell([0.5], [], 3).text() == "50.00 (n = 1)", "n stands where it is not what was planned"


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


HOSTILE = "<script>alert(1)</script> **bold** [link](http://x.org) a|b 100 % &copy; _em_ my_set"


def test_texts_from_outside_are_shown_as_they_are(folder):
    write(folder, "proxy_an", 0, best_test_epoch=0.5, last_epoch=0.5)
    error = folder / "metrics/runs/default/glyphs/glyphs/proxy_nca/0.error.json"
    error.parent.mkdir(parents=True, exist_ok=True)
    error.write_text(json.dumps({"schema_number": 1, "key": "0" * 64, "error": f"{HOSTILE}\n# head \u202e"}))
    edit(folder, lambda content: content["tables"]["glyphs"].update(title=HOSTILE))
    _, tables = tabulate(folder)
    html = markdown_it.MarkdownIt().enable("table").render(tables[".md"])
    assert html.count("<h1>") == 1 and "<script" not in html and "http://x.org)" in html and 'href="http' not in html
    assert "[link](http://x.org) a|b 100 % &amp;copy; _em_ my_set</h1>" in html and "\u202e" not in html
    assert "Failed: glyphs/proxy_nca/0: &lt;script&gt;" in html and "# head" in html


def test_a_title_that_turns_the_text_after_it_is_refused(folder):
    edit(folder, lambda content: content["tables"]["glyphs"].update(title="a\u202eb"))
    printed, tables = tabulate(folder, fails=2)
    assert "tables.glyphs.title: give one line of text" in printed and not tables


def test_every_text_of_a_latex_table_is_latex(folder):
    def change(content):
        content["recipes"]["my_set"] = content["recipes"]["glyphs"]
        content["tables"]["glyphs"].update(datasets=["my_set"], layout="ranked", raw_pixels=False)

    edit(folder, change)
    for row in ("proxy_an", "proxy_gml", "proxy_nca"):
        for seed, value in enumerate([0.5, 0.6, 0.7] if row == "proxy_an" else [0.1, 0.21, 0.3]):
            write(folder, row, seed, best_test_epoch=0.9, last_epoch=value)
    _, tables = tabulate(folder)
    assert r"{l}{my\_set. Last epoch: " in tables[".tex"] and r"50.00 $\pm$" not in tables[".tex"]
    assert not re.search(r"(?<!\\)[_%#]|[±–<>](?!\$)", re.sub("^% .*$", "", tables[".tex"], flags=re.M))
    assert formats._tex(["a_b & 5 % {x}^~\\ <0.001 ±"]) == (
        r"a\_b \& 5 \% \{x\}\textasciicircum{}\textasciitilde{}\textbackslash{} $<$0.001 $\pm$"
    )


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
    "text", ["", "null", "[]", "{}", "<html>", '{"schema_number": 3}', '{"schema_number": 1, "key": "a"}']
)
def test_a_damaged_metrics_file_is_named_and_not_used(folder, text):
    write(folder, "proxy_an", 0, best_test_epoch=0.5, last_epoch=0.5).write_text(text)
    assert_named_and_not_used()


def assert_named_and_not_used():
    """The metrics file of proxy_an's seed 0."""
    rows = collect_table(grid_runs("default"), None)
    assert [name for row in rows for name in row.failures] == ["glyphs/proxy_an/0"]
    assert not any(found for row in rows for found in row.found.values())
    said = next(line for line in what_lacks(rows) if line.startswith("Failed"))
    assert "metrics/runs/default/glyphs/glyphs/proxy_an/0.json " in said.replace("\\", "")


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content["metrics"]["last_epoch"].update({"recall@1": 0.6}),
        lambda content: content["metrics"]["last_epoch"].update({"recall@1": 1.5}),
        lambda content: content["run"]["content"]["settings"].update(seed=1),
        lambda content: content["run"].update(key="0" * 64),
        lambda content: content.update(key="../../tqdm"),
        lambda content: content.update(files={"../x": "0" * 64}),
        lambda content: content["retrieved"].update(images=5),
    ],
)
def test_a_metrics_file_that_was_edited_is_named_and_not_used(folder, edit):
    path = write(folder, "proxy_an", 0, best_test_epoch=0.5, last_epoch=0.5)
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    assert_named_and_not_used()


def test_a_number_that_no_metric_can_be_is_refused_also_with_its_hash(folder):
    with pytest.raises(ValueError, match=r"recall@1 is 1\.5, which no metric can be"):
        write(folder, "proxy_an", 0, best_test_epoch=1.5, last_epoch=0.5)


@pytest.mark.parametrize("place", ["proxy_an/1", "proxy_gml/0"])
def test_a_metrics_file_in_another_runs_place_is_named_and_not_used(folder, place):
    path = write(folder, "proxy_an", 0, best_test_epoch=0.5, last_epoch=0.5)
    other = path.parents[1] / f"{place}.json"
    other.parent.mkdir(exist_ok=True)
    path.replace(other)
    rows = collect_table(grid_runs("default"), None)
    named = [name for row in rows for name in (*row.failures, *row.outdated)]
    assert named == [f"glyphs/{place}"] and not any(found for row in rows for found in row.found.values())


def test_tables_that_no_longer_exist_go_and_what_is_not_ours_stays(folder):
    tabulate(folder)
    tables = folder / "metrics/tables/default"
    (tables / "notes.csv").write_text("mine")
    edit(folder, lambda content: content["tables"].update(renamed=content["tables"].pop("glyphs")))
    tabulate(folder)
    assert {path.name for path in tables.iterdir()} == {
        "notes.csv", *(f"renamed.{ending}" for ending in ("md", "tex", "csv", "json"))
    }  # fmt: skip


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


def test_rows_are_ranked_and_tested_against_the_best(folder):
    recalls = {"proxy_nca": [0.39, 0.48, 0.57], "proxy_an": [0.40, 0.50, 0.60], "proxy_gml": [0.10, 0.10, 0.10]}
    page, tables = ranked(folder, recalls)
    ranking = page.split("**Peeking")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in ranking if line.startswith("| ")]
    cells = {row[0]: row for row in rows[2:]}
    assert list(cells) == ["proxy_an", "proxy_nca", "proxy_gml"]
    # One spread for all three rows: sqrt((9^2 + 10^2 + 0^2) / 3) = 7.767 points; t(0.975, 6) = 2.4469.
    assert cells["proxy_an"][1:] == ["50.00 ± 10.97", "25.00 ± 5.49", "50.00 ± 0.00", "best", ""]
    assert cells["proxy_nca"][4].startswith("-2.00 (-") and float(cells["proxy_nca"][5]) > 0.9
    best, *others = ([100 * value for value in recalls[name]] for name in ("proxy_an", "proxy_nca", "proxy_gml"))
    by_scipy = stats.dunnett(*others, control=best, rng=np.random.default_rng(1))
    low, high = by_scipy.confidence_interval()[:2]
    assert float(cells["proxy_gml"][5]) == pytest.approx(by_scipy.pvalue[1], abs=2e-3) and by_scipy.pvalue[1] < 0.05
    shown = re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", cells["proxy_gml"][4]).groups()
    assert [*map(float, shown)] == pytest.approx([-40.0, low[1], high[1]], abs=0.1)
    written = json.loads(tables[".json"])["glyphs"]
    assert written["proxy_nca"]["less_the_best"]["mean"] == pytest.approx(-0.02)
    tests = written["proxy_gml"]["less_the_best"]
    assert (
        tests["p"] == float(cells["proxy_gml"][5]) and tests["high"] < 0 and "less_the_best" not in written["proxy_an"]
    )
    assert r"proxy\_nca & 48.00" in tables[".tex"]


def test_rows_that_lack_a_run_are_named_and_not_compared(folder):
    page, _ = ranked(folder, {"proxy_an": [0.5, 0.6, 0.7], "proxy_nca": [0.9, 0.9], "proxy_gml": [0.4, 0.5, 0.5]})
    assert "Not compared, because runs are missing: proxy_nca." in page and "| proxy_nca" not in page
    assert "hold for 1 comparisons together" in page and "Not run: glyphs/proxy_nca/2." in page


def test_one_seed_is_ranked_and_not_tested(folder):
    page, tables = ranked(folder, {"proxy_gml": [0.4], "proxy_an": [0.5]}, [0])
    assert "no test was made" in page and page.index("| proxy_an") < page.index("| proxy_gml")
    assert "| p " not in page and '"p"' not in tables[".json"]
