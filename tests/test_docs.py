"""The pages of docs: their code is cut out and executed, in order, in a small copy of the project."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.conftest import ROOT

COMPARISON = "papers/comparison/glyphs/params.yaml"


def smaller(text, seeds, **losses):
    """A params file as it is, with fewer rows, seeds and epochs; `losses` are those of its tables, as YAML."""
    for name, rows in losses.items():
        text = re.sub(rf"(  {name}:\n.*\n    rows:\n      loss:).*\n(      - .*\n)*", rf"\1{rows}\n", text)
    text = re.sub(r"\[0, 1, 2\]", seeds, text)
    text = text.replace("    epochs: 5", "    epochs: 2").replace("decay_epochs: [4, 5]", "decay_epochs: [2]")
    return text.replace("cpu_threads: 2", "cpu_threads: 1")


@pytest.fixture
def follow(project, tmp_path):
    """Execute a page in a copy of the small project, which has its first table; gives the copy and what was printed."""

    def follow(page, seeds="[0, 1]", prepare=lambda folder: None):
        copy = type(project).__new__(type(project))
        copy.folder = tmp_path / "project"
        shutil.copytree(project.folder, copy.folder, symlinks=True)
        (copy.folder / "params.yaml").write_text(
            smaller((ROOT / "params.yaml").read_text(), "[0, 1]", glyphs=" [proxy_an, proxy_nca]")
        )
        (copy.folder / COMPARISON).parent.mkdir(parents=True)
        shutil.copy(ROOT / COMPARISON.replace("params", "dvc"), copy.folder / COMPARISON.replace("params", "dvc"))
        (copy.folder / COMPARISON).write_text(
            smaller((ROOT / COMPARISON).read_text(), seeds, glyphs="\n      - proxy_an\n      - contrastive")
        )
        copy.commit()
        prepare(copy.folder)
        script, executed = "set -e\n", 0
        for language, name, code in re.findall(r"^```(\w*) ?(.*)\n([\s\S]*?)^```$", (ROOT / page).read_text(), re.M):
            executed += language in ("bash", "python")
            if language == "python":
                (copy.folder / name).write_text(code)
            script += code if language == "bash" else ""
        assert executed >= 4
        return copy, copy.run("bash", "-c", script)

    return follow


def test_your_own_loss(follow):
    copy, printed = follow("docs/own_loss.md")
    assert printed.count("\nok    ") + printed.startswith("ok    ") == 7, printed
    assert re.search(r"normalised_softmax\.last_epoch\.recall@1\.mean\s+-\s+0\.[34]", printed)
    ran = re.findall(r"Running stage '(.*)'", printed)
    table = {"train@normalised_softmax-0", "train@normalised_softmax-1", "evaluate@normalised_softmax", "tabulate"}
    assert set(ran[: len(table)]) == table
    compared = json.loads((copy.folder / "metrics/tables/comparison/glyphs.json").read_text())
    assert set(compared) == {"normalised_softmax", "proxy_an", "contrastive"}
    assert "| normalised_softmax | " in printed.split("losses compared")[-1]


def draw(folder):
    """Drawings as Omniglot's: characters of a few strokes, each drawn several times by an unsteady hand."""
    alphabets = {"Balinese": 5, "Early_Aramaic": 4, "Korean": 6, "Greek": 5, "Latin": 5}
    generator = np.random.default_rng(0)
    for alphabet, characters in alphabets.items():
        for character in range(characters):
            place = folder / "drawings" / alphabet / f"character{character + 1:02}"
            place.mkdir(parents=True)
            strokes = generator.integers(15, 90, (3, 3, 2))
            for drawing in range(8):
                image = Image.new("1", (105, 105), 1)
                for stroke in strokes + generator.integers(-12, 13, (1, 1, 2)) + generator.integers(-5, 6, (3, 3, 2)):
                    ImageDraw.Draw(image).line([tuple(map(int, point)) for point in stroke], 0, 3)
                image.save(place / f"{drawing:02}.png")


def test_your_own_dataset(follow):
    copy, printed = follow("docs/own_dataset.md", prepare=draw)
    assert "folder train: 120 images, 15 classes" in printed and "folder test: 80 images, 10 classes" in printed
    rows = re.findall(r"^\| (proxy_\w+) +\| ([\d.]+) ± ", printed.split("folder: losses compared")[1], re.M)
    assert {row for row, _ in rows} == {"proxy_an", "proxy_nca"} and all(float(recall) > 30 for _, recall in rows)
    raw = json.loads((copy.folder / "metrics/runs/raw_pixels/folder/0.json").read_text())["metrics"]["no_training"]
    assert 0.1 < raw["recall@1"] < 1


def test_a_fair_search(follow):
    copy, printed = follow("docs/search.md", seeds="[0]")
    table = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("| ")]
    names = [name.strip() for name in table[0]]
    assert names[1:3] == ["contrastive.recall@1", "proxy_an.recall@1"] and len(names) == 5, names
    tries = [[float(cell) for cell in row[1:]] for row in table[1:]]
    by_setting = {name: sorted({row[place] for row in tries}) for place, name in enumerate(names[1:])}
    assert {name.split(".")[-1]: values for name, values in by_setting.items() if "losses" in name} == {
        "margin": [0.1, 0.2],
        "neg_margin": [1, 1.5],
    }
    assert len(tries) == 3 and all(len(by_setting[name]) == 2 for name in names[1:3]), "a try changed another loss"
    tested = json.loads((copy.folder / "metrics/runs/tested/proxy_an/0.json").read_text())
    assert tested["run"]["protocol"] == "held_out" and set(tested["metrics"]) == {"held_out"}
    searched = (copy.folder / "data/runs/search/glyphs/proxy_an/0/run.json").read_text()
    assert json.loads(searched)["protocol"] == "held_out_choice"
