"""Evaluation: what is searched among what, pictures that agree with the metrics, embeddings alone and in company."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import evaluate
from pipeline.base.config import read_params
from pipeline.base.files import BadInputError
from pipeline.data.manifests import Row, read_manifest, write_manifests
from pipeline.data.packed import PackedImages
from pipeline.networks.network import load_network, prepare
from pipeline.runs import store
from pipeline.runs.run import best_epoch, read_history
from pipeline.training.embedding import embed
from pipeline.training.loading import as_stored, read_retrieved
from pipeline.training.outputs import write_history
from pipeline.work import evaluation
from pipeline.work.evaluation import class_results, kept_embeddings, metrics, numbered, query_results
from tests import lookalikes, swap

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(project):
    """(recipe, network, packed images, what is retrieved, its pixels) of one run."""
    recipe = read_params(project.folder / "params.yaml").recipes["glyphs"]
    network = load_network(recipe, project.folder / "data/runs/default/glyphs/glyphs/proxy_an/0/last_epoch.pt", CPU)
    packed = PackedImages(project.folder / "data/packed/glyphs")
    test = read_retrieved(project.folder / "data/splits/glyphs")
    return recipe, network, packed, test, as_stored(packed, test.numbers, 1, 32)


def test_an_embedding_does_not_depend_on_the_other_images(trained):
    recipe, network, _, _, images = trained
    prepare(recipe, "cpu")
    together = embed(network, images, recipe, CPU)
    assert together.shape == (3107, 64) and torch.allclose(together.norm(dim=1), torch.ones(3107))
    assert torch.equal(embed(network, images[:10], recipe, CPU), together[:10])
    assert torch.equal(embed(network, images[1000:1300], recipe, CPU), together[1000:1300])
    assert network.training, "embedding left the network in evaluation mode"


def fonts(packed, test):
    """The groups of the images."""
    return numbered([Path(packed.entries[number].name).stem for number in test.numbers])


def test_metrics_are_those_of_the_kept_weights(project, trained):
    recipe, network, packed, test, images = trained
    written = json.loads((project.folder / "metrics/runs/default/glyphs/glyphs/proxy_an/0.json").read_text())["metrics"]
    prepare(recipe, "cpu")
    found = metrics(embed(network, images, recipe, CPU), test, recipe, 0, fonts(packed, test))
    assert {"epoch": 2} | found == written["last_epoch"]
    history = project.folder / "data/runs/default/glyphs/glyphs/proxy_an/0/history.csv"
    assert best_epoch(read_history(history), history) == written["best_test_epoch"]["epoch"]
    tested = {name: value for name, value in read_history(history)[1].items() if name.startswith("recall@")}
    assert {name: found[name] for name in tested} == tested, "training and evaluation disagree"


def test_the_best_epoch_is_the_first_of_the_highest(tmp_path):
    path = tmp_path / "history.csv"
    write_history(path, [line(1, 0.1), line(2), line(3, 0.3), line(4, 0.3), line(5, 0.2)])
    assert best_epoch(read_history(path), path) == 3
    with pytest.raises(BadInputError, match="train the run that writes it"):
        read_history(tmp_path / "none.csv")


def line(epoch, recall=None):
    return {"epoch": epoch, "loss": 1.5, "weights": "0" * 16} | ({} if recall is None else {"recall@1": recall})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "epoch,loss\n",
        "epoch,loss,weights,recall@1\n1,nan,0,0.5\n",
        "epoch,loss,weights,recall@1\n2,1.0,0,0.5\n",
        "epoch,loss,weights,recall@1\n1,1.0,0,0.5\n1,1.0,0,0.5\n",
        "epoch,loss,weights,recall@1\n1,1.0,0,1.5\n",
        "epoch,loss,weights\n1,1.0,0\n",
        "<html>",
    ],
)
def test_a_damaged_history_chooses_no_epoch(tmp_path, text):
    path = tmp_path / "history.csv"
    path.write_text(text)
    with pytest.raises(BadInputError, match=r"history\.csv"):
        best_epoch(read_history(path), path)


DAMAGES = {
    "flipped bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "null": lambda path: path.write_text("null"),
    "a list": lambda path: path.write_text("[]"),
    "older schema": lambda path: swap(path, '"schema_number": 3', '"schema_number": 1'),
    "no key": lambda path: swap(path, '"key"', '"kee"', 1),
    "path as key": lambda path: path.write_text(
        re.sub(r'"key": "\w+"', '"key": "../../tqdm"', path.read_text(), count=1)
    ),
    "another seed": lambda path: swap(path, '"seed": 0', '"seed": 1'),
    "HTML": lambda path: path.write_text("<html>not found</html>"),
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("run.json", damage) for damage in DAMAGES),
        *((name, damage) for name in ("last_epoch.pt", "history.csv") for damage in list(DAMAGES)[:4]),
    ],
)
def test_a_damaged_run_is_not_evaluated(project, tmp_path, monkeypatch, capsys, name, damage):
    """In this process, on a copy of the run that the store does not have."""
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(store, "STORE", tmp_path / "store")
    run = tmp_path / "run"
    shutil.copytree(project.folder / "data/runs/default/glyphs/glyphs/proxy_an/0", run)
    copy = (run / name).read_bytes()
    (run / name).unlink()
    (run / name).write_bytes(copy)
    DAMAGES[damage](run / name)
    monkeypatch.setattr("sys.argv", ["evaluate", str(run), "--out", str(tmp_path / "metrics.json")])
    with pytest.raises(BadInputError, match=r"run"):
        evaluate.main()
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize("run", ["proxy_an/0", "raw_pixels/0"])
def test_what_each_query_found_agrees_with_the_metrics(project, trained, run):
    found = np.load(project.folder / f"data/queries/default/glyphs/glyphs/{run}/queries.npz", allow_pickle=False)
    written = json.loads((project.folder / f"metrics/runs/default/glyphs/glyphs/{run}.json").read_text())["metrics"]
    values = written.get("last_epoch") or written["no_training"]
    labels = np.array([entry.label for entry in trained[2].entries])
    assert found["query"].shape == (3107,) and found["nearest"].shape == found["similarity"].shape == (3107, 8)
    assert (np.diff(found["similarity"], axis=1) <= 0).all() and (found["nearest"] != found["query"][:, None]).all()
    hits = labels[found["nearest"]] == labels[found["query"]][:, None]
    for k in (1, 2, 4, 8):
        assert ((found["first_hit"] >= 0) & (found["first_hit"] < k)).mean() == pytest.approx(values[f"recall@{k}"])
        assert hits[:, :k].any(1).mean() == pytest.approx(values[f"recall@{k}"], abs=0.005), "but for ties"
    assert np.nanmean(found["average_precision"]) == pytest.approx(values["map@r"], rel=1e-5)
    assert found["label"].tolist() == list(range(31, 62))
    sizes = np.bincount(labels[found["query"]])[31:]
    assert np.average(found["recall"], weights=sizes) == pytest.approx(values["recall@1"])
    assert found["queries"].tolist() == list(sizes)
    wrong = labels[found["nearest"][:, 0]] != labels[found["query"]]
    one, other, count = found["confused"][0]
    pair = (labels[found["query"]] == one) & (labels[found["nearest"][:, 0]] == other)
    assert one != other and count == (pair & wrong).sum() > 1 and (np.diff(found["confused"][:, 2]) <= 0).all()
    fonts = np.array([Path(entry.name).stem for entry in trained[2].entries])
    others = found["nearest_in_others"]
    assert (fonts[others] != fonts[found["query"]][:, None]).all() and others.shape == (3107, 8)
    for k in (1, 2, 4, 8):
        value = values[f"recall_other_groups@{k}"]
        assert ((found["first_hit_in_others"] >= 0) & (found["first_hit_in_others"] < k)).mean() == pytest.approx(value)
        right = (labels[others] == labels[found["query"]][:, None])[:, :k].any(1).mean()
        assert right == pytest.approx(value, abs=0.005), "but for ties"
        assert value > values[f"recall@{k}"], "a font has one image of each character"
    assert ("embeddings" in found) == (run != "raw_pixels/0"), "raw pixels are the images themselves"


def test_no_pair_is_confused_where_everything_is_found():
    found = class_results(np.array([4, 4, 9, 9]), np.array([4, 4, 9, 9]), np.array([True, True, True, False]))
    assert found["confused"].shape == (0, 3) and found["recall"].tolist() == [1.0, 0.5]


def test_embeddings_are_kept_where_they_are_small(trained, monkeypatch):
    recipe, network, _, test, images = trained
    prepare(recipe, "cpu")
    embeddings = embed(network, images, recipe, CPU)
    kept = kept_embeddings(embeddings, test)
    assert kept["embedded"].tolist() == test.numbers and kept["embeddings"].dtype == np.float16
    assert np.abs(kept["embeddings"] - embeddings.numpy()).max() < 1e-3
    monkeypatch.setattr(evaluation, "EMBEDDED", 2 * embeddings.numel() - 1)
    monkeypatch.setattr(evaluation, "SAMPLED", 2**16)
    some = kept_embeddings(embeddings, test)
    assert 2**15 < some["embeddings"].nbytes <= 2**16 and set(some["embedded"]) < set(test.numbers)
    labels = dict(zip(test.numbers, test.labels.tolist(), strict=True))
    classes = {labels[number] for number in some["embedded"]}
    whole = [number for number in test.numbers if labels[number] in classes]
    assert some["embedded"].tolist() == whole, "whole classes"


def test_all_embeddings_are_kept_where_they_are_asked_for(project, trained, tmp_path, monkeypatch):
    recipe, network, _, test, images = trained
    monkeypatch.chdir(project.folder)
    run, file = "data/runs/default/glyphs/glyphs/proxy_an/0", tmp_path / "embeddings.npz"
    words = ["evaluate", run, "--out", str(tmp_path / "metrics.json"), "--keep-embeddings", str(file)]
    monkeypatch.setattr("sys.argv", words)
    evaluate.main()
    kept = np.load(file, allow_pickle=False)
    prepare(recipe, "cpu")
    assert kept["embedded"].tolist() == test.numbers
    assert (kept["embeddings"] == embed(network, images, recipe, CPU).numpy().astype(np.float16)).all()
    with pytest.raises(BadInputError, match=r"embeddings\.npz is a file that this stage did not make"):
        evaluate.main()


def test_a_run_is_evaluated_by_other_metrics_than_those_it_was_made_for(project, tmp_path, monkeypatch):
    """Grids with other metrics share one training, so its record names none of them."""
    monkeypatch.chdir(project.folder)
    run, out = "data/runs/default/glyphs/glyphs/proxy_an/0", tmp_path / "metrics.json"
    assert "metrics" not in (project.folder / run / "run.json").read_text()
    words = ["evaluate", run, "--out", str(out), "--metrics", "[recall, {name: class_map_at_r}]"]
    monkeypatch.setattr("sys.argv", words)
    evaluate.main()
    assert {*json.loads(out.read_text())["metrics"]["last_epoch"]} == {
        "epoch", *(f"recall@{k}" for k in (1, 2, 4, 8)), "class_map@r"
    }  # fmt: skip
    for wrong, said in (
        ("[recal]", r"metrics.recal: there is no file recal.py in pipeline/metrics/by_name: choose one of"),
        ("[nmi]", "metrics: recall is missing"),
        ("3", "metrics"),
    ):
        monkeypatch.setattr("sys.argv", [*words[:-1], wrong])
        with pytest.raises(BadInputError, match=rf"--metrics:\n  {said}"):
            evaluate.main()


def test_queries_are_searched_in_the_gallery(project, trained, tmp_path):
    recipe, network, packed, _, _ = trained
    rows = read_manifest(project.folder / "data/splits/glyphs/test.csv")
    query, gallery = rows[::3], [row for place, row in enumerate(rows) if place % 3]
    index = shutil.copytree(project.folder / "data/packed/glyphs", tmp_path / "packed/glyphs") / "index.csv"
    splits = tmp_path / "splits/glyphs"
    splits.parent.mkdir()
    write_manifests(splits, {"query": query, "gallery": gallery}, [index])
    test = read_retrieved(splits)
    assert test.queries == len(query) and [path.name for path in test.manifests] == ["query.csv", "gallery.csv"]
    embeddings = embed(network, as_stored(packed, test.numbers, 1, 32), recipe, CPU)
    similarities = embeddings[: len(query)] @ embeddings[len(query) :].T
    labels = torch.tensor([row.label for row in gallery])
    right = labels[similarities.argmax(1)] == torch.tensor([row.label for row in query])
    found = metrics(embeddings, test, recipe, 0, fonts(packed, test))
    assert found["recall@1"] == pytest.approx(right.double().mean().item(), abs=2 / len(query))  # less ties
    shown = query_results(embeddings, test)
    assert shown["query"].tolist() == [row.image for row in query]
    assert set(shown["nearest"].ravel()) <= {row.image for row in gallery}
    best = [gallery[place].image for place in similarities.argmax(1)]
    assert (shown["nearest"][:, 0] == best).mean() > 0.99, "but for ties"


def test_an_empty_manifest_is_refused(tmp_path):
    with pytest.raises(BadInputError, match=r"test\.csv has no images"):
        read_retrieved(lookalikes.manifests(tmp_path / "empty", "mine", train=[Row(0, 0, "b")], test=[]))
    rows = [Row(0, 8, "c"), Row(1, 9, "a"), Row(2, 9, "b")]
    splits = lookalikes.manifests(tmp_path, "mine", train=rows[:1], test=rows[1:])
    assert read_retrieved(splits).labels.tolist() == [9, 9]


def test_weights_of_another_recipe_are_refused(project, trained):
    recipe = trained[0].model_copy(update={"dimension": 32})
    path = project.folder / "data/runs/default/glyphs/glyphs/proxy_an/0/last_epoch.pt"
    with pytest.raises(BadInputError, match="does not fit the recipe"):
        load_network(recipe, path, CPU)
    with pytest.raises(BadInputError, match="make its run again"):
        load_network(recipe, path.with_name("none.pt"), CPU)
