"""Each dataset from a look-alike of its archive to its manifests, by the true stages."""

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import convert, split
from pipeline.base.files import BadInputError, sha256, submodule
from pipeline.data import archives, mirrors, transfer
from pipeline.data.checksums import write_sums
from pipeline.data.index import read_index, write_index
from pipeline.data.packed import PackedImages, pack
from pipeline.datasets import Expected, cars, checks, cub, inshop, sop
from tests import lookalikes
from tests.lookalikes import CARS_COUNTS, CUB_COUNTS, INSHOP_COUNTS, SOP_COUNTS, project, stage
from tests.server import Served, serve


def run_stages(folder: Path, dataset: str, source: Path) -> dict[str, list[dict[str, str]]]:
    """Download from a local server that serves `source`, convert and split; return the manifests' rows."""
    files = {f"/raw/{dataset}/{path.name}": Served(path.read_bytes()) for path in source.iterdir()}
    with serve(files) as base:
        for name in ("download", "convert", "split"):
            done = stage(folder, f"pipeline.{name}", dataset, PIPELINE_MIRRORS=base)
            assert done.returncode == 0, done.stderr
    manifests = {}
    for path in (folder / "data/splits" / dataset).glob("*.csv"):
        with path.open(newline="") as file:
            manifests[path.stem] = list(csv.DictReader(file))
    return manifests


def test_cub_goes_from_archive_to_class_folders(tmp_path):
    lookalikes.cub(tmp_path / "source")
    folder = project(tmp_path / "project", {"cub": CUB_COUNTS})
    manifests = run_stages(folder, "cub", tmp_path / "source")
    # images.txt goes by class, and within a class not by name.
    assert [row["name"].removeprefix("001.Black_footed_Albatross/") for row in manifests["train"][:3]] == [
        f"Black_footed_Albatross_{rest}.jpg" for rest in ("0046_53", "0009_16", "0002_9")
    ]
    assert [row["label"] for row in manifests["test"]] == ["2", "2", "2", "3", "3", "3"]
    assert [row["label"] for row in manifests["held_out_test"]] == ["1", "1", "1"]
    done = stage(folder, "pipeline.export", "cub")
    assert done.returncode == 0, done.stderr
    originals = {name.split("/images/")[-1]: content for name, content in lookalikes.cub_files().items()}
    for part, label in (("train", "001.Black_footed_Albatross"), ("test", "004.Groove_billed_Ani")):
        exported = list((folder / "data/export/cub" / part / label).iterdir())
        assert len(exported) == 3
        assert all(path.read_bytes() == originals[f"{label}/{path.name}"] for path in exported)


@pytest.mark.parametrize("build", [lookalikes.cars_combined, lookalikes.cars_official], ids=["car_ims", "official"])
def test_cars_goes_from_archives_to_class_folders(tmp_path, build):
    build(tmp_path / "source")
    folder = project(tmp_path / "project", {"cars": CARS_COUNTS})
    manifests = run_stages(folder, "cars", tmp_path / "source")
    assert [row["label"] for row in manifests["train"]] == ["0"] * 4 + ["1"] * 3
    assert stage(folder, "pipeline.export", "cars").returncode == 0
    assert {path.name for path in (folder / "data/export/cars/test").iterdir()} == {
        "Ram C%2FV Cargo Van Minivan 2012",
        "smart fortwo 2012",
    }


def test_cars_layouts_pack_to_the_same_bytes(tmp_path):
    builders = {
        "combined": lookalikes.cars_combined,
        "official": lookalikes.cars_official,
        "kaggle": lambda raw: lookalikes.cars_official(raw, kaggle=True),
    }
    found = set()
    for name, build in builders.items():
        build(tmp_path / name)
        assert pack(cars.images(tmp_path / name), tmp_path / "packed" / name).images == 12
        found.add(tuple(sha256(tmp_path / "packed" / name / file) for file in ("images.bin", "index.csv")))
    assert len(found) == 1
    originals = sorted((label - 1, content) for label, _, content in lookalikes.cars_images())
    packed = PackedImages(tmp_path / "packed" / "kaggle")
    assert sorted((entry.label, packed.encoded(entry.image)) for entry in packed.entries) == originals


def rezipped(raw: Path, root: str, *into: str) -> None:
    """Put what the published archives in `raw` hold into `into`, each an archive or a folder, in turn, under `root`."""
    files = {}
    for path in sorted(raw.iterdir()):
        packed = path.name.endswith(archives.ARCHIVES)
        files |= dict(archives.read(path, lambda name: True)) if packed else {path.name: path.read_bytes()}
        path.unlink()
    for number, target in enumerate(into):
        chosen = {f"{root}{name}": content for name, content in list(files.items())[number :: len(into)]}
        if target.endswith(".zip"):
            lookalikes.zipped(raw / target, chosen)
        elif target.endswith(".tgz"):
            lookalikes.tgz(raw / target, chosen)
        for name, content in () if target.endswith(archives.ARCHIVES) else chosen.items():
            (raw / target / name).parent.mkdir(parents=True, exist_ok=True)
            (raw / target / name).write_bytes(content)


@pytest.mark.parametrize(
    ("dataset", "build", "root", "into"),
    [
        (cub, lookalikes.cub, "", ["birds.zip"]),
        (cub, lookalikes.cub, "data/birds/", ["CUB_200_2011.zip"]),
        (cub, lookalikes.cub, "", ["kagglehub"]),
        (sop, lookalikes.sop, "kaggle/", ["archive.zip"]),
        (sop, lookalikes.sop, "", ["one.tgz", "two.zip"]),
        (inshop, lookalikes.inshop, "In-shop/Img/", ["inshop.zip"]),
        (inshop, lookalikes.inshop, "", ["."]),
        (cars, lookalikes.cars_combined, "CARS196/", ["CARS196.zip"]),
        (cars, lookalikes.cars_official, "stanford_cars/", ["archive.zip"]),
        (cars, lookalikes.cars_official, "", ["."]),
        (cars, lookalikes.cars_by_class, "car_data/", ["archive.zip"]),
        (cars, lookalikes.cars_on_the_hub, "", []),
    ],
)
def test_mirrors_pack_to_the_same_bytes(tmp_path, monkeypatch, dataset, build, root, into):
    monkeypatch.setattr(cars, "KNOWN", {hashlib.md5(content).hexdigest() for _, _, content in lookalikes.cars_images()})
    name = dataset.__name__.rsplit(".", 1)[1]
    published = lookalikes.cars_official if dataset is cars else build
    published(tmp_path / "published" / name)
    raw = tmp_path / "mirror" / name
    build(raw)
    if into:
        rezipped(raw, root, *into)
    dataset.download(raw)
    found = []
    for place in (tmp_path / "published" / name, raw):
        form = dataset.form(place)
        assert form.startswith(mirrors.OTHER if place == raw else "published: ")
        assert place != raw or (into[0].strip(".") if into else "cars_meta.mat (SHA") in form
        pack(dataset.images(place), packed := place.with_name("packed"), form=form)
        assert (packed / "form.txt").read_text() == form
        found.append([(packed / file).read_bytes() for file in ("index.csv", "images.bin")])
    assert found[0] == found[1]


def test_a_mirror_pins_nothing_and_must_have_the_pinned_bytes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cub, "EXPECTED", {part: Expected(*counts) for part, counts in CUB_COUNTS.items()})
    monkeypatch.setattr(cub, "TRAINING_CLASSES", 2)
    raw = Path("data/raw/cub")
    lookalikes.cub(raw)
    rezipped(raw, "CUB_200_2011/", "CUB_200_2011.zip")
    monkeypatch.setattr("sys.argv", ["stage", "cub"])
    convert.main()
    split.main()
    assert not Path("data/checksums").exists()
    assert f"warning: cub: {mirrors.OTHER}CUB_200_2011.zip (SHA-256 " in capsys.readouterr().err
    Path("data/checksums").write_text(f"{'0' * 64}  images/cub\n")
    with pytest.raises(BadInputError, match=f"the images of cub should have the fingerprint {'0' * 64}, but have"):
        split.main()


def test_mirrors_that_are_refused(tmp_path, monkeypatch):
    raw = tmp_path / "raw/cars"
    lookalikes.cars_by_class(raw)
    with pytest.raises(BadInputError, match="no image has the MD5 2d44a28f071aeaac9c0802fddcde452e"):
        list(cars.images(raw))
    files = {name: of.replace(b",1\n", b",2\n", 1) for name, of in archives.read(raw / "by_class.zip", bool)}
    lookalikes.zipped(raw / "by_class.zip", files)
    with pytest.raises(BadInputError, match="the images of the folder AM General Hummer SUV 2000 to several classes"):
        list(cars.images(raw))
    lookalikes.zipped(raw / "by_class.zip", {name: of for name, of in files.items() if name != "names.csv"})
    with pytest.raises(BadInputError, match=r"does not hold Cars196\. A mirror's form .* with anno_train\.csv,"):
        list(cars.images(raw))
    hub = tmp_path / "hub/cars"
    lookalikes.cars_on_the_hub(hub)
    with pytest.raises(BadInputError, match="hub/cars: no image has the MD5 2d44a28f071aeaac9c0802fddcde452e"):
        list(cars.images(hub))
    extra = lookalikes.parquet(hub / "data/x.parquet", [(lookalikes.picture(1), 3)])
    with pytest.raises(BadInputError, match=r"data/x\.parquet row 1: '3' is no class of Cars196\. The labels must"):
        list(cars.images(hub))
    extra.write_bytes(b"PAR1")
    with pytest.raises(BadInputError, match=r"data/x\.parquet is damaged, or no Parquet file"):
        list(cars.images(hub))
    lookalikes.sop(tmp_path / "sop")
    rezipped(tmp_path / "sop", "", "sop.zip")
    monkeypatch.setattr(sop, "KNOWN", {"bicycle_final/111085122871_0.JPG": "0" * 32})
    with pytest.raises(BadInputError, match=r"sop: bicycle_final/111085122871_0\.JPG should have the MD5 0000"):
        list(sop.images(tmp_path / "sop"))
    monkeypatch.setenv("PIPELINE_MIRRORS", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    lookalikes.zipped(Path("data/raw/cub/birds.zip"), {"images.txt": b"", "more.tgz": b"", "a.jpg": b""})
    Path("data/raw/cub/train").mkdir()
    monkeypatch.setattr(transfer, "PAUSE", 0)
    with pytest.raises(BadInputError, match=r"(?s)must hold images\.txt, .*cub/train looks like a dataset of your"):
        cub.download(Path("data/raw/cub"))


def test_sop_goes_from_archive_to_manifests(tmp_path):
    lookalikes.sop(tmp_path / "source")
    folder = project(tmp_path / "project", {"sop": SOP_COUNTS})
    manifests = run_stages(folder, "sop", tmp_path / "source")
    assert [row["label"] for row in manifests["test"]] == ["3", "3", "4", "4", "5", "5"]
    assert manifests["train"][0]["name"] == "bicycle_final/111085122871_0.JPG"
    assert [row["label"] for row in manifests["held_out_train"]] == ["0", "0"]


def test_inshop_is_taken_from_where_a_person_put_it(tmp_path):
    folder = project(tmp_path / "project", {"inshop": INSHOP_COUNTS})
    done = stage(folder, "pipeline.download", "inshop")
    assert done.returncode == 2
    assert "get img.zip from https://drive.google.com/file/d/0B7EVK8r0v71pS2YxRE1QTFZzekU" in done.stderr
    assert "put it at data/raw/inshop/list_eval_partition.txt" in done.stderr
    lookalikes.inshop(folder / "data/raw/inshop")
    for name in ("download", "convert", "split", "export"):
        done = stage(folder, f"pipeline.{name}", "inshop")
        assert done.returncode == 0, done.stderr
    entries = read_index(folder / "data/packed/inshop")
    assert [entry.class_name for entry in entries[:2]] == ["id_00000002"] * 2
    assert {entry.class_name: entry.label for entry in entries} == {
        f"id_{item:08}": label for label, item in enumerate([2, 3, 5, 7, 10])
    }
    query = {path.name for path in (folder / "data/export/inshop/query").iterdir()}
    assert (
        query
        == {path.name for path in (folder / "data/export/inshop/gallery").iterdir()}
        == {"id_00000005", "id_00000010"}
    )
    with (folder / "data/splits/inshop/gallery.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["2", "2", "4"]


def entries_of(build, dataset, folder):
    """The index of a packed look-alike."""
    build(folder / "raw")
    pack(dataset.images(folder / "raw"), folder / "packed")
    return read_index(folder / "packed")


def manifests_of(dataset, entries):
    return {part: [entries[image] for image in images] for part, images in dataset.split(entries).items()}


@pytest.mark.parametrize(
    ("name", "build", "should", "has"),
    [
        ("cub", lookalikes.cub, "5,864 images, 100 classes", "12 images, 4 classes"),
        ("cars", lookalikes.cars_combined, "8,054 images, 98 classes", "12 images, 4 classes"),
        ("sop", lookalikes.sop, "59,551 images, 11,318 classes", "6 images, 3 classes"),
        ("inshop", lookalikes.inshop, "25,882 images, 3,997 classes", "6 images, 3 classes"),
    ],
)
def test_published_counts_refuse_other_images(tmp_path, monkeypatch, name, build, should, has):
    monkeypatch.chdir(tmp_path)
    dataset = submodule("datasets", name)
    manifests = manifests_of(dataset, entries_of(build, dataset, tmp_path))
    with pytest.raises(BadInputError, match=rf"{name}\.py: the manifest train .* should have {should}, but has {has}:"):
        checks.check(name, dataset, manifests)


def test_classification_split_is_refused_by_name(tmp_path):
    entries = entries_of(lookalikes.cub, cub, tmp_path)
    manifests = {"train": entries[::2], "test": entries[1::2]}
    with pytest.raises(BadInputError, match=r"(?s)4 classes are both in train .*001\.Black.* the classification split"):
        checks.check("cub", cub, manifests)


def test_cub_200_of_2010_is_told_apart(tmp_path):
    lookalikes.tgz(tmp_path / "raw/CUB_200_2011.tgz", {"images/001.Black_footed_Albatross/a.jpg": b""})
    with pytest.raises(BadInputError, match=r"no CUB_200_2011/images.txt .*\(CUB-200 of 2010 has the same classes"):
        list(cub.images(tmp_path / "raw"))
    entry = entries_of(lookalikes.cub, cub, tmp_path / "new")[0]
    with pytest.raises(BadInputError, match=r"6,033 images of CUB-200 \(2010\)"):
        cub.split([entry] * 6033)


def test_first_good_split_pins_fingerprints_that_later_ones_must_have(tmp_path):
    lookalikes.sop(tmp_path / "source")
    folder = project(tmp_path / "project", {"sop": SOP_COUNTS})
    run_stages(folder, "sop", tmp_path / "source")
    pinned = (folder / "data/checksums").read_text()
    committed = (lookalikes.REPOSITORY / "data/checksums").read_text().splitlines()
    assert [line.split("  ")[1] for line in pinned.splitlines() if line not in committed] == [
        "images/sop",
        "raw/sop/Stanford_Online_Products.zip",
        *(f"splits/sop/{part}" for part in ("held_out_test", "held_out_train", "test", "train")),
    ]
    assert stage(folder, "pipeline.split", "sop").returncode == 0
    assert (folder / "data/checksums").read_text() == pinned
    packed = folder / "data/packed/sop"
    before = (folder / "data/splits/sop/train.csv").read_bytes()
    first, *others = read_index(packed)
    write_index(packed, [replace(first, name="bicycle_final/another.JPG"), *others], upright=False)
    write_sums(packed, [packed / "index.csv"])
    done = stage(folder, "pipeline.split", "sop")
    assert done.returncode == 2
    assert done.stderr.startswith("error: data/checksums: the manifest train of sop should have the fingerprint ")
    assert (folder / "data/splits/sop/train.csv").read_bytes() == before


def test_cars_that_are_nowhere_to_be_had(tmp_path):
    """Nothing there: all three sets are named. Images of one layout there: only what it lacks."""
    folder = project(tmp_path / "project", {"cars": CARS_COUNTS})
    with serve({}) as base:
        done = stage(folder, "pipeline.download", "cars", PIPELINE_MIRRORS=base)
        assert done.returncode == 2
        assert done.stderr.startswith("error: Cars196 comes in three sets of files. One of them must be complete:\n")
        for name in ("car_ims.tgz", "cars_train.tgz", "stanford-cars-dataset.zip", "cars_test_annos_withlabels.mat"):
            assert done.stderr.count(f"{base}/raw/cars/{name}: 404 Not Found") == 1
        (folder / "data/raw/cars/car_ims.tgz").write_bytes(b"x")
        done = stage(folder, "pipeline.download", "cars", PIPELINE_MIRRORS=base)
        assert done.returncode == 2
        assert f"{base}/raw/cars/cars_annos.mat: 404 Not Found" in done.stderr
        assert "cars_train.tgz" not in done.stderr
