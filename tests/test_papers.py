"""The papers' printed numbers, the grids of their tables, the tables made of some runs, and what makes runs stale."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import code
from pipeline.base.config import read_params
from pipeline.base.files import BadInputError
from pipeline.grid import grid_runs
from pipeline.tables.published import read_published
from pipeline.tables.rows import Cell, folder_name, grid, verdict
from tests import rehearse

ROOT = Path(__file__).parent.parent
PAPERS = ["proxygml", "proxy_an"]
TABLES = [(paper, table) for paper in PAPERS for table in read_params(ROOT / "papers" / paper / "params.yaml").tables]
METRICS = ("recall@1", "recall@2", "recall@4", "recall@8", "map@r", "r_precision", "nmi_arithmetic", "nmi_geometric")


def tabulate(folder, paper, table, params=None):
    """The printed table and the text of its files by their ending; runs and failures are those under `folder`."""
    (folder / "papers").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pipeline.tabulate", "--table", table]
    command += [
        "--params",
        params or ROOT / "papers" / paper / "params.yaml",
        "--runs",
        f"metrics/runs/{paper}/{table}",
    ]
    command += ["--published", ROOT / "papers" / paper / "published.yaml", "--out", f"metrics/tables/{paper}/{table}"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, {
        path.suffix: path.read_text() for path in (folder / f"metrics/tables/{paper}").glob(f"{table}.*")
    }


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT)}


def write_run(folder, paper, table, row, seed, selections, retrieved, held_out=False):
    """A metrics file with the same value for every metric under each selection rule."""
    path = folder / f"metrics/runs/{paper}/{table}/{row}/{seed}{'_held_out' if held_out else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics = {selection: dict.fromkeys(METRICS, value) for selection, value in selections.items()}
    path.write_text(json.dumps({"retrieved": retrieved, "metrics": metrics}))


@pytest.mark.parametrize(("paper", "table"), TABLES)
def test_every_row_of_a_grid_has_its_printed_numbers_or_says_why_not(paper, table):
    published = read_published(ROOT / "papers" / paper / "published.yaml").tables[table]
    rows = grid(read_params(ROOT / "papers" / paper / "params.yaml").tables[table])
    assert {f"{dataset}/{folder_name(values)}" for dataset, values in rows} == set(published.rows)


@pytest.mark.parametrize(("paper", "table"), TABLES)
def test_every_printed_number_is_in_its_table(tmp_path, paper, table):
    _, files = tabulate(tmp_path, paper, table)
    published = read_published(ROOT / "papers" / paper / "published.yaml").tables[table]
    lines = list(csv.DictReader(files[".csv"].splitlines()))
    told = {(f"{line['dataset']}/{line['row']}", line["metric"]): line["published"] for line in lines}
    for row, numbers in published.rows.items():
        for metric, value in numbers.items():
            assert told[row, metric] == ("" if value is None else str(value)), (row, metric)
    cells = [cell.strip() for line in files[".md"].splitlines() for cell in line.split("|")]
    printed = [value for numbers in published.rows.values() for value in numbers.values() if value is not None]
    printed += [value for row in published.references for of in row.numbers.values() for value in of.values() if value]
    for value in set(printed):
        assert cells.count(f"{value:.1f}") >= printed.count(value), value
    assert "not run" in files[".md"] and "not run" in files[".tex"]


def test_printed_numbers_are_written_down_in_one_place():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    known = {
        f"{value:.1f}"
        for paper in PAPERS
        for table in read_published(ROOT / "papers" / paper / "published.yaml").tables.values()
        for numbers in [*table.rows.values(), *(of for row in table.references for of in row.numbers.values())]
        for value in numbers.values()
        if value is not None
    }
    assert len(known) > 150
    for name in listed:
        if name.endswith(("published.yaml", ".lock", ".npz")) or name.startswith(("metrics/", "papers/comparison/")):
            continue
        if not name or not (ROOT / name).is_file():
            continue
        for line in (ROOT / name).read_text(encoding="utf-8", errors="ignore").splitlines():
            numbers = re.findall(r"(?<![\d.])\d\d\.\d(?![\d.])", line)
            assert sum(number in known for number in numbers) < 3, f"{name}: {line}"


def test_verdicts():
    of = read_published(ROOT / "papers/proxygml/published.yaml").tables["main"]
    assert verdict(Cell([], []), 66.6, of, False) == "not run"
    assert verdict(Cell([], []), 66.6, of, True) == "failed"
    assert verdict(Cell([0.5], []), None, of, False) == "published unknown"
    assert verdict(Cell([0.67], []), 66.6, of, False) == "reproduced: within the tolerance"
    assert verdict(Cell([0.66, 0.68, 0.70], []), 66.6, of, False) == "reproduced: within the interval"
    assert verdict(Cell([0.64], []), 66.6, of, False) == "missed by -2.60"


def test_a_part_of_the_runs(tmp_path):
    cub = {"images": 5924, "classes": 100}
    for seed, best in ((0, 0.66), (1, 0.67)):
        values = {"best_test_epoch": best, "last_epoch": best - 0.01 - seed / 100}
        write_run(tmp_path, "proxygml", "main", "cub/512", seed, values, cub)
    write_run(tmp_path, "proxygml", "main", "cub/512", 0, {"held_out": 0.6}, cub, held_out=True)
    write_run(tmp_path, "proxygml", "main", "cub/384", 0, {"best_test_epoch": 0.9, "last_epoch": 0.9}, cub)
    (tmp_path / "data/failures").mkdir(parents=True)
    note = {"arguments": ["--out", "data/runs/proxygml/main/cub/384/0"], "error": "the loss is nan at epoch 3"}
    (tmp_path / "data/failures/1.json").write_text(json.dumps(note))
    printed, files = tabulate(tmp_path, "proxygml", "main")
    line = next(line for line in printed.splitlines() if line.startswith("| 512") and "Recall@1 " in line)
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells == ["512", "Recall@1", "66.6", "66.50 ± 6.35", "2 of 3", "65.00 ± 0.00", "60.00", "-0.10", cells[-1]]
    assert cells[-1] == "reproduced: within the tolerance"
    assert re.search(r"\| 384 +\| Recall@1 +\| 65.2 +\| not run +\| 0 of 3 +.*\| failed ", printed)
    assert "Failed: cub/384/0: the loss is nan at epoch 3" in printed
    assert "cub/512/2" in printed.split("Not run: ")[1] and "cub/384/0" not in printed.split("Not run: ")[1]
    assert re.search(r"\| cub/512 +\| \+1.50 ± 6.35 +\| \+6.00 ", printed)
    assert "[0_held_out](../../runs/proxygml/main/cub/512/0_held_out.json)" in files[".md"]
    assert json.loads(files[".json"])["cub"]["512"]["best_test_epoch"]["recall@1"]["n"] == 2
    assert "REHEARSAL" not in "".join(files.values())


def test_runs_on_other_images_are_told_apart_in_every_file(tmp_path):
    values = {"best_test_epoch": 0.666, "last_epoch": 0.666}
    write_run(tmp_path, "proxygml", "main", "cub/512", 0, values, {"images": 48, "classes": 4})
    printed, files = tabulate(tmp_path, "proxygml", "main")
    assert "'images': 48" in printed and "reproduced:" not in printed.split("Reproduced:")[0]
    assert all("REHEARSAL" in text for text in [printed, *files.values()])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("recall@1: 66.6", "recall@1: 666.0", "less than or equal to 100"),
        ("unknown: not printed in the slides", "unknown: null", "say why"),
        ("kind: chart", "kind: primary", "goes with the kind chart"),
        ("      sop/64:", "      cub200/64:", "retrieved lacks cub200"),
        ("tolerance: 0.8", "tolerence: 0.8", "did you mean tolerance"),
    ],
)
def test_a_wrong_ledger_is_refused(tmp_path, old, new, said):
    text = (ROOT / "papers/proxygml/published.yaml").read_text()
    assert old in text
    (tmp_path / "published.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(BadInputError, match=said):
        read_published(tmp_path / "published.yaml")


def test_the_stage_that_hashes_code_depends_on_what_it_hashes(monkeypatch):
    monkeypatch.chdir(ROOT)
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["code"]
    hashed = set().union(*(code.files_of(name) for name in stage["cmd"].split("pipeline.code ")[1].split()[:-2]))
    assert {Path(f"pipeline/{name}.py") for name in ("run_grid", "train", "evaluate", "weights")} <= hashed
    own = {Path("pipeline/code.py"), Path("pipeline/base/files.py"), code.LOCK}
    assert {Path(name) for name in stage["deps"]} == hashed | own


@pytest.mark.parametrize("paper", [*PAPERS, "comparison", "comparison/glyphs"])
def test_stages_of_runs_depend_on_what_their_runs_read(monkeypatch, paper):
    monkeypatch.chdir(ROOT)
    params_file = f"papers/{paper}/params.yaml"
    params = read_params(Path(params_file))
    stages = yaml.safe_load((ROOT / "papers" / paper / "dvc.yaml").read_text())["stages"]
    for name, table in params.tables.items():
        stage = stages["run" if paper == "comparison/glyphs" else f"run_{name}"]
        assert stage.get("matrix", {"dataset": f"${{tables.{name}.datasets}}"}) == {
            "dataset": f"${{tables.{name}.datasets}}"
        }
        for dataset in table.datasets:
            declared = json.loads(json.dumps(stage).replace("${item.dataset}", dataset))
            runs = [of.run for of in grid_runs(Path(params_file), name, dataset, Path("runs"), Path("metrics"))]
            recipes, losses = {run.recipe or dataset for run in runs}, {run.loss for run in runs}
            backbones = {params.recipes[recipe].backbone for recipe in recipes}
            wanted = {f"data/packed/{dataset}", f"data/splits/{dataset}"}
            wanted |= {f"data/code/{stage}" for stage in ("run_grid", "train", "evaluate")}
            wanted |= {"data/code/weights"} if backbones != {"small"} else set()
            wanted |= {"/".join(run.manifest.parts[:3]) for run in runs}
            wanted |= {f"pipeline/networks/backbones/{backbone}.py" for backbone in backbones}
            wanted |= {f"data/weights/{backbone}.pth" for backbone in backbones if backbone != "small"}
            wanted |= {f"pipeline/losses/{params.loss(loss)[0]}.py" for loss in losses}
            assert set(declared["deps"]) == wanted, f"{name}@{dataset}"
            told = set(declared["params"][0][params_file])
            told |= {f"losses.{loss}" for loss in losses if "losses" in told}
            wanted = {f"tables.{name}", *(f"recipes.{of}" for of in recipes), *(f"losses.{of}" for of in losses)}
            assert told - {"losses"} == wanted, f"{name}@{dataset}"


def test_one_recipes_learning_rate_makes_its_runs_stale_and_no_others(tmp_path):
    rehearse.copy(tmp_path / "project", rehearse.TABLES)
    for name in ("bench", "tests"):
        (tmp_path / "project" / name).symlink_to(ROOT / name)

    def run(*command):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path / "project", capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stale():
        found = json.loads(run("dvc", "status", "--json", *(f"papers/{paper}/dvc.yaml" for paper in PAPERS)))
        # Upstream, the stages that make data: of them nothing was run.
        return {name.split(":")[1] for name, why in found.items() if "papers/" in name and "changed deps" in str(why)}

    run("dvc", "repro", "-q", "code")
    subprocess.run(
        [sys.executable, "-c", "import pathlib, bench.grid; bench.grid.complete(pathlib.Path('.'))"],
        cwd=tmp_path / "project",
        check=True,
        capture_output=True,
    )
    assert stale() == set()
    (tmp_path / "project/pipeline/losses/mine.py").write_text('"""Mine."""\n')
    assert stale() == set()
    path = tmp_path / "project/papers/proxygml/params.yaml"
    params = yaml.safe_load(path.read_text())
    params["recipes"]["cars"]["network_learning_rate"] = 0.0003
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    assert stale() == {f"run_{name}@cars" for name in ("main", "ablation", "proxies", "ratio")}


def test_a_failed_stage_is_noted_until_it_succeeds(tmp_path):
    (tmp_path / "data").mkdir()
    params = tmp_path / "params.yaml"
    params.write_text("tables: 3\n")
    command = [sys.executable, "-m", "pipeline.tabulate", "--params", "params.yaml", "--table", "glyphs"]
    command += ["--runs", "metrics/runs", "--out", "metrics/tables/glyphs"]
    assert subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True).returncode == 2
    (note,) = (tmp_path / "data/failures").iterdir()
    told = json.loads(note.read_text())
    assert told["arguments"] == command[3:] and told["error"].startswith("params.yaml:")
    params.write_text((ROOT / "params.yaml").read_text())
    assert subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True).returncode == 0
    assert list((tmp_path / "data/failures").iterdir()) == []


def test_a_thin_rehearsal_from_the_archives_to_tables(tmp_path):
    pages = rehearse.rehearse(tmp_path / "rehearsal", thin=True)
    for page in pages:
        of = [path.read_text() for path in page.parent.glob(f"{page.stem}.*")]
        assert len(of) >= 4 and all("REHEARSAL" in text for text in of)
    assert "| not run" not in pages[0].read_text()
    for path, loss in ((pages[0], "proxy_gml"), (pages[1], "proxy_an")):
        project = path.parents[3]
        runs = list((project / "metrics/runs").glob(f"{path.parent.name}/*/*/*/*[0-9].json"))
        trained = json.loads(runs[0].read_text())
        lists = {path.name: path.read_text().splitlines() for path in (project / "data/code").iterdir()}
        hashed = {name: {line.split("  ")[1] for line in lines} for name, lines in lists.items()}
        own = {f"pipeline/networks/backbones/{trained['run']['recipe']['backbone']}.py", f"pipeline/losses/{loss}.py"}
        read = set(trained["run"]["provenance"]["code"])
        assert read == (hashed["train"] | hashed["weights"] | own) - {"requirements.lock"}
        assert set(trained["provenance"]["code"]) <= hashed["evaluate"] | own


def test_references_of_the_comparison_are_read_whole():
    tables = read_published(ROOT / "papers/comparison/published.yaml").tables
    assert sum(len(row.numbers) for table in tables.values() for row in table.references) == 63
    assert {table.kind for table in tables.values()} == {"primary", "secondary"}
