"""The embedded dataset: the same bytes everywhere, and what its stages refuse."""

import csv
import hashlib
import shutil

import numpy as np
import pytest

from pipeline.base.files import BadInputError, sha256, submodule
from pipeline.data.packed import PackedImages, read_index
from pipeline.datasets import glyphs
from pipeline.datasets.checks import check


def test_the_same_bytes_on_every_machine(project):
    packed = project.folder / "data/packed/glyphs"
    assert sha256(packed / "images.bin") == "2153d29d33b96cee6f249b8b80547773cd091ec8960f0efe99a3fd99c9311e33"
    assert sha256(packed / "index.csv") == "b865f9b11e7c18ddee2db2113af06ec47e10735b7aa230f28cb2d7cfa60b877c"


def test_index_and_images_agree(project):
    images = PackedImages(project.folder / "data/packed/glyphs")
    assert len(images) == 6221
    for entry in images.entries[::500]:
        assert hashlib.sha256(images.encoded(entry.image)).hexdigest() == entry.sha256
        grey = images.decoded(entry.image, 1)
        assert grey.shape == (32, 32, 1) and grey.max() > 0
        assert np.array_equal(images.decoded(entry.image, 3), grey.repeat(3, axis=2))
    per_class = {}
    for entry in images.entries:
        per_class.setdefault(entry.label, set()).add(entry.sha256)
    assert len(per_class) == 62
    assert sum(map(len, per_class.values())) == len(images), "an image comes twice in its class"


def test_manifests_are_disjoint_by_class(project):
    def labels(name):
        with (project.folder / f"data/splits/glyphs/{name}.csv").open(newline="") as file:
            return {int(row["label"]) for row in csv.DictReader(file)}

    assert labels("train") == set(range(31)) and labels("test") == set(range(31, 62))
    assert labels("held_out_train") | labels("held_out_test") == labels("train")
    assert not labels("held_out_train") & labels("held_out_test")


def test_drawing_keeps_aspect_and_centre():
    bar = glyphs.draw("#\n#\n#\n#\n")  # 32 rows of 4 pixels: as high as the image, 4 wide
    assert np.array_equal(np.nonzero(bar.any(0))[0], np.arange(14, 18)) and (bar[:, 14:18] == 255).all()
    assert glyphs.draw("  \n \n") is None
    half = glyphs.draw("▀")
    assert half[:, :].max() == 255 and np.array_equal(half, half[::-1])
    shrunk = glyphs.draw("\n".join(["# " * 20] * 10))  # finer than a pixel: the average, to the integer
    assert set(np.unique(shrunk)) <= set(range(256)) and 100 < shrunk[16].astype(int).mean() < 160


def test_overlaps_lose_no_ink():
    weights = glyphs._overlaps(13, 32)
    assert (weights.sum(1) == 13).all() and (weights.sum(0) == 32).all()


def test_an_altered_font_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, "fonts", lambda: {"doh.flf": "0" * 64})
    with pytest.raises(BadInputError, match=r"doh\.flf .* missing or altered"):
        glyphs.download(tmp_path / "raw")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda raw: shutil.copy(raw / "3x5.flf", raw / "3-d.flf"), r"the font \S+/3-d\.flf is missing or altered"),
        (lambda raw: (raw / "3x5.flf").unlink(), r"the font \S+/3x5\.flf is missing or altered"),
        (
            lambda raw: (raw / "3x5.flf").write_bytes((raw / "3x5.flf").read_bytes() + b"\n"),
            r"the font \S+/3x5\.flf is missing or altered",
        ),
        (
            lambda raw: shutil.copy(raw / "3-d.flf", raw / "3x5.tlf"),
            r"holds files that are not fonts of the list \(3x5\.tlf\)",
        ),
    ],
    ids=["another font", "missing", "one line more", "beside"],
)
def test_fonts_that_changed_since_the_download_are_named(project, tmp_path, spoil, reason):
    shutil.copytree(project.folder / "data/raw/glyphs", tmp_path / "glyphs")
    for path in (tmp_path / "glyphs").iterdir():
        path.chmod(0o644)
    next(glyphs.images(tmp_path / "glyphs"))
    spoil(tmp_path / "glyphs")
    with pytest.raises(BadInputError, match=f"{reason}.*: run the download stage again"):
        next(glyphs.images(tmp_path / "glyphs"))


def test_another_version_of_pyfiglet_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, "PYFIGLET", "1.0.3")
    with pytest.raises(BadInputError, match=r"pyfiglet 1\.0\.4 is installed, but glyphs needs 1\.0\.3"):
        glyphs.download(tmp_path / "raw")
    with pytest.raises(BadInputError, match=r"pyfiglet 1\.0\.4 is installed, but glyphs needs 1\.0\.3"):
        next(glyphs.images(tmp_path / "raw"))


def test_another_edition_is_refused(project):
    entries = read_index(project.folder / "data/packed/glyphs")
    manifests = {name: [entries[image] for image in images] for name, images in glyphs.split(entries).items()}
    assert check("glyphs", glyphs, manifests) == {}, "something was left to pin"
    manifests["test"].pop()
    with pytest.raises(BadInputError, match="manifest test of glyphs should have 3,107 images"):
        check("glyphs", glyphs, manifests)


def test_a_cut_store_is_refused(project, tmp_path):
    shutil.copytree(project.folder / "data/packed/glyphs", tmp_path / "glyphs")
    store = tmp_path / "glyphs/images.bin"
    store.chmod(0o644)
    store.write_bytes(store.read_bytes()[:-1])
    with pytest.raises(BadInputError, match="run the convert stage again"):
        PackedImages(tmp_path / "glyphs")


def test_an_unknown_dataset_names_the_known_ones():
    with pytest.raises(BadInputError, match="glyphs"):
        submodule("datasets", "glyph")
