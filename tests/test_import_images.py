"""Somebody's images, as they have them, become a dataset and a grid."""

import shutil
from pathlib import Path

import pytest

from pipeline import import_images
from pipeline.base.config import read_params
from pipeline.base.files import BadInputError
from pipeline.data import archives
from pipeline.datasets import folder
from tests.lookalikes import REPOSITORY, parquet, picture


@pytest.fixture(autouse=True)
def _project(tmp_path, monkeypatch):
    (tmp_path / "project/papers/photos").mkdir(parents=True)
    for name in ("params.yaml", "papers/photos/params.yaml"):
        shutil.copy(REPOSITORY / name, tmp_path / "project" / name)
    monkeypatch.chdir(tmp_path / "project")


def images(root: Path, classes: list[str], each: int = 3, **how) -> Path:
    """Write images to `root`/<class>/<number>.png."""
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            (root / name / f"{number}.png").write_bytes(picture(100 * place + number, format="PNG", **how))
    return root


def imported(monkeypatch, capsys, *words: object) -> tuple[str, str]:
    monkeypatch.setattr("sys.argv", ["import_images", *map(str, words)])
    import_images.main()
    return capsys.readouterr()


def classes(name: str, part: str) -> dict[str, int]:
    """Class -> number of images, as the folder dataset reads them."""
    found: dict[str, int] = {}
    for image in folder.images(Path("data/raw") / name):
        assert not image.problem
        if image.part == part:
            found[image.class_name] = found.get(image.class_name, 0) + 1
    return found


def test_a_folder_is_split_by_classes(tmp_path, monkeypatch, capsys):
    source = images(tmp_path / "mine", ["g/a", "g/b", "c", "d", "e"])
    images(source, ["single"], each=1)
    (source / "c/Thumbs.db").write_bytes(b"x")
    (source / "d/half.png").write_bytes(picture(1, format="PNG")[:60])
    with pytest.raises(BadInputError, match=r"(?s)--leave-out-broken: 1\n  .*d/half\.png: "):
        imported(monkeypatch, capsys, source, "birds")
    assert not Path("data/raw/birds").exists() and not Path("papers/birds").exists()

    out, errors = imported(monkeypatch, capsys, source, "birds", "--leave-out-broken")
    assert "1 files and folders of file managers are left out (Thumbs.db)" in errors and "half.png" in errors
    train, test = classes("birds", "train"), classes("birds", "test")
    assert "single" in train and len(test) == 2 and not train.keys() & test.keys()
    assert train | test == dict.fromkeys(["g/a", "g/b", "c", "d", "e"], 3) | {"single": 1}
    assert "4 classes with 10 images for training, 2 with 6 for retrieval (seed 0)" in out
    assert out.splitlines()[-2:] == ["python -m pipeline.choose birds", "dvc repro papers/dvc.yaml"]
    recipe = read_params(Path("papers/birds/params.yaml"), recipe="birds").recipes["birds"]
    assert (recipe.backbone, recipe.input_size) == ("small", 32)
    with pytest.raises(BadInputError, match=r"data/raw/birds exists: choose another name"):
        imported(monkeypatch, capsys, source, "birds")

    imported(monkeypatch, capsys, source, "again", "--leave-out-broken")
    assert classes("again", "test") == test
    others = []
    for seed in (1, 2, 3):
        imported(monkeypatch, capsys, source, f"other{seed}", "--leave-out-broken", "--seed", seed)
        others.append(classes(f"other{seed}", "test"))
    assert any(other != test for other in others)


def test_a_classification_split_is_put_together(tmp_path, monkeypatch, capsys):
    images(tmp_path / "kaggle/train", ["a", "b", "c", "d"], size=(90, 80))
    images(tmp_path / "kaggle/valid", ["a", "b", "c", "d"], each=2, size=(90, 80))
    with pytest.raises(BadInputError, match=r"4 classes, 4 of them .* give 3 for training and 1 for retrieval"):
        imported(monkeypatch, capsys, tmp_path / "kaggle", "cards", "--test-share", "0.25")
    _, errors = imported(monkeypatch, capsys, tmp_path / "kaggle", "cards")
    assert "classes of train, valid are put together" in errors
    assert classes("cards", "train") | classes("cards", "test") == dict.fromkeys("abcd", 5)


def test_a_list_of_paths_and_labels(tmp_path, monkeypatch, capsys):
    source = images(tmp_path / "shop", ["x", "y"], each=4, size=(90, 80))
    lines = [f"{part}/{number}.png,{'a/b' if number % 2 else '.c'}{part}" for part in "xy" for number in range(4)]
    (source / "list.csv").write_text("\ufefffile,item\n" + "\n".join(lines), encoding="utf-8")
    with pytest.raises(BadInputError, match=r"list\.csv has no column path, its columns are file, item: name yours"):
        imported(monkeypatch, capsys, source / "list.csv", "shop")
    imported(monkeypatch, capsys, source / "list.csv", "shop", "--path-column", "file", "--label-column", "item")
    assert classes("shop", "train") | classes("shop", "test") == dict.fromkeys(["a/bx", "a/by", ".cx", ".cy"], 2)
    assert read_params(Path("papers/shop/params.yaml"), recipe="shop").recipes["shop"].backbone == "mobilenet_v2"


@pytest.mark.parametrize("struct", [True, False])
def test_parquet_files_become_a_dataset(tmp_path, monkeypatch, capsys, struct):
    names = ["../a", "b/c", ".d", "e"]
    # A path in the file is not used. The last image of each file is cut short.
    images = [[picture(4 * part + n, format="JPEG") for n in range(9)] for part in range(2)]
    for part, of in enumerate(images):
        of[8] = of[8][:300]
        columns = [{"bytes": image, "path": "/etc/evil.png"} if struct else image for image in of]
        labels = [n % 4 for n in range(9)] if struct else [names[n % 4] for n in range(9)]
        file = tmp_path / f"hub/data/{'train' if part else 'test'}-00000-of-00001.parquet"
        parquet(file, list(zip(columns, labels, strict=True)), names if struct else None)
    (tmp_path / "hub/README.md").write_text("dataset_info: ...")
    with pytest.raises(BadInputError, match=r"broken: 2\n.*/hub/data/test-0.*\.parquet row 9: .*\n.*train-0.* row 9: "):
        imported(monkeypatch, capsys, tmp_path / "hub", "cards")
    assert [*Path("data/raw").iterdir()] == []
    out, errors = imported(monkeypatch, capsys, tmp_path / "hub", "cards", "--leave-out-broken")
    assert "2 Parquet files are put together" in errors and "8 images for training" in out and "as links" not in out
    assert classes("cards", "train") | classes("cards", "test") == dict.fromkeys(names, 4)
    written = {path.read_bytes() for path in Path("data/raw/cards").rglob("*.jpg")}
    assert written == {image for of in images for image in of[:8]}
    assert sorted(path.name for path in Path("data/raw/cards").iterdir()) == ["test", "train"]
    assert not list(tmp_path.rglob("*evil*"))

    single = ["--image-column", "photo", "--label-column", "kind"]
    with pytest.raises(
        BadInputError, match=r"test-0.*parquet has no single column photo, its columns are image, label"
    ):
        imported(monkeypatch, capsys, tmp_path / "hub/data/test-00000-of-00001.parquet", "other", *single)


@pytest.mark.parametrize(
    ("rows", "names", "said"),
    [
        ([(None, 0)], None, r"the column image holds null, not the bytes of images"),
        ([(b"x", 0), (None, 1)], None, r"row 2 has no image: the file must hold the bytes of each image"),
        ([({"bytes": b"x", "path": ""}, 0), ({"bytes": None, "path": "a"}, 0)], None, r"row 2 has no image"),
        ([(b"x", 0), (b"x", None)], None, r"row 2: its label should be text or a whole number, found None"),
        ([(b"x", 0), (b"x", -1)], ["a", "b"], r"row 2: .* a whole number among 2 classes, found -1"),
        ([(b"x", 2)], ["a", "b"], r"row 1: .* a whole number among 2 classes, found 2"),
        ([(b"x", 0.5)], None, r"row 1: its label should be text or a whole number, found 0\.5"),
        ([(b"x", " ")], None, r"row 1: its label should be text"),
        ([(b"x", "y" * 300)], None, r"the label y+… is too long for the name of a folder"),
        ([(b"x", 0)], ["a", "a"], r"the names of the classes in its metadata are damaged, or two are the same"),
        ([("text", 0)], None, r"the column image holds string, not the bytes of images"),
        ([(bytes(10**5), 0)] * 200, None, r"row 1\d\d: its images take too many bytes"),
        ([(b"x", 0)] * 201, None, r"x\.parquet has more than 200 rows, which is too much"),
    ],
)
def test_parquet_files_that_are_refused(tmp_path, monkeypatch, capsys, rows, names, said):
    monkeypatch.setattr(archives, "MEMBER_LIMIT", 10**7)
    monkeypatch.setattr(archives, "MOST_MEMBERS", 200)
    file = parquet(tmp_path / "x.parquet", rows, names)
    with pytest.raises(BadInputError, match=said):
        imported(monkeypatch, capsys, file, "cards")
    for content in (file.read_bytes()[:-20], b"PAR1" + bytes(100) + b"PAR1", b""):
        file.write_bytes(content)
        with pytest.raises(BadInputError, match=r"x\.parquet is damaged, or no Parquet file \("):
            imported(monkeypatch, capsys, file, "cards")
    assert [*Path("data/raw").iterdir()] == []


def test_odd_labels_and_names_are_named_or_kept(tmp_path, monkeypatch, capsys):
    source = images(tmp_path / "shop", ["x", "y"], each=4)
    (source / "x/0.png").rename(source / "x/.0.png")
    lines = ["path,label", "x/.0.png,a", "x/1.png,a", "y/1.png,a", "x/2.png,b", "x/3.png,b"]
    lines += ["y/0.png,c", "y/2.png,c", "y/3.png,d", "x/3.png,d"]
    for odd, said in (
        ("y/1.png,  ", "line 11: a path or a label is missing"),
        ("y/\0.png,a", "its name, or that of its class 'a', holds control characters"),
        ('y/1.png,"a\nb"', r"that of its class 'a\\nb', holds control characters"),
    ):
        (source / "list.csv").write_text("\n".join([*lines, odd]))
        with pytest.raises(BadInputError, match=said):
            imported(monkeypatch, capsys, source / "list.csv", "shop")
    (source / "list.csv").write_text("\n".join(lines))
    imported(monkeypatch, capsys, source / "list.csv", "shop")
    assert classes("shop", "train") | classes("shop", "test") == {"a": 3, "b": 2, "c": 2, "d": 2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "birds"], "nowhere is neither a folder nor a file"),
        (["nowhere", "cub"], "cub is a published dataset: choose another name"),
        (["nowhere", "../x"], "cannot be the name of a dataset"),
        (["nowhere", "birds", "--test-share", "1"], "--test-share is above 0 and below 1"),
        (["nowhere", "resnet50"], "resnet50 means something else to other commands"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, words, message):
    with pytest.raises(BadInputError, match=message):
        imported(monkeypatch, capsys, *words)
