"""Rows that a table adds: the network before training, and the embeddings of all seeds together."""

import json
import re

import numpy as np
import pytest
import torch
import yaml
from torch.nn.functional import normalize

from pipeline.base.config import read_params
from pipeline.base.files import BadInputError
from pipeline.metrics.retrieval import retrieval
from pipeline.runs.grid import grid_folder, grid_runs
from pipeline.training.loading import read_retrieved


@pytest.fixture(scope="module")
def grid(project, tmp_path_factory):
    """The small project with both kinds of rows; its runs are trained already."""
    copy = project.copy(tmp_path_factory.mktemp("extra") / "project")
    copy.edit_params(lambda params: params["tables"]["glyphs"].update(untrained=True, ensembles=True))
    copy.started = copy.run("python", "-m", "pipeline.run_grid", "default", "glyphs")
    copy.table = copy.run("python", "-m", "pipeline.tabulate", "default")
    return copy


def metrics(grid, name):
    return json.loads((grid.folder / f"metrics/runs/default/glyphs/glyphs/{name}.json").read_text())["metrics"]


def test_what_is_added_trains_nothing(grid):
    started = re.findall(r"^default/glyphs/glyphs/(\S+): started$", grid.started, re.M)
    added = ["ensemble_of_proxy_an/0_ensemble", "ensemble_of_proxy_nca/0_ensemble", "untrained/0"]
    assert sorted(started) == added and " epoch 1/" not in grid.started


def test_an_ensemble_is_its_runs_side_by_side(grid, monkeypatch):
    monkeypatch.chdir(grid.folder)
    queries = [np.load(f"data/queries/default/glyphs/glyphs/proxy_an/{seed}/queries.npz") for seed in (0, 1)]
    parts = [normalize(torch.from_numpy(kept["embeddings"]).float()) for kept in queries]
    test = read_retrieved(grid.folder / "data/splits/glyphs")
    together = normalize(torch.cat(parts, 1))
    assert together.shape == (len(test.numbers), 128)
    expected = retrieval(together, test.labels, ks=[1, 2, 4, 8])
    ((rule, found),) = metrics(grid, "ensemble_of_proxy_an/0_ensemble").items()
    assert rule == "last_epoch" and found["members"] == 2
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    singles = [metrics(grid, f"proxy_an/{seed}")["last_epoch"]["recall@1"] for seed in (0, 1)]
    assert found["recall@1"] > max(singles)


def test_the_untrained_row_is_the_backbones_features(grid, monkeypatch):
    found = metrics(grid, "untrained/0")["no_training"]
    assert 0.1 < found["recall@1"] < metrics(grid, "proxy_an/0")["last_epoch"]["recall@1"]
    monkeypatch.chdir(grid.folder)
    kept = np.load("data/queries/default/glyphs/glyphs/untrained/0/queries.npz")["embeddings"]
    assert kept.shape[1] == 1024
    out = grid.run("python", "-m", "pipeline.evaluate", "--untrained", "glyphs", "--out", "data/untrained.json")
    assert out.startswith("no_training: recall@1 ")
    by_hand = (grid.folder / "data/untrained.json").read_bytes()
    assert by_hand == (grid.folder / "metrics/runs/default/glyphs/glyphs/untrained/0.json").read_bytes()


def test_they_are_labelled_and_in_no_ranking(grid, monkeypatch):
    monkeypatch.chdir(grid.folder)
    best, last = grid.table.split("**Last epoch")
    assert re.search(r"^\| ensemble_of_proxy_an +\| – ", best, re.M)
    assert re.search(r"^\| ensemble_of_proxy_an +\| \d", last, re.M)
    assert re.search(r"^\| untrained +\| \d", best, re.M) and re.search(r"^\| untrained +\| \d", last, re.M)
    shared = "over 2 seeds, by the spread that rows with the same training images share"
    assert f"{shared}; raw_pixels, untrained, ensemble: one measurement." in grid.table
    # None of the mean of a row is an ensemble's.
    table = json.loads((grid.folder / "metrics/tables/default/glyphs.json").read_text())["glyphs"]
    singles = [metrics(grid, f"proxy_an/{seed}")["last_epoch"]["recall@1"] for seed in (0, 1)]
    assert table["proxy_an"]["last_epoch"]["recall@1"]["mean"] == pytest.approx(sum(singles) / 2, abs=1e-6)
    params = yaml.safe_load((grid.folder / "params.yaml").read_text())
    params["tables"]["glyphs"]["layout"] = "ranked"
    (grid.folder / "papers/ranked").mkdir(exist_ok=True)
    (grid.folder / "papers/ranked/params.yaml").write_text(yaml.safe_dump(params))
    grid.run("python", "-m", "pipeline.run_grid", "ranked", "glyphs")
    page = grid.run("python", "-m", "pipeline.tabulate", "ranked")
    assert "untrained: what the network gives before training, pooled." in page
    assert "ensemble_of_proxy_nca: the embeddings of all seeds together, not to be compared with single runs." in page
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    names = [line.split()[1] for line in lines]
    assert names[2:4] in (["proxy_an", "proxy_nca"], ["proxy_nca", "proxy_an"]), "what was trained is ranked"
    added = lines[4 : 4 + len({"raw_pixels", "untrained", "ensemble_of_proxy_an", "ensemble_of_proxy_nca"})]
    assert all(re.search(r"^\| (raw_pixels|untrained|ensemble_of_proxy_\w+) +\| \d", line) for line in added)
    assert all(line.count(" – ") == 1 for line in added), "they are not compared with the best"


def test_an_ensemble_waits_for_its_runs_and_what_trains_does_not_change_the_untrained_row(grid, monkeypatch):
    monkeypatch.chdir(grid.folder)

    def state(*part):
        printed = grid.run("python", "-m", "pipeline.run_grid", "default", "glyphs", "--dry-run", *part)
        return dict(re.findall(r"^default/glyphs/glyphs/(\S+): (.+)$", printed, re.M))

    assert set(state().values()) == {"done"}
    grid.edit_params(lambda params: params["recipes"]["glyphs"].update(clip_value=0.5))
    assert {name: of for name, of in state().items() if "proxy_an" in name or name == "untrained/0"} == {
        "ensemble_of_proxy_an/0_ensemble": "waits",
        "proxy_an/0": "not run",
        "proxy_an/1": "not run",
        "untrained/0": "done",
    }
    # A part of a grid has the runs that an ensemble waits for, or not the ensemble.
    runs = {"proxy_an/0", "proxy_an/1"}
    assert state("--row", "ensemble_of_proxy_an").keys() == runs | {"ensemble_of_proxy_an/0_ensemble"}
    assert state("--row", "proxy_an").keys() == runs
    assert "ensemble_of_proxy_an/0_ensemble" not in state("--seed", "0")
    grid.edit_params(lambda params: params["recipes"]["glyphs"].update(clip_value=None, mean=[0.4]))
    assert state()["untrained/0"] == "not run"
    grid.edit_params(lambda params: params["recipes"]["glyphs"].update(mean=[0.3]))


def test_every_papers_main_table_has_the_untrained_network():
    for grid, table, rows in (
        ("proxygml", "main", {"untrained"}),
        ("proxy_an", "main", {"untrained"}),
        ("comparison", "resnet50", {"untrained"}),
        ("comparison", "bn_inception", {"untrained-bn_inception"}),
    ):
        runs = [run for run in grid_runs(grid, table=table) if run.run.protocol == "untrained"]
        assert {run.row for run in runs} == rows
        assert {run.run.dataset for run in runs} == set(
            read_params(grid_folder(grid) / "params.yaml").tables[table].datasets
        )


@pytest.mark.parametrize("name", ["untrained", "untrained-small", "ensemble_of_proxy_an"])
def test_their_names_are_taken(grid, tmp_path, name):
    params = yaml.safe_load((grid.folder / "params.yaml").read_text())
    params["losses"][name] = {"loss": "proxy_nca"}
    params["tables"]["glyphs"]["rows"] = {"loss": [name]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(BadInputError, match=r"tables\.glyphs\.rows: .*, take another"):
        read_params(tmp_path / "params.yaml")
