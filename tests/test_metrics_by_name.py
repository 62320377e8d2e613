"""Metrics that a recipe chooses by name: what each gives, and what adding one costs."""

import json
import re

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from pipeline.base.choices import ROOMS, chosen, files, metric_names
from pipeline.base.recipe import Recipe, is_recipe_key, replaced
from pipeline.metrics.clustering import clustering
from pipeline.metrics.found import Found
from pipeline.metrics.retrieval import retrieval
from pipeline.tables.columns import heading, headings, is_number

KS = [1, 2, 4, 8]


def found(labels, seed=0):
    labels = torch.as_tensor(labels)
    points = normalize(torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(seed)))
    groups = torch.arange(len(labels)) % 3
    return Found(points, labels, {"embeddings": points, "labels": labels}, KS, seed, groups)


LABELS = [0] * 3 + [1] * 20 + [2] * 7 + [3]  # of unequal sizes, and one alone
BALANCED = [number % 5 for number in range(40)]


@pytest.mark.parametrize("counting", ["exact", "strict", "drop_first"])
def test_metrics_by_name_are_those_of_the_whole_evaluation(counting):
    given = found(LABELS)
    values = chosen("metric", "recall")(given, counting=counting) | chosen("metric", "map_at_r")(given)
    assert values == retrieval(given.embeddings, given.labels, KS, counting=counting)
    clusters = chosen("metric", "nmi")(given, kmeans="faiss")
    assert clusters == clustering(given.embeddings, given.labels, seed=0, kmeans="faiss")


def test_ranks_and_clusters_are_computed_once(monkeypatch):
    from pipeline.metrics import found as module

    calls = []
    whole = module.per_query
    monkeypatch.setattr(module, "per_query", lambda *of: calls.append(of[-1]) or whole(*of))
    given = found(LABELS)
    for name, settings in (("recall", {"counting": "strict"}), ("map_at_r", {}), ("class_map_at_r", {})):
        chosen("metric", name)(given, **settings)
    assert calls == ["strict"]


def by_definition(given):
    """MAP@R averaged by class, written out: for every query its neighbours by falling similarity."""
    similarity = (given.embeddings.double() @ given.embeddings.double().T).numpy()
    labels = given.labels.numpy()
    by_class = {}
    for query, label in enumerate(labels):
        others = np.delete(np.arange(len(labels)), query)
        nearest = others[np.argsort(-similarity[query, others])]
        r = int((labels[others] == label).sum())
        if r:
            hits = labels[nearest[:r]] == label
            precision = np.cumsum(hits) / np.arange(1, r + 1)
            by_class.setdefault(label, []).append((precision * hits).sum() / r)
    return np.mean([np.mean(values) for values in by_class.values()])


@pytest.mark.parametrize("seed", range(5))
def test_map_at_r_by_class(seed):
    given = found(LABELS, seed)
    value = chosen("metric", "class_map_at_r")(given)["class_map@r"]
    assert value == pytest.approx(by_definition(given), abs=1e-9)
    assert abs(value - chosen("metric", "map_at_r")(given)["map@r"]) > 1e-3, "classes of unequal sizes"
    even = found(BALANCED, seed)
    values = [
        chosen("metric", name)(even)[number]
        for name, number in (("class_map_at_r", "class_map@r"), ("map_at_r", "map@r"))
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-12), "the two agree if all classes are as large"


def test_every_file_gives_the_numbers_that_it_names():
    assert {"recall", "map_at_r", "class_map_at_r", "nmi"} <= {*files("metric")}
    seen = []
    for file in files("metric"):
        names = [name[:-1] + str(k) if name.endswith("@K") else name for name in metric_names(file) for k in KS]
        assert chosen("metric", file)(found(LABELS)).keys() == {*names}
        seen += metric_names(file)
    assert len(seen) == len({*seen}), "no two metrics have a number of the same name"


def test_names_and_headings_come_from_the_files():
    assert heading("recall@16") == "Recall@16" and heading("f1") == "F1" and heading("class_map@r") == "MAP@R by class"
    assert heading("recall_other_groups@4") == "Recall@4, other groups" and heading("recall@4x") == "recall@4x"
    assert all(is_number(name) for name in ("recall@1000", "f1", "map@r", "nmi_geometric", "class_map@r"))
    assert not any(
        is_number(name) for name in ("recall@K", "recall@0", "recall@01", "recal@1", "map@1", "recall", "F1")
    )
    assert {"recall@K", "map@r", "r_precision", "nmi_arithmetic", "f1"} <= headings().keys()


def test_a_row_may_change_a_setting_of_a_metric(project, monkeypatch):
    assert is_recipe_key("metrics.recall.counting") and ROOMS["metric"].has == "metric"
    content = {"metrics": [{"name": "recall", "counting": "exact"}, {"name": "nmi"}], "epochs": 1}
    changed = replaced(content, "metrics.recall.counting", "strict")
    assert changed["metrics"] == [{"name": "recall", "counting": "strict"}, {"name": "nmi"}]
    assert content["metrics"][0]["counting"] == "exact"
    with pytest.raises(TypeError):
        replaced(content, "metrics.recal.counting", "strict")
    assert Recipe.model_fields["metrics"].default == ["recall", "map_at_r", "nmi"]


NEW = '''"""A metric that a researcher adds: the share of queries whose nearest image is of another class."""

from pipeline.metrics.found import Found

NAMES = {"miss@1": "Misses"}


def metric(found: Found, *, times: float = 1.0) -> dict[str, float]:
    return {"miss@1": times * (found.ranks()[0] > 0).double().mean().item()}
'''


@pytest.fixture(scope="module")
def added(project, tmp_path_factory):
    """The small project, whose runs are done, with one new file of a metric, which the recipe and the table name."""
    copy = project.copy(tmp_path_factory.mktemp("metric") / "project")
    (copy.folder / "pipeline/metrics/by_name/misses.py").write_text(NEW)
    copy.before = states(copy)

    def change(params):
        params["recipes"]["glyphs"]["metrics"] = ["recall", "map_at_r", "class_map_at_r", "nmi", "misses"]
        params["tables"]["glyphs"]["columns"] = ["recall@1", "miss@1", "class_map@r", "f1", "r_precision"]

    copy.edit_params(change)
    return copy


def states(project):
    printed = project.run("python", "-m", "pipeline.run_grid", "default", "glyphs", "--dry-run")
    return dict(re.findall(r"^default/glyphs/glyphs/(\S+): (.+)$", printed, re.M))


def test_a_new_metric_is_one_file_and_trains_nothing(added):
    assert {*added.before.values()} == {"done"}, "a file that no recipe names changes nothing"
    now = states(added)
    assert now.pop("raw_pixels/0") == "not run" and {*now.values()} == {"not evaluated"}
    printed = added.run("python", "-m", "pipeline.run_grid", "default", "glyphs")
    assert " epoch 1/" not in printed
    metrics = json.loads((added.folder / "metrics/runs/default/glyphs/glyphs/proxy_an/0.json").read_text())["metrics"]
    for values in metrics.values():
        assert values["miss@1"] == pytest.approx(1 - values["recall@1"], abs=1e-12)
        assert 0 < values["class_map@r"] < 1 and abs(values["class_map@r"] - values["map@r"]) < 0.02
    page = added.run("python", "-m", "pipeline.tabulate", "default")
    heads = [[cell.strip() for cell in line.split("|")[2:-1]] for line in page.splitlines() if line.startswith("|  ")]
    assert heads[0] == ["Recall@1", "Misses", "MAP@R by class", "F1", "R-Precision"] and "not run" not in page


def test_a_column_that_no_metric_gives_is_refused(added):
    added.edit_params(lambda params: params["tables"]["glyphs"].update(columns=["recall@3"]))
    said = added.run("python", "-m", "pipeline.tabulate", "default", fails=2)
    assert "tables.glyphs.columns: recall@3: unknown key, did you mean recall@" in said
