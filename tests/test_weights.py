"""Pretrained weights: fetched, trusted for their hash, loaded whole or not at all."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.base.files import BadInputError, sha256
from pipeline.data.checksums import pin
from pipeline.networks import weights
from pipeline.networks.weights import fitted, load_weights, pretrained
from tests.lookalikes import project, stage
from tests.server import Served, serve


def small_network() -> nn.Sequential:
    """A network with a batch norm and a classifier named `2`."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10))


def trunk(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in network.state_dict().items() if not name.startswith("2.")}


def save(value: object, path: Path) -> str:
    """Save `value` as PyTorch does and return the file's SHA-256."""
    torch.save(value, path)
    return sha256(path)


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "model inside"])
def test_weights_come_back_without_their_classifier(tmp_path, wrapped):
    state = small_network().state_dict()
    digest = save({"model": state} if wrapped else state, tmp_path / "w.pth")
    for expected in (digest, digest[:8]):
        loaded = fitted(load_weights(tmp_path / "w.pth", expected), trunk(small_network()), ("2.",), "w.pth")
        assert loaded.keys() == trunk(small_network()).keys()
        assert all(torch.equal(loaded[name], state[name]) for name in loaded)


def test_old_files_have_a_leading_dimension_and_no_counters():
    state = small_network().state_dict()
    old = {name: value[None] if name.startswith("1.") else value for name, value in state.items()}
    del old["1.num_batches_tracked"]
    loaded = fitted(old, trunk(small_network()), ("2.",), "w.pth")
    network = small_network()
    network.load_state_dict(loaded | {name: state[name] for name in ("2.weight", "2.bias")})
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_every_entry_that_does_not_fit_is_named():
    state = dict(small_network().state_dict())
    del state["0.bias"]
    state["0.weight"] = torch.zeros(4, 3, 5, 5)
    state["3.weight"] = torch.zeros(1)
    with pytest.raises(BadInputError) as error:
        fitted(state, trunk(small_network()), ("2.",), "w.pth")
    assert str(error.value) == (
        "w.pth does not fit the network:\n"
        "  0.bias is missing\n"
        "  0.weight is (4, 3, 5, 5) where the network has (4, 3, 3, 3)\n"
        "  3.weight is not in the network"
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda value: value.to(torch.int64), "int64 where the network has float32"),
        (lambda value: value.to(torch.complex64), "complex64 where the network has float32"),
        (lambda value: value > 0, "bool where the network has float32"),
        (lambda value: value * torch.nan, "not finite: it holds NaN or infinity"),
        (lambda value: value.double() * 1e300, "not finite: it holds NaN or infinity"),
    ],
)
def test_numbers_of_another_kind_are_no_weights(change, problem):
    network = small_network()
    state = dict(network.state_dict())
    state["0.weight"] = change(state["0.weight"])
    with pytest.raises(BadInputError, match=f"0.weight is {problem}"):
        fitted(state, trunk(network), ("2.",), "w.pth")
    state["0.weight"] = network.state_dict()["0.weight"].half()
    assert fitted(state, trunk(network), ("2.",), "w.pth")["0.weight"].dtype == torch.float16


@pytest.mark.parametrize(
    ("header", "size", "problem"),
    [
        ('{"a": %s, "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}', 12, "b lies at the bytes 4 to 12"),
        ('{"a": %s, "a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}', 16, "a comes twice in the header"),
        ('{"a": %s}', 12, "it has .* bytes where its header tells of"),
        ('{"a": %s}', 8, ""),
    ],
)
def test_a_safetensors_file_has_each_byte_once(tmp_path, header, size, problem):
    text = (header % '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}').encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    if problem:
        with pytest.raises(BadInputError, match=problem):
            load_weights(path, sha256(path))
    else:
        assert load_weights(path, sha256(path))["a"].tolist() == [0, 0]


class Harmful:
    """Something whose loading would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"weight": Harmful(tmp_path / "harm")}, protocol=2))
    with pytest.raises(BadInputError, match=r"w\.pth is damaged, or holds more than weights"):
        load_weights(tmp_path / "w.pth", sha256(tmp_path / "w.pth"))
    assert not (tmp_path / "harm").exists()


def test_missing_truncated_and_wrong_files(tmp_path):
    path = tmp_path / "resnet50.pth"
    with pytest.raises(BadInputError, match=r"resnet50\.pth is missing: run `python -m pipeline.download resnet50`"):
        load_weights(path, "0" * 64)
    digest = save(small_network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInputError, match=f"is not the published file: SHA256 {digest} expected"):
        load_weights(path, digest)
    # The right hash of something that is no weights.
    with pytest.raises(BadInputError, match="is damaged, or holds more than weights"):
        load_weights(path, sha256(path))
    with pytest.raises(BadInputError, match="does not hold tensors with names"):
        load_weights(path, save([torch.zeros(1)], path))


def test_pretrained_takes_the_pinned_checksum(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights.FOLDER.mkdir(parents=True)
    state = {**trunk(small_network()), "head.weight": torch.zeros(2), "head_dist.bias": torch.zeros(2)}
    path = weights.FOLDER / "deit_small_distilled.pth"
    digest = save({"model": state}, path)
    with pytest.raises(BadInputError, match="SHA256 649709d9 expected"):
        pretrained("deit_small_distilled", trunk(small_network()))
    pin({"weights/deit_small_distilled.pth": digest})
    assert pretrained("deit_small_distilled", trunk(small_network())).keys() == trunk(small_network()).keys()


def test_the_stage_fetches_and_refuses_what_is_not_published(tmp_path):
    folder = project(tmp_path / "project", {})
    with serve({"/weights/resnet50.pth": Served(bytes(102_530_333))}) as base:
        done = stage(folder, "pipeline.download", "resnet50", PIPELINE_MIRRORS=base)
    assert done.returncode == 2
    assert "resnet50.pth: SHA256 0676ba61b6795bbe" in done.stderr
    assert not list((folder / "data/weights").iterdir())
    (folder / "data/raw/resnet50").mkdir(parents=True)
    done = stage(folder, "pipeline.download", "resnet50")
    assert done.returncode == 2 and "of the dataset data/raw/resnet50: rename the dataset" in done.stderr
