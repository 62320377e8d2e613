"""The pages of docs: their code is cut out and executed, in order, in a small copy of the project."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw
from torchvision.models import MobileNetV2

from pipeline.base.choices import ROOMS
from pipeline.base.files import sha256
from pipeline.networks.published import FILES
from tests import swap, textures
from tests.conftest import ROOT

COMPARISON = "papers/comparison_glyphs/params.yaml"
RUN = re.compile(r"^(\S+/\S+): started$", re.M)
"""A run that was trained or evaluated, in what a page printed."""
LOSSES = ("proxy_an", "contrastive")


@pytest.fixture
def follow(project, tmp_path):
    """Execute a page in a copy of the small project, which has its first table; gives the copy and what was printed."""

    def follow(page, prepare=lambda folder: None):
        copy = project.copy(tmp_path / "project")
        params = yaml.safe_load((copy.folder / COMPARISON).read_text())
        of = {"title": params["tables"]["glyphs"]["title"], "layout": "ranked", "datasets": ["glyphs"], "seeds": [0]}
        params["tables"]["glyphs"] = of | {"rows": {"loss": [*LOSSES]}}  # without the search, which takes minutes
        params["recipes"]["glyphs"].update(epochs=2, schedule={"name": "constant"})
        (copy.folder / COMPARISON).write_text(yaml.safe_dump(params, sort_keys=False))
        copy.commit()
        prepare(copy.folder)
        # In the order of the page, since a command may need the file above it.
        script, executed = "set -e\n", 0
        for language, name, code in re.findall(r"^```(\w*) ?(.*)\n([\s\S]*?)^```$", (ROOT / page).read_text(), re.M):
            if name:
                script += f"mkdir -p $(dirname {name})\ncat > {name} <<'END OF FILE'\n{code}END OF FILE\n"
            elif language == "bash":
                script += code
            executed += bool(name) or language == "bash"
        assert executed >= 3
        printed = copy.run("bash", "-c", script)
        left_for_git(copy)
        return copy, printed

    return follow


TEXTS = re.compile(
    r"(papers|pipeline|metrics|tests|docs)/.*\.(py|yaml|json|csv|md|tex|svg)|((data|papers)/)?dvc\.lock|[^/]*\.yaml"
)
"""What a page may leave for `git add --all`: sources and results, as text."""


def left_for_git(copy):
    """A page leaves no image, no weights and nothing else that is large or does not belong into git."""
    copy.run("git", "add", "--all")
    first = copy.run("git", "rev-list", "--max-parents=0", "HEAD").split()[0]
    added = copy.run("git", "diff", "--cached", "--name-only", "--diff-filter=A", "-z", first).split("\0")
    assert [name for name in filter(None, added) if not TEXTS.fullmatch(name)] == []
    assert [name for name in filter(None, added) if (copy.folder / name).stat().st_size > 2**20] == []
    copy.run("git", "reset", "--quiet")


def table(copy, name):
    return json.loads((copy.folder / f"metrics/tables/{name}.json").read_text())


def test_your_own_loss(follow):
    copy, printed = follow("docs/own_loss.md")
    verdicts = re.findall(r"^(ok|fail)  ", printed, re.M)
    assert verdicts == ["ok"] * 14, printed
    assert re.search(r"^data/tried: trains small with \w+ on data/splits/glyphs/train.csv for 2 epochs ", printed, re.M)
    assert re.search(
        r"^data/tried: after epoch 2 loss \d\.\d+, test Recall@1 [34]\d\.\d\d% \(all epochs: ", printed, re.M
    )
    assert re.search(r"normalised_softmax\.json +Recall@1 +- +[34]\d\.", printed), printed
    rows = {place.split("/", 3)[3] for place in RUN.findall(printed) if place.startswith("default/")}
    # The run by hand was that of seed 0, so only its evaluation was left.
    assert rows == {"normalised_softmax/0", "normalised_softmax/1"}
    assert set(table(copy, "comparison_glyphs/glyphs")["glyphs"]) == {"normalised_softmax", "proxy_an", "contrastive"}
    assert "normalised_softmax" in printed.split("# Losses compared on glyphs")[1]


SCREEN = [
    (r"proxy_gml|proxy_anchor", ""),  # losses that the small project does not have
    (r"differs|cannot say, sees [\d.]+", "a verdict"),
    (r"\bmain\b|\bmaster\b", "branch"),
    (r"[0-9a-f]{64}", "hash"),
    (r"\(.+ here, .+ there\)", "(machines)"),
    (r"[-+]?\d+(\.\d+)?(?![\w@])", "0"),
    (r"-{2,}", "--"),
    (r"\s+", " "),
    (r"(\| 0 )+", "| 0 "),
    (r"(\| -- )+", "| -- "),
    (r"(\| )+", "| "),
]
"""What may differ between the page and the small project: regular expressions, and what takes their place."""


def shape(line):
    for expression, replacement in SCREEN:
        line = re.sub(expression, replacement, line)
    return line.strip()


def screens_of(page):
    return re.findall(r"^```text\n([\s\S]*?)^```$", (ROOT / page).read_text(), re.M)


def test_use(follow):
    """From a training to a check of its results in another clone."""
    copy, printed = follow("docs/use.md")
    with np.load(copy.folder / "data/tried_images.npz") as file:
        assert len(file["names"]) == len(file["embeddings"]) == 7
    assert re.search(r"^data/tried_images/3000.png\n  1.0000  data/tried_images/3000.png\n  0\.\d{4}  ", printed, re.M)
    assert "data:image/webp" in (copy.folder / "data/tried_images.html").read_text()
    assert "the embedding above: 1.0\n" in printed and "1 of 1 runs made again: same bytes (" in printed
    shapes = {shape(line) for line in printed.splitlines()}
    lines = [line for screen in screens_of("docs/use.md") for line in screen.splitlines()]
    assert len(lines) >= 10 and [line for line in lines if shape(line) not in shapes] == [], printed
    assert copy.run("git", "status", "--porcelain") == ""
    assert copy.run("git", "-C", "data/tried_clone", "status", "--porcelain") == ""


def test_tables_and_weights_from_another_repository(project, tmp_path):
    part = (ROOT / "docs/papers.md").read_text().split("### From another repository")[1].split("\n## ")[0]
    (code,) = re.findall(r"^```bash\n([\s\S]*?)^```$", part, re.M)
    said = project.run(
        *(
            "bash",
            "-c",
            f"set -e; cd {tmp_path}; git init --quiet; dvc init --quiet; REPOSITORY=$0\nexport REPOSITORY\n{code}",
        ),
        str(project.folder),
    )
    assert "# glyphs: retrieval among unseen classes, in percent" in said
    for name in ("metrics/tables/default/glyphs.csv", "data/runs/default/glyphs/glyphs/proxy_an/0/last_epoch.pt"):
        assert (tmp_path / Path(name).name).read_bytes() == (project.folder / name).read_bytes()


def test_settings(follow):
    copy, printed = follow("docs/settings.md")
    shapes = {shape(line) for line in printed.splitlines()}
    screens = screens_of("docs/settings.md")
    assert len(screens) == 4
    lines = [
        line
        for screen in screens[:3]
        for line in screen.splitlines()
        if "headlines" not in line or shape(line) in shapes
    ]
    assert [line for line in lines if shape(line) not in shapes] == []
    assert sum("headlines" in line for line in lines) >= 4
    assert max(len(line) for line in printed.splitlines() if "headlines" in line) <= 100
    # Changed back, nothing is trained; the experiment's runs are those of the change by hand.
    assert sum("proxy_an" in place for place in RUN.findall(printed)) == 2
    swap(copy.folder / "params.yaml", "alpha:", "alfa:", 1)
    refused = copy.run("dvc", "repro", fails=255)
    assert all(line in refused for line in screens[3].splitlines()), refused


def test_add_something(follow):
    page = (ROOT / "docs/extend.md").read_text()
    for room in ROOMS.values():
        assert f"pipeline/{room.package.replace('.', '/')}/" in page, f"the page has nothing about {room.package}"
    copy, printed = follow("docs/extend.md")
    verdicts = re.findall(r"^(ok|fail)  ", printed, re.M)
    assert verdicts == ["ok"] * 11, printed
    assert set(RUN.findall(printed)) == {f"added/capitals/main/{scale}/0" for scale in (8.0, 16.0)}
    found = table(copy, "added/main")["capitals"]
    assert found.keys() == {"8.0", "16.0"} and re.search(r"\| Recall@1 +\| MRR +\| R-Precision ", printed), printed
    # Nothing that was added made a run of the default stale.
    states = re.findall(r"^default/glyphs/glyphs/\S+: (.+)$", printed, re.M)
    assert states == ["done"] * 5, printed


def test_your_own_table(follow):
    copy, printed = follow("docs/own_table.md")
    assert {place.split("/", 2)[2] for place in RUN.findall(printed)} == {
        f"alpha/{alpha}/{seed}" for alpha in (16.0, 64.0) for seed in (0, 1)
    }
    alphas, losses = table(copy, "default/alpha")["glyphs"], table(copy, "default/glyphs")["glyphs"]
    assert alphas["32.0"]["last_epoch"] == losses["proxy_an"]["last_epoch"]
    assert len({alphas[alpha]["last_epoch"]["recall@1"]["mean"] for alpha in alphas}) == 3
    assert table(copy, "report/main")["glyphs"].keys() == {"proxy_an", "proxy_nca"}
    page = printed.split("# Two losses on glyphs, 64 dimensions")[-1]
    assert re.search(r"\| proxy_an +\| Recall@1 +\| 46\.8 ", page) and "The images themselves" in page, page
    assert copy.run("git", "status", "--porcelain") == ""


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
    assert "characters: 13 classes with 104 images for training, 12 with 96 for retrieval (seed 0)" in printed
    seen = re.findall(r"^(?:\?\?| M) (\S+)$", printed, re.M)
    assert {"papers/characters/", "metrics/runs/characters/"} <= {*seen}
    assert [path for path in seen if not re.match(r"papers/|metrics/|data/dvc\.lock$|dvc\.lock$", path)] == []
    assert "drawings train: 120 images, 15 classes" in printed and "drawings test: 80 images, 10 classes" in printed
    first, experiment = printed.split("Reproducing experiment")
    places = [f"{loss}/{seed}" for loss in ("proxy_an", "proxy_nca") for seed in (0, 1)]
    by_hand = [place for place in RUN.findall(first) if place.startswith("mine/")]
    assert sorted(place.split("/", 3)[3] for place in by_hand) == [*places, "raw_pixels/0"]
    assert [place.split("/", 3)[3] for place in RUN.findall(experiment)] == ["proxy_an/0", "proxy_an/1"]
    found = table(copy, "mine/unseen")["drawings"]
    assert 0.1 < found["raw_pixels"]["last_epoch"]["recall@1"]["mean"] < 1
    assert re.search(r"^\| raw_pixels +\| \d", first, re.M)
    assert all(found[loss]["last_epoch"]["recall@1"]["mean"] > 0.3 for loss in ("proxy_an", "proxy_nca"))
    changed = re.findall(r"mine/unseen/drawings/(\S+)\.json +Recall@1", experiment)
    assert changed == ["proxy_an"], experiment
    # What DVC keeps of the state that was committed is all of it.
    assert "Running stage" not in copy.run("dvc", "repro", "papers/dvc.yaml")
    copy.run("dvc", "exp", "apply", "alpha16")
    assert yaml.safe_load((copy.folder / "papers/mine/params.yaml").read_text())["losses"]["proxy_an"]["alpha"] == 16.0
    assert table(copy, "mine/unseen")["drawings"]["proxy_an"] != found["proxy_an"]


def test_a_fair_search(follow):
    copy, printed = follow("docs/search.md")
    ran = RUN.findall(printed)
    assert len(ran) == len(set(ran)), "no run is made twice"
    tries = {f"search/glyphs/glyphs/{loss}.try_{n}/0_choose_epoch" for loss in LOSSES for n in (1, 2, 3, 4)}
    assert {place for place in ran if place.endswith("_choose_epoch")} == tries
    assert sum("try_4" in place for place in ran[-4:]) >= 2, "the last two tries came with the second command"
    found = table(copy, "search/glyphs")["glyphs"]
    for loss in LOSSES:
        searched = found[f"{loss}.try_1"]["search"]
        results = [of["held_out"][0] for of in searched["tries"]]
        assert searched["chosen"] == 1 + results.index(max(results)) and len(set(results)) == 4
        names = {"1", str(searched["chosen"])}
        final = {place.split("try_")[1] for place in ran if f"{loss}.try_" in place and place.endswith("_held_out")}
        assert {f"{name}/0_held_out" for name in names} <= final
        for name in names:
            path = copy.folder / f"metrics/runs/search/glyphs/glyphs/{loss}.try_{name}/0_held_out.json"
            tested = json.loads(path.read_text())
            seen = [
                line["recall@1"] for line in json.loads((path.parent / "0_choose_epoch.json").read_text())["history"]
            ]
            assert set(tested["metrics"]) == {"held_out"} and not any("recall@1" in line for line in tested["history"])
            assert tested["metrics"]["held_out"]["epoch"] == 1 + seen.index(max(seen))
    assert (copy.folder / "metrics/tables/search/glyphs.svg").is_file()


def test_your_own_network(follow):
    copy, printed = follow("docs/own_network.md")
    rows = {"timm", "shufflenet", "untrained-timm", "untrained-shufflenet"}
    ran = [place for place in RUN.findall(printed) if place.startswith("networks/")]
    assert sorted(place.split("/")[3] for place in ran) == sorted(rows)
    found = table(copy, "networks/networks")["glyphs"]
    assert found.keys() == rows
    recalls = {row: found[row]["last_epoch"]["recall@1"]["mean"] for row in rows}
    # Both weights are random, so that one epoch is all that they know; at chance it would be one of 31.
    assert recalls["timm"] > recalls["untrained-timm"] > 0.05 and recalls["shufflenet"] > 0.03, recalls
    assert len(set(recalls.values())) == 4
    by_hand = json.loads((copy.folder / "data/untrained.json").read_text())["metrics"]["no_training"]["recall@1"]
    assert round(by_hand, 6) == recalls["untrained-timm"]
    states = re.findall(r"^default/glyphs/glyphs/\S+: (.+)$", printed.split("no_training: ")[-1], re.M)
    assert states == ["done"] * 5
    history = copy.folder / "data/runs/networks/glyphs/networks/shufflenet/0/history.csv"
    assert "head_learning_rate" in history.read_text().splitlines()[0]


def photographs(folder):
    """Textures in the place of photographs, random weights in that of the published ones, and a small grid."""
    textures.write(folder / "all", 12, 8)
    (folder / "photographs").mkdir()
    for part in (folder / "all").iterdir():
        for place in part.iterdir():
            place.rename(folder / "photographs" / place.name)
    torch.manual_seed(0)
    (folder / "data/weights").mkdir()
    path = folder / "data/weights/mobilenet_v2.pth"
    torch.save(MobileNetV2().features.state_dict(), path)
    published = folder / "pipeline/networks/published.py"
    other = FILES["mobilenet_v2"]
    swap(published, other.sha256, sha256(path))
    swap(published, "9_084_095", str(path.stat().st_size))
    grid = folder / "papers/photos/params.yaml"
    params = yaml.safe_load(grid.read_text())
    params["tables"]["losses"].update(rows={"loss": ["proxy_anchor"]}, seeds=[0, 1])
    small = {"epochs": 2, "epoch_steps": 5, "batch_size": 8, "cpu_threads": 1}
    small |= {"input_size": 32, "test_resize": 36}
    params["recipes"]["photos"].update(small)
    grid.write_text(yaml.safe_dump(params, sort_keys=False))


def test_photographs(follow):
    copy, printed = follow("docs/photos.md", prepare=photographs)
    assert "photos train: 48 images, 6 classes" in printed and "photos test: 48 images, 6 classes" in printed
    first, experiment = printed.split("Reproducing experiment")
    trained = ["ensemble_of_proxy_anchor/0_ensemble", "proxy_anchor/0", "proxy_anchor/1"]
    places = [*trained, "raw_pixels/0", "untrained/0"]
    assert sorted(place.split("/", 3)[3] for place in RUN.findall(first)) == places
    # The untrained network is the same under another learning rate.
    assert sorted(place.split("/", 3)[3] for place in RUN.findall(experiment)) == trained
    found = table(copy, "photos/losses")["photos"]
    assert found.keys() == {"proxy_anchor", "untrained", "raw_pixels", "ensemble_of_proxy_anchor"}
    assert all(0 < of["last_epoch"]["recall@1"]["mean"] < 1 for of in found.values())
    assert re.search(r"^\| untrained +\| \d", first, re.M)
    assert "Running stage" not in copy.run("dvc", "repro", "papers/dvc.yaml")
