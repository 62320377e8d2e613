"""Evaluation: what is searched among what, pictures that agree with the metrics, embeddings alone and in company."""

import json
import shutil

import pytest
import torch

from pipeline.base.config import read_params
from pipeline.base.files import BadInputError
from pipeline.data.manifests import Row, read_manifest, write_manifests
from pipeline.data.packed import PackedImages
from pipeline.evaluate import metrics, retrievals
from pipeline.networks.network import embed, load_network, prepare
from pipeline.runs.run import best_epoch, read_history
from pipeline.training.loading import as_stored, read_retrieved
from tests import lookalikes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(project):
    """(recipe, network, packed images, what is retrieved, its pixels) of one run."""
    recipe = read_params(project.folder / "params.yaml").recipes["glyphs"]
    network = load_network(recipe, project.folder / "data/runs/glyphs/proxy_an/0/last_epoch.pt", CPU)
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


def test_metrics_are_those_of_the_kept_weights(project, trained):
    recipe, network, _, test, images = trained
    written = json.loads((project.folder / "metrics/runs/glyphs/proxy_an/0.json").read_text())["metrics"]
    prepare(recipe, "cpu")
    found = metrics(embed(network, images, recipe, CPU), test, recipe, seed=0)
    assert {"epoch": 2} | found == written["last_epoch"]
    history = project.folder / "data/runs/glyphs/proxy_an/0/history.jsonl"
    assert best_epoch(read_history(history)) == written["best_test_epoch"]["epoch"]
    tested = read_history(history)[1]["recall"]
    assert {name: found[name] for name in tested} == tested, "training and evaluation disagree"


def test_the_best_epoch_is_the_first_of_the_highest(tmp_path):
    values = ((1, 0.1), (2, None), (3, 0.3), (4, 0.3), (5, 0.2))
    lines = [{"epoch": epoch} | ({"recall": {"recall@1": value}} if value else {}) for epoch, value in values]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert best_epoch(read_history(tmp_path / "history.jsonl")) == 3
    with pytest.raises(BadInputError, match="train the run that writes it"):
        read_history(tmp_path / "none.jsonl")


def test_retrievals_show_hits_and_misses(project):
    folder = project.folder / "metrics/runs/glyphs"
    pages = [json.loads((folder / f"{run}_retrievals.json").read_text()) for run in ("proxy_an/0", "raw_pixels/0")]
    assert [page["query"] for page in pages[0]] == [page["query"] for page in pages[1]], "not the same queries"
    for page in pages:
        assert len(page) == 32
        for shown in page:
            similarities = [other["similarity"] for other in shown["nearest"]]
            assert len(similarities) == 8 and similarities == sorted(similarities, reverse=True)
            assert all(other["hit"] == (other["label"] == shown["label"]) for other in shown["nearest"])
            assert shown["query"] not in [other["image"] for other in shown["nearest"]]
    hits = [other["hit"] for shown in pages[0] for other in shown["nearest"]]
    assert 0.1 < sum(hits) / len(hits) < 0.9


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
    found = metrics(embeddings, test, recipe, seed=0)
    assert found["recall@1"] == pytest.approx(right.double().mean().item(), abs=2 / len(query))  # less ties
    names = {row.name for row in gallery}
    for shown in retrievals(embeddings, test, packed.entries):
        assert shown["query"] in {row.name for row in query}
        assert all(other["image"] in names for other in shown["nearest"])
        assert all(other["hit"] == (other["label"] == shown["label"]) for other in shown["nearest"])


def test_an_empty_manifest_is_refused(tmp_path):
    with pytest.raises(BadInputError, match=r"test\.csv has no images"):
        read_retrieved(lookalikes.manifests(tmp_path / "empty", "mine", train=[Row(0, 0, "b")], test=[]))
    rows = [Row(0, 8, "c"), Row(1, 9, "a"), Row(2, 9, "b")]
    splits = lookalikes.manifests(tmp_path, "mine", train=rows[:1], test=rows[1:])
    assert read_retrieved(splits).labels.tolist() == [9, 9]


def test_weights_of_another_recipe_are_refused(project, trained):
    recipe = trained[0].model_copy(update={"dimension": 32})
    path = project.folder / "data/runs/glyphs/proxy_an/0/last_epoch.pt"
    with pytest.raises(BadInputError, match="does not fit the recipe"):
        load_network(recipe, path, CPU)
    with pytest.raises(BadInputError, match="run the train stage"):
        load_network(recipe, path.with_name("none.pt"), CPU)
