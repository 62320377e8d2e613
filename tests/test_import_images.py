"""Somebody's images, as they have them, become a dataset and a grid."""

import shutil
from pathlib import Path

import pytest

from pipeline import import_images
from pipeline.base.config import read_params
from pipeline.base.files import BadInputError
from pipeline.datasets import folder
from tests.lookalikes import REPOSITORY, picture


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
        (["nowhere", "birds"], "nowhere is neither a folder nor a CSV file"),
        (["nowhere", "cub"], "cub is a published dataset: choose another name"),
        (["nowhere", "../x"], "cannot be the name of a dataset"),
        (["nowhere", "birds", "--test-share", "1"], "--test-share is above 0 and below 1"),
        (["nowhere", "resnet50"], "resnet50 means something else to other commands"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, words, message):
    with pytest.raises(BadInputError, match=message):
        imported(monkeypatch, capsys, *words)
