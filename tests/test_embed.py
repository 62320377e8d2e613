"""Images of one's own, embedded with the network of a run: the bytes of its evaluation, nearest images, refusals."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.base.files import BadInputError
from pipeline.data.packed import PackedImages
from pipeline.embed import read_collection
from pipeline.runs.record import TrainingRecord, read_record
from tests.conftest import ENVIRONMENT

RUN = "data/runs/default/glyphs/glyphs/proxy_an/0"


def embed(project, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipeline.embed", RUN, *words]
    return subprocess.run(command, cwd=project.folder, env=ENVIRONMENT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def drawings(project):
    """A folder with the first 30 test images of glyphs as files, named so that their order is kept; and their image
    numbers. Half of them are in a folder below, beside a hidden file."""
    packed = PackedImages(project.folder / "data/packed/glyphs")
    with np.load(project.folder / f"{RUN.replace('runs', 'queries', 1)}/queries.npz") as kept:
        numbers, embeddings = kept["embedded"][:30], kept["embeddings"][:30]
    folder = project.folder / "drawings"
    (folder / "more").mkdir(parents=True)
    (folder / ".hidden").write_text("not an image")
    for place, number in enumerate(numbers.tolist()):
        below = folder / ("a" if place < 15 else "more")
        below.mkdir(exist_ok=True)
        (below / f"{place:02}.png").write_bytes(packed.encoded(number))
    yield embeddings
    shutil.rmtree(folder)


def test_the_same_image_has_the_embedding_of_the_evaluation(project, drawings, tmp_path):
    done = embed(project, "drawings", "--out", "first.npz", "--nearest", "3", "--page", "page.html")
    assert done.returncode == 0, done.stderr
    with np.load(project.folder / "first.npz", allow_pickle=False) as found:
        names, embeddings, key = found["names"].tolist(), found["embeddings"], str(found["key"])
    assert names == sorted(names) and len(names) == 30 and names[0] == "drawings/a/00.png"
    assert key == json.loads((project.folder / RUN / "run.json").read_text())["key"]
    assert embeddings.dtype == np.float32 and np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    assert (embeddings.astype(np.float16) == drawings).all()

    lines = done.stdout.splitlines()
    assert lines[0] == names[0] and len(lines) == 30 * 4
    exact = embeddings.astype(np.float64) @ embeddings.astype(np.float64).T
    np.fill_diagonal(exact, -1)
    best = exact[0].argsort()[::-1][:3]
    assert lines[1:4] == [f"  {exact[0, row]:.4f}  {names[row]}" for row in best]
    page = (project.folder / "page.html").read_text()
    assert page.count('<ul class="answer nine">') == 30 and "00.png" in page and page.count("data:image/webp") == 30

    # In another collection, of the same run, an image finds itself.
    done = embed(project, "drawings/more", "--nearest", "1", "--among", "first.npz")
    assert done.returncode == 0 and done.stdout.splitlines()[:2] == [
        "drawings/more/15.png",
        "  1.0000  drawings/more/15.png",
    ]

    record = read_record(project.folder / RUN / "run.json", TrainingRecord)
    assert read_collection(project.folder / "first.npz", record)[0] == names
    odd = (
        {"embeddings": embeddings[:, :32]},
        {"embeddings": embeddings * np.nan},
        {"names": np.arange(30)},
        {"key": "0"},
    )
    for number, changes in enumerate(odd):
        np.savez(tmp_path / f"{number}.npz", **({"names": names, "embeddings": embeddings, "key": key} | changes))
    damaged = bytearray((project.folder / "first.npz").read_bytes())
    damaged[len(damaged) // 2] ^= 255
    (tmp_path / "damaged.npz").write_bytes(damaged)
    np.save(tmp_path / "array.npy", embeddings)
    for path in tmp_path.iterdir():
        with pytest.raises(BadInputError, match=r"--among: .*(is not a file that this command wrote|the run 0, not)"):
            read_collection(path, record)


def test_what_cannot_be_read_is_named_and_can_be_left_out(project, drawings, tmp_path):
    bad = tmp_path / "mine"
    bad.mkdir()
    (bad / "letter.txt").write_text("not an image")
    content = io.BytesIO()
    Image.new("L", (28, 28), 90).save(content, "PNG")
    (bad / "cut.png").write_bytes(content.getvalue()[:50])
    (bad / "good.png").write_bytes((project.folder / "drawings/a/00.png").read_bytes())
    out = tmp_path / "out.npz"
    done = embed(project, str(bad), "--out", str(out))
    assert done.returncode == 2 and not out.exists() and "Traceback" not in done.stderr
    assert "images that cannot be used, fix or replace them: 2" in done.stderr
    assert f"{bad}/letter.txt: not an image" in done.stderr and f"{bad}/cut.png: " in done.stderr
    done = embed(project, str(bad), "--out", str(out), "--leave-out")
    assert done.returncode == 0 and done.stderr.count("left out: ") == 2
    with np.load(out) as found:
        assert found["names"].tolist() == [f"{bad}/good.png"]
    for number in range(20):
        (bad / f"{number}.txt").write_text("not an image")
    done = embed(project, str(bad), "--out", str(tmp_path / "other.npz"))
    listed = Path(re.search(r"^(\S+) names them all$", done.stderr, re.M)[1])
    assert len(listed.read_text().splitlines()) == 22
    listed.unlink()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere", "--out", "x.npz"), "nowhere does not exist"),
        (("drawings",), "give --out"),
        (("drawings", "--out", "params.yaml"), "name a file that ends in .npz"),
        (("drawings", "--out", "data/store/x.npz"), "is inside data/store, where nothing else may be"),
        (("drawings", "--nearest", "1", "--page", "params.yaml/x.html"), "params.yaml is not a folder"),
        (("drawings", "--nearest", "0"), "--nearest is 0"),
        (("drawings/a/00.png", "--nearest", "1"), "--nearest: one image has no others"),
        (("drawings", "--out", "x.npz", "--page", "x.html"), "--among and --page need --nearest"),
        (("drawings", "--nearest", "1", "--among", "params.yaml"), "is not a file that this command wrote"),
        (("drawings", "--out", "x.npz", "--weights", "held_out"), "choose among"),
    ],
)
def test_bad_words_are_one_error(project, drawings, words, message):
    done = embed(project, *words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (project.folder / "x.npz").exists()
