"""Nothing of a person's is replaced: what a command may write over is known by its content."""

import hashlib
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import convert, embed, evaluate, export, gallery, split, subsets, train
from pipeline.base.command import exit_with
from pipeline.base.files import BadInputError, _sibling, check_output, whole, write_text
from pipeline.data.checksums import foreign, pins, write_sums
from pipeline.data.index import read_index
from pipeline.data.manifests import read_manifest
from pipeline.datasets import OTHERS, dataset_module, glyphs
from pipeline.reports.pages import foreign_page, sealed
from pipeline.runs import shown, store
from pipeline.runs.grid import grid_folder
from pipeline.runs.key import digest
from pipeline.runs.run import read_history
from tests import swap
from tests.conftest import ROOT

CONTENT = {"settings": {"seed": 0}}
KEY = digest(CONTENT)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A project's folder with somebody's files in it and beside it."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name in ("thesis.txt", "../theirs/thesis.txt", "data/notes.txt", ".git/config", "marked/thesis.txt"):
        write_text(Path(name), "years of work")
    write_text(Path("marked/run.json"), json.dumps({"schema_number": 1, "key": KEY, "mine": True}))
    Path("link").symlink_to("../theirs")
    Path("link_to_nothing").symlink_to("nowhere")
    Path("empty").mkdir()
    return tmp_path


def everything(folder):
    paths = sorted(path for path in folder.rglob("*") if not path.name.endswith(".lock"))
    return {path: path.read_bytes() if path.is_file() else path.is_symlink() for path in paths}


def run_at(place, **files):
    """A run's folder as the store shows it: a record that lists these files."""
    Path(place).mkdir(parents=True)
    for name, content in files.items():
        Path(place, name).write_text(content)
    listed = {name: hashlib.sha256(content.encode()).hexdigest() for name, content in files.items()}
    record = {"schema_number": 3, "key": KEY, "content": CONTENT, "files": listed}
    Path(place, "run.json").write_text(json.dumps(record))
    return Path(place)


OUTPUTS = {
    "..": "is a folder that this stage did not make",
    ".": "is a folder that this stage did not make",
    "/": "is a folder that this stage did not make",
    "": "is a folder that this stage did not make",
    "/dev/full": "is a file that this stage did not make",
    "thesis.txt": "is a file that this stage did not make",
    "data": "is a folder that this stage did not make",
    "../theirs": "is a folder that this stage did not make",
    "marked": "is a folder that this stage did not make",
    "link": "is a symbolic link",
    "link_to_nothing": "is a symbolic link",
    "thesis.txt/run": "thesis.txt is not a folder",
    "thesis.txt/a/run": "thesis.txt is not a folder",
    ".git": "is a folder that this stage did not make",
    ".git/new": "is inside .git, where nothing else may be",
    "data/store/new": "is inside data/store, where nothing else may be",
    "empty/../data/store/new": "is inside data/store, where nothing else may be",
    "x" * 300: "a name has at most 180 bytes",
    "é" * 100: "a name has at most 180 bytes",
}


@pytest.mark.parametrize("place", OUTPUTS)
def test_an_output_that_is_not_ours_is_refused(folder, place):
    before = everything(folder)
    with pytest.raises(BadInputError, match=re.escape(OUTPUTS[place])):
        check_output("--out", Path(place), shown.foreign)
    assert everything(folder) == before
    check_output("--out", Path("empty"))
    check_output("--out", Path("new/folder"))
    with pytest.raises(BadInputError, match="--out empty is a folder: name a file"):
        check_output("--out", Path("empty"), is_file=True)


@pytest.mark.parametrize(
    "command",
    [
        (train, "--dataset", "glyphs", "--loss", "proxy_an", "--seed", "0", "--out"),
        (evaluate, "run", "--out"),
        (evaluate, "run", "--out", "new.json", "--keep-embeddings"),
        (export, "glyphs", "--to"),
    ],
    ids=lambda command: f"{command[0].__name__} {command[-1]}",
)
def test_every_command_refuses_them_before_any_work(folder, monkeypatch, command):
    module, *words = command
    before = everything(folder)
    for place in ("thesis.txt", "../theirs", "marked", "link", "data/store/new.json", "x" * 300):
        monkeypatch.setattr(sys, "argv", ["command", *words, place])
        with pytest.raises(BadInputError, match=f"{place[:9]}"):
            module.main()
    assert everything(folder) == before


def test_two_outputs_of_a_command_are_not_one_inside_the_other(folder, monkeypatch):
    before = everything(folder)
    for module, command in (
        (evaluate, "evaluate run --out new.json --keep-embeddings empty/../new.json"),
        (evaluate, "evaluate run --out new.json --keep-embeddings new.json/new.npz"),
        (evaluate, "evaluate run --out new/new.json --keep-embeddings new"),
        (embed, "embed run images --nearest 1 --out new.npz --page new.npz/new.html"),
    ):
        monkeypatch.setattr(sys, "argv", command.split())
        with pytest.raises(BadInputError, match=r"is (also|inside) --\S+: name another place"):
            module.main()
    assert everything(folder) == before


def test_a_folder_that_takes_no_files_is_named():
    with pytest.raises(BadInputError, match="/proc/x: no file can be made in /proc: name another place"):
        write_text(Path("/proc/x"), "")


def test_a_run_is_ours_by_what_its_record_lists(folder):
    run = run_at("run", **{"last_epoch.pt": "weights", "history.csv": "epoch"})
    assert shown.foreign(run) is None
    check_output("--out", run, shown.foreign)
    (run / "notes.txt").write_text("mine")
    assert shown.foreign(run) == run / "notes.txt"
    with pytest.raises(BadInputError, match=r"does not replace, because of run/notes\.txt"):
        check_output("--out", run, shown.foreign)
    (run / "notes.txt").unlink()
    (run / "last_epoch.pt").write_text("tuned by hand")
    assert shown.foreign(run) == run / "last_epoch.pt"
    (run / "last_epoch.pt").unlink()
    (run / "last_epoch.pt").symlink_to("../thesis.txt")
    assert shown.foreign(run) == run / "last_epoch.pt"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"content": NaN, "files": {}}',
        "[]",
        "{}",
        "[" * 10**5,
        '{"key": 1}',
        f'{{"schema_number": 1, "key": "{KEY}"}}',
    ],
)
def test_a_file_called_run_json_is_no_mark(text):
    run = run_at("run", history="epoch")
    (run / "run.json").write_text(text)
    assert shown.foreign(run) == run
    (run / "run.json").unlink()
    (run / "run.json").mkdir()
    assert shown.foreign(run) == run


def test_names_of_runs_are_replaced_only_where_they_show_runs():
    done = run_at(store.STORE / KEY, history="epoch")
    for place in (Path("data/runs/default/0"), Path("marked")):
        place.mkdir(parents=True, exist_ok=True)
        (place / "thesis.txt").write_text("years of work")
        for replace in (lambda place=place: shown.show(KEY, place), lambda place=place: shown.unshow(place)):
            try:
                replace()
            except BadInputError as error:
                assert "thesis.txt" in str(error) or "is a folder that this stage did not make" in str(error)
            assert (place / "thesis.txt").read_text() == "years of work"
    name = Path("shown")
    shown.show(KEY, name)
    assert (name / "history").samefile(done / "history")
    shown.unshow(name)
    assert not name.exists()


def test_a_stages_folder_is_ours_by_its_checksums(folder):
    with whole(Path("out"), foreign) as temporary:
        temporary.mkdir()
        (temporary / "train.csv").write_text("image\n")
        write_sums(temporary, [temporary / "train.csv"])
    for name, text in (("mine.txt", "mine"), ("train.csv", "image\nedited by hand\n")):
        kept = Path("out/train.csv").read_text()
        Path("out", name).write_text(text)
        with pytest.raises(BadInputError, match=f"because of out/{name}"), whole(Path("out"), foreign):
            pytest.fail("the stage works for hours before it is refused")
        assert Path("out", name).read_text() == text
        Path("out/mine.txt").unlink(missing_ok=True)
        Path("out/train.csv").write_text(kept)
    with whole(Path("out"), foreign) as temporary:
        temporary.mkdir()
        (temporary / "test.csv").write_text("image\n")
    assert [path.name for path in Path("out").iterdir()] == ["test.csv"]


def test_the_stages_of_data_keep_a_persons_file(folder, monkeypatch):
    (folder / "work/data/raw").mkdir(parents=True)
    glyphs.download(Path("data/raw/glyphs"))
    glyphs.download(Path("data/raw/glyphs"))
    for place in ("data/raw/glyphs", "data/packed/glyphs", "data/splits/glyphs"):
        write_text(Path(place, "mine.txt"), "mine")
    write_text(Path("data/packed/glyphs/index.csv"), "image\n")
    write_text(Path("data/splits/glyphs/train.csv"), "image\n")
    before = everything(folder)
    with pytest.raises(BadInputError, match=r"because of data/raw/glyphs/mine\.txt"):
        glyphs.download(Path("data/raw/glyphs"))
    with pytest.raises(BadInputError, match="packed/glyphs is a folder that this stage did not make"):
        convert.convert("glyphs", False)
    refused = pytest.raises(BadInputError, match="splits/glyphs is a folder that this stage did not make")
    with refused, whole(Path("data/splits/glyphs"), split.foreign):
        pass
    assert everything(folder) == before


def test_leftovers_of_killed_processes_go_and_what_looks_like_them_stays(folder):
    ours = [_sibling(Path("page.html"), "4194305", old) for old in ("", ".old")]  # no process has this number
    names = ("mine", "4194305", "4194305.old", f"4194305.{'0' * 12}", "", ".")
    theirs = [Path(f".page.html.{name}.partial") for name in names]
    for path in ours + theirs:
        write_text(path, "text")
    write_text(Path("page.html"), "new")
    assert not any(path.exists() for path in ours) and all(path.exists() for path in theirs)


def test_a_gallery_replaces_only_a_gallery(folder, monkeypatch):
    page = Path("gallery.html")
    write_text(page, sealed('<!doctype html>\n<meta charset="utf-8">\n<p>ours</p>\n'))
    assert foreign_page(page) is None
    write_text(Path("theirs.html"), "<p>theirs</p>")
    swap(page, "ours", "with my notes")
    for place in ("gallery.html", "theirs.html", "link/new.html/x.html", "x" * 300 + ".html"):
        monkeypatch.setattr(sys, "argv", ["gallery", "run.json", "--out", place])
        kept = Path(place).read_text() if len(place) < 99 and Path(place).is_file() else None
        with pytest.raises(BadInputError, match=r"--out|did not make|run\.json"):
            gallery.main()
        assert kept is None or Path(place).read_text() == kept
    assert "notes" in page.read_text() and Path("theirs.html").read_text() == "<p>theirs</p>"


@pytest.mark.parametrize("name", ["..", "glyphs/", "../glyphs", "/", "", "a\n", "x" * 300, "-x", "a.b", "DEFAULT/"])
def test_a_name_from_a_command_line_is_a_name(folder, monkeypatch, name):
    write_text(Path("papers/x/params.yaml"), "")
    write_text(Path("params.yaml"), "")
    with pytest.raises(BadInputError, match="cannot be the name of a grid: a name "):
        grid_folder(name)
    for module, words in ((export, []), (subsets, []), (convert, []), (split, [])):
        monkeypatch.setattr(sys, "argv", ["command", *words, "--", name])
        refused = "cannot be the name of a dataset: a name |is missing: name the folder of a run"  # export takes both
        with pytest.raises(BadInputError, match=refused):
            module.main()
    with pytest.raises(BadInputError, match="is missing: choose a grid among default, x"):
        grid_folder("nothing")


WORDS = {
    "check_loss": ([""], "the value is empty"),
    "report": ([""], "the value is empty"),
    "verify": (["default", "--run", ""], "the value after --run is empty"),
    "export": (["x", "--weights="], "the value of --weights= is empty"),
    "choose": (["default"], "default is a stage without being chosen"),
    "import_images": ([".", "all"], "all means something else"),
}


@pytest.mark.parametrize("command", WORDS)
def test_an_empty_word_or_one_with_another_meaning_is_one_error(monkeypatch, capsys, command):
    words, said = WORDS[command]
    monkeypatch.setattr(sys, "argv", [command, *words])
    with pytest.raises(SystemExit) as raised:
        exit_with(importlib.import_module(f"pipeline.{command}").main)
    printed = capsys.readouterr().err
    assert raised.value.code == 2 and said in printed and "Traceback" not in printed


def test_a_file_of_the_package_that_is_no_dataset_is_none(monkeypatch):
    for name in OTHERS:
        with pytest.raises(BadInputError, match=f"{name} cannot be the name of a dataset"):
            dataset_module(name)
    files = {path.stem for path in (ROOT / "pipeline/datasets").glob("[!_]*.py")} - {*OTHERS}
    assert all(hasattr(dataset_module(name), "split") for name in files)


READERS = {
    "data/packed/x/index.csv": lambda path: read_index(path.parent),
    "data/splits/x/train.csv": read_manifest,
    "data/checksums": lambda path: pins(),
    "run/history.csv": read_history,
}


@pytest.mark.parametrize("place", READERS)
@pytest.mark.parametrize("kind", ["a folder", "below a file", "a circle of links", "bytes"])
def test_something_else_than_a_file_is_one_line(capsys, place, kind):
    path = Path(place)
    if kind == "below a file" and place != "data/checksums":
        write_text(path.parent, "a file")
    elif kind == "a circle of links":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(path.name)
    elif kind == "bytes":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff\x00\xfe" * 100)
    else:
        path.mkdir(parents=True)
    with pytest.raises(SystemExit) as raised:
        exit_with(lambda: READERS[place](path))
    said = capsys.readouterr().err
    assert raised.value.code == 2 and "Traceback" not in said and said.startswith("error: ") and path.name in said


@pytest.mark.parametrize("stdout", ["/dev/full", None])
@pytest.mark.parametrize("stderr", ["/dev/full", None])
def test_what_cannot_be_printed_is_no_traceback(stdout, stderr):
    """stdout and stderr full, or closed."""
    code = "from pipeline.base.command import exit_with; exit_with(lambda: print('x' * 10**5))"
    closed = " ".join(f"{number}{f'>{to}' if to else '>&-'}" for number, to in ((1, stdout), (2, stderr)))
    command = ["bash", "-c", f'"$0" -c "$1" {closed}; echo $?', sys.executable, code]
    # The shell's own stdout is open, so that it can print the exit code.
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == ("1" if stdout else "0") and done.stderr == ""
    refused = code.replace("lambda: print('x' * 10**5)", "lambda: int('x')")
    command[-1] = refused
    assert "Traceback" not in subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


def test_a_computation_that_diverges_is_one_line(capsys):
    def main():
        raise FloatingPointError("the loss is nan at epoch 3, step 2")

    with pytest.raises(SystemExit) as raised:
        exit_with(main)
    assert raised.value.code == 1 and capsys.readouterr().err == "error: the loss is nan at epoch 3, step 2\n"
