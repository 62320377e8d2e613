"""The papers' printed numbers, the grids of their tables, tables made of some runs, and what a change runs again."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.base.config import read_params
from pipeline.base.files import BadInputError
from pipeline.choose import chosen
from pipeline.networks.published import FILES
from pipeline.runs import key as run_key
from pipeline.runs.grid import DEFAULT, grid_runs, known_grids
from pipeline.runs.states import keys_of
from pipeline.tables.published import read_published
from tests import rehearse, swap
from tests.package import Package
from tests.records import write_metrics

ROOT = Path(__file__).parent.parent
os.chdir(ROOT)  # for the parameters below
PAPERS = [grid for grid in known_grids() if grid != DEFAULT and read_params(Path(f"papers/{grid}/params.yaml"))]
COMPARED = [
    (grid, name)
    for grid in PAPERS
    if Path(f"papers/{grid}/published.yaml").is_file()
    for name, table in read_params(Path(f"papers/{grid}/params.yaml")).tables.items()
    if table.layout != "ranked"
]


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def published_table(grid, table):
    return read_published(ROOT / "papers" / grid / "published.yaml").tables[table]


@pytest.fixture
def project(tmp_path):
    """A folder with the grids and nothing else; gives a function that makes a grid's tables there."""
    (tmp_path / "papers").symlink_to(ROOT / "papers")

    def tabulate(grid, table):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.tabulate", grid],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        tables = tmp_path / "metrics/tables" / grid
        return {path.suffix: path.read_text() for path in tables.glob(f"{table}.*")}

    tabulate.folder = tmp_path
    return tabulate


@pytest.mark.parametrize(("grid", "table"), COMPARED)
def test_every_row_of_a_grid_has_its_printed_numbers_or_says_why_not(grid, table):
    rows = {f"{run.run.dataset}/{run.row}" for run in grid_runs(grid, table=table) if run.run.trained}
    assert rows == set(published_table(grid, table).rows)


@pytest.mark.parametrize("grid", sorted({grid for grid, _ in COMPARED}))
def test_every_printed_number_is_in_its_table(project, grid):
    for name in [table for of, table in COMPARED if of == grid]:
        files, published = project(grid, name), published_table(grid, name)
        lines = list(csv.DictReader(files[".csv"].splitlines()))
        shown = {(f"{line['dataset']}/{line['row']}", line["metric"]): line["published"] for line in lines}
        for row, numbers in published.rows.items():
            for metric, value in numbers.items():
                assert shown[row, metric] == ("" if value is None else str(value)), (row, metric)
        cells = [cell.strip() for line in files[".md"].splitlines() for cell in line.split("|")]
        printed = [value for numbers in published.rows.values() for value in numbers.values() if value is not None]
        printed += [value for curve in published.curves.values() for value in curve.values()]
        for reference in published.references:
            printed += [value for numbers in reference.numbers.values() for value in numbers.values() if value]
        for value in set(printed):
            assert cells.count(f"{value:.1f}") >= printed.count(value), value
        assert "not run" in files[".md"] and "not run" in files[".tex"]
        assert "Nothing of this table has been run" in files[".md"] and (".svg" in files) == bool(published.chart)


def test_printed_numbers_are_written_down_in_one_place():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    known = {
        f"{value:.1f}"
        for grid, name in COMPARED
        for table in [published_table(grid, name)]
        for numbers in [*table.rows.values(), *(of for row in table.references for of in row.numbers.values())]
        for value in numbers.values()
        if value is not None
    }
    assert len(known) > 150
    for name in listed:
        if name.endswith(("published.yaml", ".lock", ".npz")) or name.startswith("metrics/"):
            continue
        if not (ROOT / name).is_file():
            continue
        for line in (ROOT / name).read_text(encoding="utf-8", errors="ignore").splitlines():
            numbers = re.findall(r"(?<![\d.])\d\d\.\d(?![\d.])", line)
            assert sum(number in known for number in numbers) < 3, f"{name}: {line}"


CUB = {"images": 5924, "classes": 100}


def runs_of(grid, table, row, dataset="cub"):
    return {
        (run.run.seed, run.run.protocol): run for run in grid_runs(grid, dataset=dataset, table=table) if run.row == row
    }


def test_a_part_of_the_runs(project):
    folder = project.folder
    runs = runs_of("proxygml", "main", "512")
    for seed, best in ((0, 0.66), (1, 0.67)):
        values = {"best_test_epoch": best, "last_epoch": best - 0.01 - seed / 100}
        write_metrics(folder, runs[seed, "test"], values, CUB, history={1: 0.5, 2: 0.6 + seed / 100})
    write_metrics(folder, runs[0, "held_out"], {"held_out": 0.6}, CUB)
    failed = runs_of("proxygml", "main", "384")[0, "test"]
    (folder / failed.error).parent.mkdir(parents=True)
    (folder / failed.error).write_text(json.dumps({"error": "the loss is nan at epoch 3"}))
    files = project("proxygml", "main")
    page = files[".md"]
    line = next(line for line in page.splitlines() if line.startswith("| 512") and "Recall@1 " in line)
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[:3] == ["512", "Recall@1", "66.6"]
    assert cells[3:] == [
        "66.50 ± 6.35 (n = 2)",
        "2 of 3",
        "65.00 ± 0.00 (n = 2)",
        "60.00 (n = 1)",
        "-0.10",
        "cannot say: no number of seeds can",
        "14.1",
    ]
    assert "Of 4 printed numbers 2 differ; if every one was one more run of ours, about 0.2 would." in page
    assert "0.71 points, with 1 degrees of freedom" in page
    assert re.search(r"\| 384 +\| Recall@1 +\| 65.2 +\| not run +\| 0 of 3 +.*\| failed ", page)
    assert "Failed: cub/384/0: the loss is nan at epoch 3" in page
    assert "cub/512/2" in page.split("Not run: ")[1] and "cub/384/0," not in page.split("Not run: ")[1]
    assert re.search(r"\| cub/512 +\| \+1.50 \(2 of 2 runs, at most \+2.00\) \(n = 2\) +\| \+6.00 ", page)
    assert "[0_held_out](../../runs/proxygml/cub/main/512/0_held_out.json)" in page
    assert json.loads(files[".json"])["cub"]["512"]["best_test_epoch"]["recall@1"]["n"] == 2
    assert "REHEARSAL" not in "".join(files.values()) and "3 of 93 planned runs" in files[".tex"]


def test_our_history_stands_beside_the_papers_curve(project):
    for seed in (0, 1, 2):
        run = runs_of("proxygml", "main", "512", "cars")[seed, "test"]
        cars = {"images": 8131, "classes": 98}
        write_metrics(project.folder, run, {"last_epoch": 0.8}, cars, {1: 0.5 + seed / 100, 48: 0.85})
    page = project("proxygml", "main")[".md"].split("by epoch, cars/512")[1]
    assert re.search(r"\| 1 +\| 52.3 +\| 51.00 ± 2.48 \| 42.8 +\| – ", page) and re.search(
        r"\| 48 +\| 85.5 +\| 85.00 ± 0.00 ", page
    )
    assert re.search(r"\| 3 +\| 69.0 +\| – ", page)


def test_runs_on_other_images_are_marked_in_every_file(project):
    run = runs_of("proxygml", "main", "512")[0, "test"]
    values = {"best_test_epoch": 0.666, "last_epoch": 0.666}
    write_metrics(project.folder, run, values, {"images": 48, "classes": 4})
    files = project("proxygml", "main")
    assert "'images': 48" in files[".md"] and not re.search(r"\| (consistent|differs|cannot say)", files[".md"])
    assert all("REHEARSAL" in text for text in files.values())
    headline = project.folder / "metrics/headlines/proxygml/main/cub/512.json"
    assert set(json.loads(headline.read_text())) == {"Recall@1 (REHEARSAL)", "MAP@R (REHEARSAL)"}


def test_a_ranking_beside_printed_numbers_is_marked_too(project):
    for run in grid_runs("comparison", dataset="cub", table="resnet50"):
        write_metrics(project.folder, run, {"best_test_epoch": 0.6, "last_epoch": 0.6}, {"images": 48, "classes": 4})
    files = project("comparison", "resnet50")
    assert all("REHEARSAL" in text for text in files.values())
    page = files[".md"]
    assert re.search(r"^\| Multi-Similarity +\| ResNet-50 \| 67\.3 +\| 78\.2", page, re.M)
    assert "Theirs: One protocol, 512 dimensions, rerun by the authors of IDML; README table" in page
    assert "| BN-Inception" not in page and "No row has all its runs yet." in page.split("## cars")[1]
    for run in grid_runs("comparison", dataset="cub", table="resnet50"):
        write_metrics(project.folder, run, {"best_test_epoch": 0.6, "last_epoch": 0.6}, CUB)
    assert "REHEARSAL" not in project("comparison", "resnet50")[".md"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("recall@1: 66.6", "recall@1: 666.0", "less than or equal to 100"),
        ("unknown: not printed in the slides", "unknown: null", "say why"),
        ("kind: chart", "kind: primary", "for the kind chart"),
        ("        sop: {", "        cub200: {", "retrieved lacks cub200"),
        ("    limits:", "    limit:", "did you mean limits"),
        (
            "{nmi_arithmetic: 0.5, recall@1: 0.9, ",
            "{nmi_arithmetic: 0.5, ",
            "limits.cub lacks recall@1, which is printed for",
        ),
        ("spread: #", "spraed: #", "did you mean spread"),
        ('{"1": 52.3', '{"one": 52.3', "an epoch is a whole number"),
    ],
)
def test_a_wrong_ledger_is_refused(tmp_path, old, new, said):
    shutil.copy(ROOT / "papers/proxygml/published.yaml", tmp_path)
    swap(tmp_path / "published.yaml", old, new, 1)
    with pytest.raises(BadInputError, match=said):
        read_published(tmp_path / "published.yaml")


@pytest.mark.parametrize("grid", PAPERS)
def test_the_chosen_stages_need_what_their_runs_read(grid):
    content = chosen([grid])
    for name, stage in content["runs"].items():
        runs = [run.run for run in grid_runs(grid, dataset=stage["dataset"])]
        networks = {of.backbone for of in (run.recipe for run in runs) if of.pretrained and not of.weights}
        assert networks <= set(content["networks"]), name
        files = {f"data/weights/{network}.pth" for network in networks}
        assert all(file.startswith(stage["weights"]) for file in files), name
        folders = {str(run.manifest.parent) for run in runs} - {f"data/splits/{stage['dataset']}"}
        assert folders <= {stage["lists"]}, name
        assert stage["dataset"] in [*content["datasets"], "glyphs"]
        assert not folders or stage["dataset"] in [*content["subsets"], "glyphs"]


def test_dvc_has_the_stages_of_what_is_chosen_and_no_others(tmp_path):
    rehearse.copy(tmp_path / "project", rehearse.TABLES)

    def run(*command):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path / "project", capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stages():
        listed = run("dvc", "stage", "list", "--all", "--name-only").split()
        return {name.split(":")[-1] for name in listed if ":" in name}

    run("pipeline.choose", "none")
    assert stages() == set()
    run("pipeline.choose", "proxygml")
    assert {
        "runs@proxygml-cub",
        "runs@proxygml-sop",
        "tabulate@proxygml",
        "weights@bn_inception",
        "split@cars",
    } < stages()
    assert not any("inshop" in name or "resnet50" in name or name.startswith("subsets") for name in stages())
    run("pipeline.choose", "all")
    assert {"runs@proxy_an-inshop", "weights@resnet50", "subsets@cars", "tabulate@comparison"} < stages()
    run("pipeline.choose", "none")
    assert stages() == set()


def keys_by_table(folder):
    """The keys of the papers' runs, in this process, in a project whose data are made up."""
    return {
        (run.grid, run.table, run.run.dataset): keys_of(run, "cpu").own
        for grid in ("proxygml", "proxy_an")
        for run in grid_runs(grid)
    }


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """The papers in a project whose data are made up, as the working directory."""
    rehearse.copy(tmp_path / "project", rehearse.TABLES)
    monkeypatch.chdir(tmp_path / "project")
    for dataset in ("cub", "cars", "sop", "inshop"):
        parts = ("train", "test", "held_out_train", "held_out_test", "query", "gallery")
        subsets = [f"partial_{rate}" for rate in (0.1, 1.0)] + [f"imbalanced_150_{seed}" for seed in (2024, 2025)]
        files = [f"packed/{dataset}/index.csv", *(f"splits/{dataset}/{part}.csv" for part in parts)]
        for name in [*files, *(f"subsets/{dataset}/{subset}.csv" for subset in subsets)]:
            if dataset == "inshop" or not name.endswith(("query.csv", "gallery.csv")):
                Path("data", name).parent.mkdir(parents=True, exist_ok=True)
                Path("data", name).write_text(f"{name}\n")
    return tmp_path


def test_one_recipes_learning_rate_changes_its_runs_and_no_others(made_up):
    before = keys_by_table(made_up)
    path = Path("papers/proxygml/params.yaml")
    params = yaml.safe_load(path.read_text())
    params["recipes"]["cars"]["learning_rates"] = {"network": 0.0003, "proxies": 0.01}
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    after = keys_by_table(made_up)
    changed = {place for place in before if before[place] != after[place]}
    assert changed == {("proxygml", table, "cars") for table in params["tables"]}


def test_another_network_with_weights_changes_no_run(made_up, monkeypatch):
    monkeypatch.setattr(run_key, "pins", dict)
    package = Package(made_up)
    try:
        before = keys_by_table(made_up)
        text = (package.folder / "networks/backbones/resnet50.py").read_text()
        named = "\nFILES['resnet34'] = FILES['resnet50']._replace(name='resnet34.pth')\n"
        monkeypatch.setitem(FILES, "resnet34", FILES["resnet50"]._replace(name="resnet34.pth"))
        network = package.edited("networks/backbones/resnet34.py", "", text.replace("3, 4, 6, 3", "3, 4, 6, 4"))
        with network, package.edited("networks/published.py", "", named):
            assert keys_by_table(made_up) == before
        # A change in a network's own file is noticed by the runs that have it, and by them alone.
        with package.edited("networks/backbones/deit_small_distilled.py", '"patch_size": 16', '"patch_size": 8'):
            after = keys_by_table(made_up)
        assert {place[:2] for place in before if before[place] != after[place]} == {("proxy_an", "networks")}
    finally:
        package.close()


def test_a_thin_rehearsal_from_the_archives_to_tables(tmp_path):
    pages = rehearse.rehearse(tmp_path / "rehearsal", thin=True)
    for page in pages:
        of = [path.read_text() for path in page.parent.glob(f"{page.stem}.*")]
        assert len(of) >= 4 and all("REHEARSAL" in text for text in of)
        assert "| not run" not in page.read_text() and "Not run" not in page.read_text()
        project = page.parents[3]
        links = re.findall(r"\]\(([^)]+)\)", page.read_text())
        assert links and all((page.parent / link).is_file() for link in links)
        runs = list((project / "metrics/runs").glob(f"{page.parent.name}/*/*/*/*.json"))
        records = [json.loads(run.read_text()) for run in runs]
        assert records and all(
            record["run"]["content"]["settings"]["recipe"]["pretrained"] for record in records if record["run"]
        )
        untrained = [run for run, record in zip(runs, records, strict=True) if not record["run"]]
        assert {run.parent.name for run in untrained} == ({"untrained"} if "proxygml" in str(page) else set())


def test_references_of_the_comparison_are_read_whole():
    tables = read_published(ROOT / "papers/comparison/published.yaml").tables
    assert sum(len(row.numbers) for table in tables.values() for row in table.references) == 63
    assert {table.kind for table in tables.values()} == {"primary", "secondary"}
