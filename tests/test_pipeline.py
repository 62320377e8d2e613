"""The DVC stages as people use them: what runs, what runs again, and what a metrics file says."""

import json
import re
import shutil

import pytest

from tests import swap
from tests.conftest import Project

ROWS = {"proxy_an", "proxy_nca", "raw_pixels"}


def metrics_files(project):
    files = sorted((project.folder / "metrics/runs/default/glyphs/glyphs").glob("*/[0-9].json"))
    return {f"{file.parent.name}/{file.stem}": json.loads(file.read_text()) for file in files}


def started(output):
    """The runs that a stage started, by row and seed."""
    return set(re.findall(r"^default/glyphs/glyphs/(\S+): started$", output, re.M))


def test_first_repro_runs_the_whole_road(project):
    assert project.first_repro == ["download", "convert", "split", "subsets", "runs", "show", "tabulate", "report"]
    assert set(metrics_files(project)) == {"proxy_an/0", "proxy_an/1", "proxy_nca/0", "proxy_nca/1", "raw_pixels/0"}
    headlines = project.folder / "metrics/headlines/default/glyphs/glyphs"
    assert {path.stem for path in headlines.iterdir()} == ROWS


def test_training_beats_raw_pixels_on_every_seed(project):
    files = metrics_files(project)
    raw = files.pop("raw_pixels/0")["metrics"]["no_training"]["recall@1"]
    assert 0.25 < raw < 0.33
    for name, content in files.items():
        assert content["metrics"]["last_epoch"]["recall@1"] > raw + 0.05, name


def test_a_fresh_clone_makes_every_run_and_leaves_git_as_it_was(project, tmp_path):
    """It has all metrics files, by git, and no run."""
    project.run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Project.__new__(Project)
    clone.folder = tmp_path / "clone"
    output = clone.run("dvc", "repro")
    assert started(output) == {
        "raw_pixels/0",
        *(f"{loss}/{seed}" for loss in ("proxy_an", "proxy_nca") for seed in (0, 1)),
    }
    assert clone.run("git", "status", "--porcelain") == ""
    assert "5 of 5 runs were made here, 5 of 5 have the bytes" in clone.run(
        "python", "-m", "pipeline.verify", "default"
    )


def test_second_repro_runs_nothing(project):
    assert project.repro() == []
    assert "up to date" in project.run("dvc", "status", "dvc.yaml")


def test_a_changed_setting_trains_its_rows_and_changed_back_it_trains_nothing(project):
    text = (project.folder / "params.yaml").read_text()
    for note in project.folder.glob("metrics/made/default/glyphs/glyphs/*/*.json"):
        noted = note.read_text()
        assert '"cpu": "' in noted
        note.write_text(noted.replace('"cpu": "', '"cpu": "Somebody\'s '))
    project.run("git", "commit", "-qam", "Made by somebody else")
    project.edit_params(lambda params: params["losses"]["proxy_an"].update(alpha=12.0))
    try:
        assert started(project.run("dvc", "repro")) == {"proxy_an/0", "proxy_an/1"}
        shown = project.run("dvc", "metrics", "diff").splitlines()
        assert max(map(len, shown)) <= 100
        rows = [line.split() for line in shown[1:]]
        assert {row[0].rsplit("/", 1)[1] for row in rows} == {"proxy_an.json"}, "a row that did not change is shown"
        old, new, change = map(float, next(row[2:5] for row in rows if row[1] == "Recall@1"))
        assert new - old == pytest.approx(change, abs=1e-3) != 0
        assert re.search(r"losses\.proxy_an\.alpha\s+32\.0\s+12\.0", project.run("dvc", "params", "diff"))
        page = project.run("python", "-m", "pipeline.diff")
        assert page.count("| default/glyphs/glyphs/proxy_an ") == page.count("| default/") == 4
        assert max(map(len, page.splitlines())) <= 100
        lasts = re.search(r"Recall@1, last epoch.*?proxy_an \| (\S+) +\| (\S+) +\| (\S+) ±.*? p \d", page, re.S)
        assert [float(lasts[n]) for n in (1, 2, 3)] == pytest.approx([old, new, change], abs=0.006)
    finally:
        (project.folder / "params.yaml").write_text(text)
        assert started(project.run("dvc", "repro")) == set()
    assert project.run("git", "status", "--porcelain") == ""
    assert project.run("python", "-m", "pipeline.diff") == ""
    assert "nonsense: neither a revision" in project.run("python", "-m", "pipeline.diff", "nonsense", fails=2)


def test_plots_draw_every_run(project):
    project.run("dvc", "plots", "show", "--out", "plots")
    page = (project.folder / "plots/index.html").read_text()
    shutil.rmtree(project.folder / "plots")
    drawn = [json.loads(text) for text in re.findall(r"var spec = ({.*?});$", page, re.M)]
    assert [(one["encoding"]["x"]["field"], one["encoding"]["y"]["field"]) for one in drawn] == [
        ("epoch", "loss"),
        ("epoch", "recall@1"),
    ]
    for one in drawn:
        lines = {(point["row"], point["run"]) for point in one["data"]["values"]}
        assert lines == {(loss, seed) for loss in ROWS - {"raw_pixels"} for seed in "01"}
        assert len(one["data"]["values"]) == 2 * len(lines), "an epoch lacks"


def test_metrics_show_is_one_readable_line_a_row(project):
    shown = project.run("dvc", "metrics", "show").splitlines()
    assert len(shown) == 1 + len(ROWS) and max(map(len, shown)) <= 100
    assert shown[0].split() == ["Path", "MAP@R", "Recall@1"]


@pytest.fixture
def copy(project, tmp_path):
    return project.copy(tmp_path / "copy")


def edit(folder, name, old, new):
    swap(folder / "pipeline" / name, old, new, 1)


def test_what_cannot_change_a_result_trains_nothing(copy):
    """A docstring and a comment in every module, another layout, the message of an error, a new loss, new versions of
    packages that do not compute, another number of loader processes."""
    for path in copy.folder.glob("pipeline/**/*.py"):
        text = path.read_text()
        if text.startswith('"""'):
            text = '"""Another sentence. ' + text[3:]
        path.write_text(text + "\n\n# Another comment.\n")
    edit(copy.folder, "training/loop.py", 'f"the loss is', 'f"this loss is')
    (copy.folder / "pipeline/losses/mine.py").write_text('"""Mine."""\n')
    lock = copy.folder / "requirements.lock"
    swap(lock, "\ndvc==", "\ndvc==9")
    swap(lock, "\nrequests==", "\nrequests==9")
    copy.edit_params(lambda params: params["machine"].update(workers=1))
    output = copy.run("python", "-m", "pipeline.run_grid", "default", "glyphs")
    assert started(output) == set()


@pytest.mark.parametrize(
    ("name", "old", "new", "trained"),
    [
        ("losses/proxy_an.py", "self.alpha * (own", "1.001 * self.alpha * (own", {"proxy_an"}),
        ("losses/__init__.py", "EXCLUDED = -1e30", "EXCLUDED = -1e29", {"proxy_nca"}),
        ("training/optimisers/adam.py", "BETAS = (0.9, 0.999)", "BETAS = (0.9, 0.99)", {"proxy_an", "proxy_nca"}),
        ("work/evaluation.py", "NEIGHBOURS = 8", "NEIGHBOURS = 9", set()),
        ("metrics/clustering.py", "ITERATIONS = 20", "ITERATIONS = 21", set()),
    ],
)
def test_what_can_change_a_result_runs_what_it_concerns(copy, name, old, new, trained):
    edit(copy.folder, name, old, new)
    states = copy.run("python", "-m", "pipeline.run_grid", "default", "glyphs", "--dry-run").splitlines()
    rows = {line.split("/")[3]: line.rsplit(": ", 1)[1] for line in states}
    assert {row for row, state in rows.items() if state == "not run" and row != "raw_pixels"} == trained
    others = {state for row, state in rows.items() if row not in trained and row != "raw_pixels"}
    assert others <= ({"done"} if trained else {"not evaluated"})


def test_packages_that_compute_are_in_the_key(copy):
    """Of a new version of simplejpeg everything is run, of dvc nothing."""
    script = (
        "import importlib.metadata as m, sys; version, changed = m.version, sys.argv[1]; "
        "m.version = lambda name: version(name) + ('.1' if name == changed else ''); del sys.argv[1]; "
        "from pipeline.run_grid import main; main()"
    )
    for package, state in (("dvc", "done"), ("simplejpeg", "not run")):
        printed = copy.run("python", "-c", script, package, "default", "glyphs", "--dry-run")
        assert {line.rsplit(": ", 1)[1] for line in printed.splitlines()} == {state}, package


def test_a_pushed_state_is_there_in_a_fresh_clone_and_stays_done(copy, tmp_path):
    copy.run("dvc", "remote", "add", "--quiet", "--default", "folder", str(tmp_path / "remote"))
    copy.commit()
    copy.run("dvc", "push", "--quiet", "--run-cache")
    other = type(copy).__new__(type(copy))
    other.folder = tmp_path / "other machine"
    copy.run("git", "clone", "--quiet", ".", str(other.folder))
    assert other.run("dvc", "pull", "--quiet", "--allow-missing") == ""
    assert other.repro() == ["report"], "more than the page, which shows this machine, too, is made"
    assert "up to date" in other.run("dvc", "repro")
    weights = "data/cached/runs/default/glyphs/glyphs/proxy_an/0/last_epoch.pt"
    assert (other.folder / weights).read_bytes() == (copy.folder / weights).read_bytes()
    # A stage that starts for another reason uses the runs that were pulled.
    edit(other.folder, "training/loop.py", '"""Training', '"""The training')
    output = other.run("dvc", "repro")
    assert (
        started(output) == set() and "data/cached/runs/default/glyphs/glyphs/proxy_an/0: taken into the store" in output
    )
    shutil.rmtree(other.folder / "data/store")
    assert "up to date" in other.run("dvc", "repro")
    # What was copied by hand counts as done, too.
    shutil.rmtree(other.folder / ".dvc/cache")
    printed = other.run("python", "-m", "pipeline.run_grid", "default", "glyphs", "--dry-run")
    assert {line.rsplit(": ", 1)[1] for line in printed.splitlines() if "taken" not in line} == {"done"}
    # And a file that is not what its record says does not.
    for place in ("data/store", "data/runs"):
        shutil.rmtree(other.folder / place)
    damaged = other.folder / weights
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.unlink()
    damaged.write_bytes(content)
    printed = other.run("python", "-m", "pipeline.run_grid", "default", "glyphs", "--dry-run").splitlines()
    states = dict(line.rsplit(": ", 1) for line in printed if "taken" not in line)
    assert states["default/glyphs/glyphs/proxy_an/0"] != "done" and states["default/glyphs/glyphs/proxy_an/1"] == "done"


def test_experiments_run_and_show(copy):
    copy.run("dvc", "exp", "run", "--set-param", "losses.proxy_an.margin=0.2", "--name", "wider")
    shown = copy.run("dvc", "exp", "show", "--csv", "--only-changed")
    assert "wider" in shown and "losses.proxy_an.margin" in shown
    assert "Recall@1" in copy.run("dvc", "exp", "diff", "HEAD", "wider")
    lines = copy.run("python", "-m", "pipeline.experiments").splitlines()
    assert max(map(len, lines)) <= 120
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (lines[0], *lines[2:])]
    assert cells[0][1:] == ["proxy_an.margin", *sorted(ROWS)]
    branch = copy.run("git", "branch", "--show-current").strip()
    assert [line[0] for line in cells[1:]] == ["workspace", branch, "wider"]
    assert [line[1] for line in cells[1:]] == ["0.2", "0.1", "0.2"]
    assert cells[3][2] != cells[2][2] and cells[3][3:] == cells[2][3:]
    assert "| default/glyphs/glyphs/proxy_an " in copy.run("python", "-m", "pipeline.diff", "HEAD", "wider")


def test_an_experiment_in_a_folder_of_its_own_trains_only_what_changes(copy):
    assert "Key 'typo' is not in" in copy.run("dvc", "exp", "run", "-S", "losses.proxy_nca.typo=1", fails=255)
    output = copy.run("dvc", "exp", "run", "--temp", "-S", "+losses.proxy_nca.typo=1", fails=255)
    assert "losses.proxy_nca.typo: unknown key" in output and started(output) == set()
    output = copy.run("dvc", "exp", "run", "--temp", "--set-param", "losses.proxy_an.alpha=12.0", "--name", "twelve")
    assert started(output) == {"proxy_an/0", "proxy_an/1"}
    copy.run("dvc", "exp", "apply", "twelve")
    assert metrics_files(copy)["proxy_an/0"]["run"]["content"]["settings"]["loss_settings"]["alpha"] == 12.0


def test_records_say_where_a_number_comes_from(project):
    content = metrics_files(project)["proxy_an/1"]
    run = content["run"]
    decided = run["content"]
    settings = decided["settings"]
    assert (settings["loss"], settings["seed"]) == ("proxy_an", 1)
    assert settings["loss_settings"] == {"alpha": 32.0, "margin": 0.1}
    assert settings["recipe"]["epochs"] == 2 and run["epochs"] == 2 and run["images"] == 3114 and run["classes"] == 31
    assert decided["packages"]["torch"].startswith("2.") and "dvc" not in decided["packages"]
    assert set(decided["data"]) == {
        "data/packed/glyphs/index.csv",
        "data/splits/glyphs/test.csv",
        "data/splits/glyphs/train.csv",
    }
    assert set(run["files"]) == {"best_test_epoch.pt", "last_epoch.pt", "history.csv", "code.json"}
    made = json.loads((project.folder / "metrics/made/default/glyphs/glyphs/proxy_an/1.json").read_text())
    assert made["training"]["key"] == run["key"] and made["evaluation"]["key"] == content["key"]
    for work in made.values():
        assert work["git"]["clean"] and re.fullmatch("[0-9a-f]{40}", work["git"]["revision"])
        assert work["machine"]["cpu"] and work["machine"]["cpu_flags"]
        assert work["machine"]["gpu"] is None and work["image"] is None
        assert work["seconds"] > 0 and work["peak_memory_bytes"] > 1e8
    assert len(made["training"]["epoch_seconds"]) == 2


def test_every_link_of_the_table_resolves(project):
    page = project.folder / "metrics/tables/default/glyphs.md"
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    assert len(links) == 5 and all((page.parent / link).is_file() for link in links)


@pytest.mark.parametrize(
    "stage",
    [
        "download",
        "convert",
        "split",
        "train",
        "evaluate",
        "run_grid",
        "tabulate",
        "report",
        "gallery",
        "diff",
        "experiments",
        "status",
        "prune",
        "adopt",
    ],
)
def test_every_command_has_a_help_page(project, stage):
    assert "usage: python -m pipeline." + stage in project.run("python", "-m", f"pipeline.{stage}", "--help")


def test_rows_of_the_default_with_rates_and_gammas_get_their_training_lists(project):
    text = (project.folder / "params.yaml").read_text()
    rows = {"part": {"rate": [0.33]}, "tail": {"gamma": [7]}}
    tables = {
        name: {"datasets": ["glyphs"], "rows": axis, "loss": "proxy_an", "seeds": [3]} for name, axis in rows.items()
    }
    project.edit_params(lambda params: params["tables"].update(tables))
    try:
        project.run("dvc", "repro", "subsets")
        lists = {path.name for path in (project.folder / "data/subsets/glyphs").glob("*.csv")}
        assert {"partial_0.33.csv", "imbalanced_7_3.csv"} < lists and "partial_0.1.csv" not in lists
        # Those of the grid claims, which has no other stage for them.
        assert {"partial_0.2.csv", "imbalanced_50_9.csv"} < lists
        assert "missing" not in project.run("python", "-m", "pipeline.run_grid", "default", "glyphs", "--dry-run")
    finally:
        (project.folder / "params.yaml").write_text(text)
        project.run("dvc", "repro", "subsets")
