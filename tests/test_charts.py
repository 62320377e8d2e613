"""A sweep's chart says what was not run, and shows no interval where there is none."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.base.config import read_params
from pipeline.runs.grid import grid_runs
from pipeline.tables.charts import sweep
from pipeline.tables.published import read_published
from pipeline.tables.rows import Row

PAPER = Path(__file__).parent.parent / "papers/proxygml"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(PAPER.parent.parent)


def chart(path, runs, seeds=(0, 1)):
    """The chart of ProxyGML's sweep of the ratio with `runs`: ratio -> Recall@1 by seed."""
    table = read_params(PAPER / "params.yaml").tables["ratio"]
    axes = {"proxies_per_class": [12], "ratio": table.rows["ratio"]}
    table = table.model_copy(update={"seeds": list(seeds), "rows": axes})
    of = read_published(PAPER / "published.yaml").tables["ratio"]
    planned = {run.values[1]: run for run in grid_runs("proxygml", "cars", "ratio") if run.values[0] == "12"}
    rows = []
    for ratio in table.rows["ratio"]:
        run = planned[str(ratio)]
        files = {seed: Path(f"{seed}.json") for seed in seeds}
        values = dict(zip(seeds, runs.get(ratio, ()), strict=False))
        best = {seed: (files[seed], {"recall@1": value}) for seed, value in values.items()}
        of_row = [replace(run, run=replace(run.run, seed=seed)) for seed in seeds]
        rows.append(Row("cars", run.row, of_row, {"best_test_epoch": best}))
    sweep(path, table, rows, of)
    return path.read_text()


@pytest.mark.parametrize(
    ("runs", "seeds", "says", "intervals"),
    [
        ({}, (0, 1), ["nothing was run"], 0),
        ({0.05: [0.8, 0.9]}, (0, 1), ["15 of 16 points not run", "proxies_per_class 12 ours<"], 1),
        ({0.05: [0.8, 0.9], 0.1: [0.8]}, (0, 1), ["14 of 16 points not run", "n = 1 of 2"], 1),
        ({0.05: [0.8], 0.1: [0.7]}, (0,), ["14 of 16 points not run", "ours, one run each"], 0),
    ],
    ids=["nothing", "two seeds", "a seed lacks", "one seed"],
)
def test_what_was_not_run_is_said_and_one_run_has_no_interval(tmp_path, runs, seeds, says, intervals):
    text = chart(tmp_path / "ratio.svg", runs, seeds)
    assert all(word in text for word in says), says
    assert text.count("LineCollection") == intervals
    assert "published" in text
    assert text == chart(tmp_path / "again.svg", runs, seeds)


def test_a_whole_sweep_says_nothing_of_the_kind(tmp_path):
    ratios = read_params(PAPER / "params.yaml").tables["ratio"].rows["ratio"]
    text = chart(tmp_path / "ratio.svg", {ratio: [0.8, 0.9] for ratio in ratios})
    assert "not run" not in text and "n = " not in text and "nothing" not in text
