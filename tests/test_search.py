"""A search of settings: its tries depend on seed, row and number alone, whoever makes them and however often; what they
choose is what held-out classes say."""

import itertools
import json
import signal
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from pipeline.base.config import read_params
from pipeline.base.files import BadInputError
from pipeline.base.search import PRIMES, Search, halton
from pipeline.runs import tried
from pipeline.runs.grid import grid_runs
from pipeline.tables.charts import tries as chart
from pipeline.tables.layouts import Content
from pipeline.tables.rows import collect_table, final_runs
from pipeline.tables.search_blocks import RULE, _order, blocks
from pipeline.tables.searches import expected_best, searches
from pipeline.tables.summary import sentences
from tests import GRID
from tests.conftest import ENVIRONMENT
from tests.hold import until

RATE = {"learning_rates.network": {"log_uniform": [0.001, 0.1]}}
OWN = {"alpha": {"uniform": [8, 64]}, "margin": {"uniform": [0.0, 0.5]}}


GOLDEN = {"learning_rates.network": 0.00552}, {"alpha": 52, "margin": 0.4165}


def written(folder, search, losses=("proxy_an",), **table):
    """A grid `mine` in a folder, with a table that has a search; gives its params file."""
    params = yaml.safe_load((GRID / "params.yaml").read_text())
    of = {"datasets": ["glyphs"], "rows": {"loss": [*losses]}, "seeds": [0, 1], "search": search}
    params["tables"] = {"one": of | table}
    params["recipes"]["glyphs"] |= {"epochs": 1, "schedule": {"name": "constant"}}
    path = folder / "papers/mine/params.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(params))
    return path


def test_points_fill_the_space_and_depend_on_seed_row_and_number():
    for base in PRIMES[:4]:
        points = [halton(index, base, "a purpose") for index in range(base**2)]
        assert sorted(int(point * base**2) for point in points) == list(range(base**2)), "one in each part"
    search = Search.model_validate({"tries": 9, "recipe": RATE, "losses": {"proxy_an": OWN}})
    points = [search.point("row", "proxy_an", number) for number in range(1, 10)]
    assert points[0] == ({}, {}) and search.point("row", "proxy_nca", 2)[1] == {}
    assert points == [search.model_copy(update={"tries": 99}).point("row", "proxy_an", n) for n in range(1, 10)]
    others = search.point("another", "proxy_an", 2), search.model_copy(update={"seed": 1}).point("row", "proxy_an", 2)
    assert points[1] not in others and others[0] != others[1]
    for recipe, loss in points[1:]:
        assert 0.001 <= recipe["learning_rates.network"] <= 0.1 and 0 <= loss["margin"] <= 0.5
        assert type(loss["alpha"]) is int and 8 <= loss["alpha"] <= 64
    rates = [recipe["learning_rates.network"] for recipe, _ in points[1:]]
    assert sum(rate < 0.01 for rate in rates) == 4, "half of the tries below the middle of the logarithms"
    assert points[1] == GOLDEN, "as in every version"


@pytest.mark.parametrize(
    ("search", "table", "says"),
    [
        ({}, {}, "search: proxy_an has no setting to try"),
        ({"recipe": RATE, "tries": 1}, {}, "tries: input should be greater than or equal to 2"),
        ({"recipe": RATE, "losses": {"proxy_nca": {}}}, {}, "search.losses.proxy_nca: no row has this loss"),
        ({"losses": {"proxy_an": {"alfa": OWN["alpha"]}}}, {}, "proxy_an.alfa: unknown key, did you mean alpha?"),
        ({"recipe": {"dimension": {"uniform": [0, 9]}}}, {}, "search.recipe.dimension: input should be greater"),
        ({"recipe": {"dimenson": {"uniform": [1, 9]}}}, {}, "search.recipe.dimenson: recipes have no such key"),
        ({"recipe": {"epochs": {"uniform": [9, 1]}}}, {}, "the first end of the range must be less than the second"),
        ({"recipe": {"epochs": {"log_uniform": [0, 1]}}}, {}, "a logarithm needs a range above 0"),
        ({"recipe": {"epochs": {"choice": [1, 1]}}}, {}, "1 comes twice, keep one"),
        ({"recipe": {"epochs": {}}}, {}, "give one of uniform, log_uniform and choice"),
        ({"recipe": RATE}, {"protocols": ["held_out"]}, "protocols: a search has its own, remove this key"),
        ({"recipe": RATE}, {"rows": {"loss": ["proxy_an"], "rate": [0.5]}}, "rows.rate: a search chooses the training"),
    ],
)
def test_an_impossible_search_is_one_clear_line(tmp_path, search, table, says):
    with pytest.raises(BadInputError) as error:
        read_params(written(tmp_path, {"tries": 3} | search, **table))
    assert says in str(error.value) and "tables.one" in str(error.value)


def test_the_choice_and_the_expected_best():
    assert tried.best_try({1: [0.5], 2: [0.7], 3: [0.7]}) == 2 and tried.best_try({1: [0.5], 2: [0.4]}) == 1
    assert tried.best_try({1: [0.5, 0.1], 2: [0.2, 0.5]}) == 2
    assert tried.best_try({1: [0.5, None], 2: [0.2, 0.5]}) is None
    results = [0.3, 0.1, 0.2, 0.2]
    for count, best in enumerate(expected_best(results), 1):
        draws = itertools.product(results, repeat=count)
        assert best == pytest.approx(statistics.fmean(max(draw) for draw in draws))


LOSSES = ("proxy_an", "proxy_anchor", "proxy_nca")


def test_the_final_runs_are_those_of_the_chosen_try(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, {"tries": 3, "folds": 2, "recipe": RATE}, LOSSES, raw_pixels=True)
    results = {}
    monkeypatch.setattr("pipeline.runs.grid.result", lambda run, metrics, *_: results.get(metrics.parent.name))
    monkeypatch.setattr("pipeline.tables.searches.result", lambda run, metrics, *_: results.get(metrics.parent.name))

    def final(**more):
        runs = [run for run in grid_runs("mine", **more) if run.searched == "proxy_an"]
        assert len({run.place for run in runs}) == len(runs)
        assert len([run for run in runs if run.judged]) == 6
        return {run.row: run.run for run in runs if run.run.protocol == "held_out"}

    assert [*final()] == ["proxy_an.try_1"]
    assert [*final(every_choice=True)] == [f"proxy_an.try_{n}" for n in (1, 2, 3)]
    results = {f"{loss}.try_{n}": [0.5, 0.6, 0.4][n - 1] for loss in LOSSES for n in (1, 2, 3)}
    assert final().keys() == {"proxy_an.try_1", "proxy_an.try_2"}
    chosen, rate = final()["proxy_an.try_2"], "learning_rates.network"
    point = read_params(path).tables["one"].search.point("proxy_an", "proxy_an", 2)[0]
    assert chosen.recipe.learning_rates.network == chosen.chosen_by.recipe.learning_rates.network == point[rate]
    assert chosen.chosen_by.fold is None and chosen.fold is None

    runs = grid_runs("mine")
    rows = collect_table(final_runs(runs), None)
    # By default the order is 1, 2, 3, and by choice 1, 3, 2.
    values = {"proxy_an.try_1": 0.7, "proxy_anchor.try_1": 0.6, "proxy_nca.try_1": 0.5}
    values |= {"proxy_an.try_2": 0.9, "proxy_anchor.try_2": 0.7, "proxy_nca.try_2": 0.8}
    for row in rows:
        rule = RULE if row.name in values else "last_epoch"
        metrics = {"recall@1": values.get(row.name, 0.65)}
        row.found[rule] = {run.run.seed: (Path("a.json"), metrics) for run in row.runs}
    table = read_params(path).tables["one"]
    found = searches(runs, rows)
    assert [(one.name, one.chosen, one.near) for one in found] == [(loss, 2, 1 / 3) for loss in LOSSES]
    assert "by Recall@1 as they are and as chosen: 0.50." in _order(found)[0] and _order(found[:2]) == []
    content = Content(table, rows, ["recall@1"], None, {}, found)
    block = blocks(content)[0]
    shown = [[entry.text for entry in line.entries] for line in block.lines]
    assert [line[0] for line in shown] == ["proxy_an", "proxy_nca", "proxy_anchor", "raw_pixels"]
    assert [line[3].split()[0] for line in shown] == ["best", "-10.00", "-20.00", "–"] and shown[2][4] == "<0.001"
    assert block.notes[-1].startswith("Not better than") and "raw_pixels" in block.notes[-1], block.notes
    assert "proxy_anchor.try_1, proxy_nca.try_1" in block.notes[-1]
    said = sentences(SimpleNamespace(name="one", settings=table, rows=rows, searches=found))
    assert said[0].startswith("glyphs, one: proxy_an.try_2 is the best of 3 rows") and len(said) == 1
    for name in ("once", "again"):
        chart(tmp_path / f"{name}.svg", [replace(found[0], best=None), *found[1:]], table)
    drawn = (tmp_path / "once.svg").read_bytes()
    assert drawn == (tmp_path / "again.svg").read_bytes() and all(loss in drawn.decode() for loss in LOSSES)


class Searching:
    """A copy of the small project with a grid that has a search. Of the second and the third try, one diverges."""

    def __init__(self, project, folder: Path):
        self.project, self.folder = project.copy(folder), folder

    def tries(self, count: int) -> None:
        recipe = {"learning_rates.network": {"choice": [0.002, 1.0e30]}}
        written(self.folder, {"tries": count, "folds": 2, "recipe": recipe}, ["proxy_nca"], seeds=[0])
        self.project.run("python", "-m", "pipeline.subsets", "glyphs", "--of", "mine")

    def start(self):
        words = ["python", "-m", "pipeline.run_grid", "mine", "glyphs"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(words, cwd=self.folder, env=ENVIRONMENT, **pipes)

    def done(self) -> dict[str, bytes]:
        folder = self.folder / "metrics/runs/mine"
        return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("0_*[a-z].json"))}


def test_killed_on_two_workers_and_with_more_tries_it_is_the_same_search(project, tmp_path):
    once, often = Searching(project, tmp_path / "once"), Searching(project, tmp_path / "often")
    often.tries(2)
    first = often.start()
    until(lambda: any((often.folder / "data/store").glob("*/run.json")), 120, "no run is done", first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    workers = [often.start() for _ in range(2)]
    assert [(worker.communicate()[0], worker.returncode)[1] for worker in workers] == [0, 0]
    before = often.done()
    often.tries(3)
    once.tries(3)
    for searching in (often, once):
        process = searching.start()
        said, _ = process.communicate()
        assert process.returncode == 0, said
    after, straight = often.done(), once.done()
    assert (
        after == straight and {name for name in after if "choose_epoch" not in name and "held_out" not in name} == set()
    )
    kept = {name: content for name, content in before.items() if name in after}
    assert all(after[name] == content for name, content in kept.items())
    assert {name for name in kept if "fold" in name and "try_1" in name}
    failed = sorted(path.parent.name for path in (once.folder / "metrics/runs").rglob("*.error.json"))
    assert failed in (["proxy_nca.try_2"] * 2, ["proxy_nca.try_3"] * 2)
    again = once.start()
    assert "started" not in again.communicate()[0] and again.returncode == 0, "a try that diverged is not repeated"
    printed = once.project.run("python", "-m", "pipeline.tabulate", "mine")
    assert "3, 1 diverged" in printed
    found = json.loads((once.folder / "metrics/tables/mine/one.json").read_text())["glyphs"]["proxy_nca.try_1"]
    tried_ = found["search"]["tries"]
    assert [0.0, 0.0] in [of["held_out"] for of in tried_[1:]] and found["held_out"]["map@r"]["n"] == 1
    assert len(tried_[0]["held_out"]) == 2 and all(0 < value < 1 for value in tried_[0]["held_out"])
