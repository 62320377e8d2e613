"""The DVC stages as people use them: what runs, what runs again, and what a metrics file says."""

import json
import re

import pytest
import yaml

CELLS = {"train@proxy_an-0", "train@proxy_an-1", "evaluate@proxy_an", "tabulate"}


def metrics_files(project):
    files = sorted((project.folder / "metrics/runs/glyphs").glob("*/[0-9].json"))
    return {f"{file.parent.name}/{file.name}": json.loads(file.read_text()) for file in files}


def test_first_repro_runs_the_whole_road(project):
    ran = set(project.first_repro)
    trained = {f"train@{loss}-{seed}" for loss in ("proxy_an", "proxy_nca") for seed in (0, 1)}
    evaluated = {"evaluate@proxy_an", "evaluate@proxy_nca", "raw_pixels"}
    assert ran == trained | evaluated | {"download", "convert", "split", "code", "tabulate"}
    assert project.first_repro[-1] == "tabulate"
    assert set(metrics_files(project)) == {
        "proxy_an/0.json",
        "proxy_an/1.json",
        "proxy_nca/0.json",
        "proxy_nca/1.json",
        "raw_pixels/0.json",
    }


def test_training_beats_raw_pixels_on_every_seed(project):
    files = metrics_files(project)
    raw = files.pop("raw_pixels/0.json")["metrics"]["no_training"]["recall@1"]
    assert 0.25 < raw < 0.33
    for name, content in files.items():
        assert content["metrics"]["last_epoch"]["recall@1"] > raw + 0.05, name


def test_second_repro_runs_nothing(project):
    assert project.repro() == []
    assert "up to date" in project.run("dvc", "status", "dvc.yaml")


def test_changing_one_losss_parameter_runs_its_cells_and_shows_the_difference(project):
    project.run("dvc", "repro", "--dry")
    text = (project.folder / "params.yaml").read_text()
    project.edit_params(lambda params: params["losses"]["proxy_an"].update(alpha=12.0))
    try:
        assert set(project.repro()) == CELLS
        shown = project.run("dvc", "metrics", "diff", "--all")
        row = re.search(r"proxy_an\.last_epoch\.recall@1\.mean\s+([\d.]+)\s+([\d.]+)\s+(-?[\d.]+)", shown)
        assert row and float(row[2]) - float(row[1]) == pytest.approx(float(row[3]), abs=1e-4) != 0
        unmoved = re.search(r"proxy_nca\.last_epoch\.recall@1\.mean\s+([\d.]+)\s+([\d.]+)\s+(\S+)", shown)
        assert unmoved and unmoved[1] == unmoved[2]
        assert re.search(r"losses\.proxy_an\.alpha\s+32\.0\s+12\.0", project.run("dvc", "params", "diff"))
    finally:
        (project.folder / "params.yaml").write_text(text)
        # From the run-cache: the cells of before come back without training.
        project.run("dvc", "repro")
    assert project.run("git", "status", "--porcelain") == ""


def test_editing_one_losss_file_runs_its_cells(project):
    path = project.folder / "pipeline/losses/proxy_an.py"
    text = path.read_text()
    path.write_text(text + "\n# Another line.\n")
    try:
        stale = project.run("dvc", "status", "--json", "dvc.yaml")
    finally:
        path.write_text(text)
    direct = {name for name, why in json.loads(stale).items() if "pipeline/losses/proxy_an.py" in json.dumps(why)}
    assert direct == {"train@proxy_an-0", "train@proxy_an-1"}


def test_adding_a_loss_makes_nothing_stale(project):
    path = project.folder / "pipeline/losses/mine.py"
    path.write_text('"""Mine."""\n')
    try:
        assert "up to date" in project.run("dvc", "status", "dvc.yaml")
    finally:
        path.unlink()


def test_experiments_run_and_show(project):
    project.run("dvc", "exp", "run", "--set-param", "losses.proxy_an.margin=0.2", "--name", "wider")
    try:
        shown = project.run("dvc", "exp", "show", "--csv", "--only-changed")
        assert "wider" in shown and "losses.proxy_an.margin" in shown
        assert "proxy_an.last_epoch.recall@1.mean" in project.run("dvc", "exp", "diff", "HEAD", "wider")
    finally:
        project.run("git", "checkout", "--", ".")
        project.run("dvc", "checkout", "--quiet", "dvc.yaml")


def test_stages_depend_on_the_code_they_read_and_no_other(project):
    with (project.folder / "dvc.lock").open() as file:
        stages = yaml.safe_load(file)["stages"]

    def declared(stage):
        paths = [dep["path"] for dep in stages[stage]["deps"]]
        for path in [path for path in paths if path.startswith("data/code/")]:
            paths += [line.split("  ")[1] for line in (project.folder / path).read_text().splitlines()]
        return {path for path in paths if path.endswith(".py")}

    files = metrics_files(project)
    trained = files["proxy_an/0.json"]
    assert set(trained["run"]["provenance"]["code"]) == declared("train@proxy_an-0")
    shared = {"pipeline/losses/__init__.py"}  # in every list
    assert set(trained["provenance"]["code"]) | shared == declared("evaluate@proxy_an")
    assert set(files["raw_pixels/0.json"]["provenance"]["code"]) | shared == declared("raw_pixels")
    report = (
        "import sys, runpy; sys.argv[1:] = {arguments!r}; runpy.run_module('pipeline.{stage}', run_name='__main__'); "
        "print([m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'pipeline'] + ['pipeline/{stage}.py'])"
    )
    for stage, arguments in (
        ("download", ["glyphs"]),
        ("convert", ["glyphs"]),
        ("split", ["glyphs"]),
        ("tabulate", ["--table", "glyphs", "--runs", "metrics/runs", "--out", "scratch/glyphs"]),
    ):
        printed = project.run("python", "-c", report.format(stage=stage, arguments=arguments))
        read = set(re.findall(r"(pipeline/[\w/]+\.py)'", printed.splitlines()[-1]))
        assert read == declared(stage), stage
    project.run("git", "clean", "-fdq", "scratch")


def test_provenance_says_where_a_number_comes_from(project):
    content = metrics_files(project)["proxy_an/1.json"]
    run = content["run"]
    assert (run["loss"], run["seed"], run["loss_settings"]) == ("proxy_an", 1, {"alpha": 32.0, "margin": 0.1})
    assert run["recipe"]["epochs"] == 2
    for made in (run["provenance"], content["provenance"]):
        assert made["git"]["clean"] and re.fullmatch("[0-9a-f]{40}", made["git"]["revision"])
        assert made["machine"]["cpu"] and made["machine"]["gpu"] is None and made["image"] is None
        assert made["seconds"] > 0 and made["peak_memory_bytes"] > 1e8
        assert made["versions"]["torch"].startswith("2.") and made["versions"]["dvc"] == "3.67.1"
        assert "data/packed/glyphs/images.bin" in made["inputs"]
    assert "data/runs/glyphs/proxy_an/1/best_test_epoch.pt" in content["provenance"]["inputs"]


def test_every_stage_has_a_help_page(project):
    for stage in ("download", "convert", "split", "train", "evaluate", "tabulate"):
        assert "usage: python -m pipeline." + stage in project.run("python", "-m", f"pipeline.{stage}", "--help")
