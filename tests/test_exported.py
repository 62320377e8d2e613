"""A network for others: what is written, and that its card's code embeds images without this project."""

import json
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from pipeline import export
from pipeline.base.files import BadInputError
from pipeline.data.packed import PackedImages
from pipeline.embed import embeddings_of
from pipeline.networks.network import EmbeddingNetwork
from pipeline.runs import store
from pipeline.runs.kept import weights_of
from pipeline.runs.key import training_key
from pipeline.work import exported
from pipeline.work.job import Job, perform
from tests.small_run import small_run

TIMM = {
    "backbone": "timm/test_vit.r160_in1k",
    "pooling": "class_token",
    "test_fit": "pad",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "channel_order": "bgr",
}


@pytest.fixture(scope="module", params=["small", "timm"])
def made(request, tmp_path_factory):
    """(folder of the export, folder of the run, workplace)"""
    place = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        run = small_run(place, **(TIMM if request.param == "timm" else {}))
        assert perform(Job(run, "run", "cpu", 0)) == 0
        folder = store.folder(training_key(run, "cpu").digest)
        exported_to(patch, folder, "out", "--licence", "mit")
    return place / "out", place / folder, place


def exported_to(patch, folder, target, *words):
    patch.setattr("sys.argv", ["export", str(folder), "--to", target, *words])
    export.main()


def expected(run, place, monkeypatch):
    """The embedding of the first image, as the run's evaluation makes it."""
    monkeypatch.chdir(place)
    record, weights = weights_of(run, None)
    packed = PackedImages(Path("data/packed/glyphs"))
    return packed.encoded(0), embeddings_of(record, weights, packed, "cpu", 0)[0]


def by_card(folder, file, encoded):
    """The embedding that the card's code gives, in a process that knows nothing of this project."""
    (folder / "image.png").write_bytes(encoded)
    card = (folder / "README.md").read_text()
    code = re.search(rf"With `{file}`:\n\n```python\n(.*?)```", card, re.DOTALL)[1]
    said = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nassert 'pipeline' not in sys.modules\nprint(embedding.tolist())"],
        **{"cwd": folder, "capture_output": True, "text": True},
    )
    assert said.returncode == 0, said.stderr
    return np.array(json.loads(said.stdout.splitlines()[-1]))[0]


def test_the_cards_code_embeds_without_this_project(made, monkeypatch):
    folder, run, place = made
    encoded, truth = expected(run, place, monkeypatch)
    assert by_card(folder, "model.pt2", encoded) == pytest.approx(truth, abs=1e-5)


@pytest.mark.onnx
def test_the_cards_code_embeds_with_onnx(made, monkeypatch):
    import onnx

    folder, run, place = made
    encoded, truth = expected(run, place, monkeypatch)
    assert by_card(folder, "model.onnx", encoded) == pytest.approx(truth, abs=1e-5)
    graph = onnx.load(folder / "model.onnx")
    assert {of.domain: of.version for of in graph.opset_import}[""] == exported.OPSET
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_weights_and_what_they_are(made, monkeypatch):
    folder, run, place = made
    monkeypatch.chdir(place)
    record, weights = weights_of(run, None)
    config = json.loads((folder / "config.json").read_text())
    assert (config["key"], config["weights"], config["began_from"]) == (record.key, "last_epoch", None)
    assert 0 <= config["metrics"]["recall@1_over_test_classes"]["low"] <= config["metrics"]["recall@1"] <= 1
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    EmbeddingNetwork(record.recipe).load_state_dict(tensors, strict=True)
    kept = torch.load(weights, weights_only=True)
    assert tensors.keys() == kept.keys() and all(torch.equal(tensors[name], kept[name]) for name in kept)


def test_the_card_is_in_the_hubs_form(made):
    folder, _, _ = made
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    config = json.loads((folder / "config.json").read_text())
    assert card.data.license == "mit" and card.data.pipeline_tag == "image-feature-extraction"
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values["recall@1"] == round(100 * config["metrics"]["recall@1"], 2)
    assert config["key"] in card.content and "random weights" in card.content


def test_timm_loads_its_trunk(made, monkeypatch):
    folder, run, _ = made
    if not (folder / "trunk").exists():
        assert json.loads((folder / "config.json").read_text())["backbone"] == "small"
        return
    trunk = timm.create_model(f"local-dir:{folder / 'trunk'}", pretrained=True, img_size=32)
    kept = torch.load(weights_of(run, None)[1], weights_only=True)
    own = {name.removeprefix("backbone.trunk."): of for name, of in kept.items() if name.startswith("backbone.trunk.")}
    assert trunk.state_dict().keys() == own.keys() and all(
        torch.equal(trunk.state_dict()[name], own[name]) for name in own
    )


def test_what_an_exporter_refuses_is_named(made, monkeypatch, capsys):
    _, run, place = made
    monkeypatch.chdir(place)

    def refuse(*words, **more):
        raise RuntimeError("no such operator\nand more lines")

    monkeypatch.setattr(torch.export, "export", refuse)
    monkeypatch.setattr(exported, "ONNX", ("a_package_that_is_missing",))
    exported_to(monkeypatch, run, f"refused-{run.name}")
    said = capsys.readouterr().err
    assert "model.pt2 is not written: torch.export refuses" in said and "no such operator\nmodel.onnx" in said
    assert "model.onnx is not written: a_package_that_is_missing missing: `make .venv/tests`" in said
    written = {path.name for path in Path(f"refused-{run.name}").iterdir()} - {"trunk"}
    assert written == {"README.md", "config.json", "model.safetensors"}
    assert "No graph could be written" in Path(f"refused-{run.name}", "README.md").read_text()


def test_a_graph_that_is_off_is_not_kept(tmp_path):
    (tmp_path / "model.pt2").write_text("")
    assert "off by 2.0e-05, more than 1e-05" in exported._too_far(tmp_path / "model.pt2", 2e-5)
    assert not (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/run", "--to", "new"], "nowhere/run/run.json is missing: name the folder of a run, or a dataset"),
        (["RUN"], "--to: name the folder for the network"),
        (["RUN", "--to", "new", "--licence", "M I T"], "--licence is 'M I T': give a name of the hub's list"),
        (["RUN", "--to", "new", "--weights", "best"], "has no best: choose among"),
        (["RUN", "--to", "data"], "data is a folder that this stage did not make"),
    ],
)
def test_what_cannot_be_exported_is_one_line(made, monkeypatch, words, message):
    _, run, place = made
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.argv", ["export", *(str(run) if word == "RUN" else word for word in words)])
    with pytest.raises(BadInputError, match=message):
        export.main()
    assert not Path("new").exists()
