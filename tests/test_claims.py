"""Claims: what runs say to them, recomputed by another way; plans before anything is run; mistakes in claims.yaml."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from bench import claims as claims_page
from pipeline import plan, tabulate
from pipeline.base.config import read_params
from pipeline.base.files import BadInputError
from pipeline.reports.pages import write_report
from pipeline.runs.grid import grid_runs
from pipeline.tables import formats
from pipeline.tables.claims import printed_size, read_claims
from pipeline.tables.grid import read_content
from pipeline.tables.published import read_published
from tests import GRID
from tests.records import write_metrics

ROOT = Path(__file__).parent.parent
PAPERS = ROOT / "papers"
CARS = {"images": 8131, "classes": 98}
FACTORS = {"none": "", "S": "S", "M": "M", "L": "L", "ML": "ML", "SL": "SL", "SM": "SM", "SML": "SML"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project with the papers' grids, three seeds in the ablation, and nothing run."""
    shutil.copytree(PAPERS, tmp_path / "papers", ignore=shutil.ignore_patterns("dvc.*"))
    path = tmp_path / "papers/proxygml/params.yaml"
    params = yaml.safe_load(path.read_text())
    params["tables"]["ablation"]["seeds"] = [0, 1, 2]
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    shutil.copy(GRID / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ablation(folder, effects, spread, seed=1):
    """Made-up runs of the ablation with these effects of the factors, in points -> row -> Recall@1 by seed."""
    draws, values = np.random.default_rng(seed), {}
    for run in grid_runs("proxygml", table="ablation"):
        value = 70 + sum(effects[factor] for factor in FACTORS[run.row]) + draws.normal(0, spread)
        write_metrics(folder, run, {"best_test_epoch": value / 100, "last_epoch": 0.5}, CARS)
        values.setdefault(run.row, []).append(value)
    return values


def finding(content, words, dataset="cars"):
    return next(of for of in content.findings if words in of.claim.claim and of.dataset == dataset)


def test_a_factor_of_the_ablation_by_regression(folder):
    values = ablation(folder, {"S": 3.0, "M": -3.0, "L": 0.1}, 0.4)
    content = read_content("proxygml")
    found = [finding(content, f"({factor}) raises") for factor in "SML"]
    assert [of.state for of in found] == ["supported", "contradicted", "cannot say"]
    # The same by least squares: all main effects and interactions, so one mean for each of the eight rows.
    rows = [(row, value) for row, of in values.items() for value in of]
    signs = np.array([[1 if factor in FACTORS[row] else -1 for factor in "SML"] for row, _ in rows], float)
    columns = [np.ones(len(rows)), *signs.T, signs[:, 0] * signs[:, 1], signs[:, 0] * signs[:, 2]]
    design = np.column_stack([*columns, signs[:, 1] * signs[:, 2], signs.prod(1)])
    y = np.array([value for _, value in rows])
    fitted, squares, rank, _ = np.linalg.lstsq(design, y)
    df = len(y) - rank
    error = 2 * np.sqrt(squares[0] / df * np.linalg.inv(design.T @ design)[1, 1])
    tests = found[0].tests
    assert df == 16 and tests == 21
    for factor, of in enumerate(found, 1):
        effect = 2 * fitted[factor]
        half = stats.t.ppf(1 - 0.025 / tests, df) * error
        assert of.estimate.value == pytest.approx(effect, abs=1e-3)
        assert (of.estimate.low, of.estimate.high) == pytest.approx((effect - half, effect + half), abs=1e-3)
        p = min(1, tests * 2 * stats.t.sf(abs(effect) / error, df))
        assert of.estimate.p == pytest.approx(p, abs=1e-4) and of.seeds == (3,)


def test_cells_intervals_and_verdicts_of_a_table_by_another_program(folder):
    values = ablation(folder, {"S": 10.0, "M": 2.0, "L": 5.0}, 0.3)
    tabulate.write_table(next(table for table in read_content("proxygml").tables if table.name == "ablation"))
    written = json.loads(Path("metrics/tables/proxygml/ablation.json").read_text())["cars"]
    s = np.sqrt(np.mean([np.var(of, ddof=1) for of in values.values()]))
    page = Path("metrics/tables/proxygml/ablation.md").read_text()
    printed = {row.split("/")[1]: of["recall@1"] for row, of in ledger().tables["ablation"].rows.items()}
    for row, of in values.items():
        cell = written[row]["best_test_epoch"]["recall@1"]
        assert cell["mean"] == pytest.approx(np.mean(of) / 100, abs=2e-6)
        assert cell["half_width"] == pytest.approx(stats.t.ppf(0.975, 16) * s / np.sqrt(3) / 100, abs=2e-6)
        half = max(stats.t.ppf(0.975, 16) * s, stats.norm.ppf(0.975) * 0.36) * np.sqrt(4 / 3)
        apart = np.mean(of) - printed[row]
        expected = f"differs by {apart:+.2f}" if abs(apart) > half else "cannot say: no number of seeds can"
        line = next(line for line in page.splitlines() if line.startswith(f"| {row} ") and "Recall@1" in line)
        assert f"| {expected} " in line, line
    assert f"Spread of Recall@1 over seeds: {s:.2f} points, with 16 degrees of freedom." in page
    assert "By Recall@1 a verdict cannot tell these rows apart: " in page and "SL and SML (printed 1.0 apart" in page


def ledger(grid="proxygml"):
    path = PAPERS / grid / "published.yaml"
    return read_published(path) if path.is_file() else None


@pytest.mark.parametrize("grid", ["proxygml", "proxy_an", "comparison", "claims"])
def test_every_claim_names_rows_that_its_grid_has(grid):
    params = read_params(PAPERS / grid / "params.yaml")
    claims = read_claims(PAPERS / grid / "claims.yaml", params, ledger(grid))
    for claim, dataset in claims.tested():
        assert dataset in params.tables[claim.table].datasets
        size = printed_size(claim, dataset, ledger(grid))
        assert (size is None) == (grid != "proxygml")


def test_printed_sizes_are_computed_from_the_ledger():
    published = ledger()
    params = read_params(PAPERS / "proxygml/params.yaml")
    claims = read_claims(PAPERS / "proxygml/claims.yaml", params, published)
    sizes = [round(printed_size(claim, dataset, published), 2) for claim, dataset in claims.tested()]
    # By hand from the slides: main effects, simple effects, distances to others.
    assert sizes[:9] == [14.9, 5.35, 13.4, 2.9, 1.0, 1.5, 1.2, 1.0, -0.3]
    assert sizes[-3:] == [13.3, -0.9, 0.6]


def test_rises_others_curves_and_margins(folder):
    for run in grid_runs("proxygml", dataset="cars", table="main"):
        if run.row == "512" and run.run.protocol == "test":
            jitter = run.run.seed / 1000
            history = {2: 0.633 + jitter, 35: 0.845 + jitter, 44: 0.849, 48: 0.855 + jitter, 50: 0.854 + jitter}
            write_metrics(folder, run, {"best_test_epoch": 0.855 + jitter, "last_epoch": 0.854}, CARS, history)
    content = read_content("proxygml")
    assert finding(content, "still rises").estimate.value == pytest.approx(0.7)
    after = finding(content, "after 35 epochs")
    assert after.estimate.value == pytest.approx(-0.9) and after.state == "supported", "at most 1.5 below the end"
    early = finding(content, "after 2 epochs")
    assert early.estimate.value == pytest.approx(63.4 - 50.0) and early.claim.against == "Multi-Similarity"
    assert finding(content, "above SoftTriple").estimate.value == pytest.approx(85.6 - 84.5)
    # A printed run has a chance of its own: its variance is added.
    above = finding(content, "above SoftTriple").estimate
    assert above.error == pytest.approx(0.1 * np.sqrt(1 + 1 / 3))


def test_a_paper_that_has_not_been_run_shows_its_claims_and_the_seeds_that_they_need(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tabulate", "proxygml"])
    tabulate.main()
    page = Path("metrics/tables/proxygml/claims.md").read_text()
    assert page.count("| not run ") == 21 and "Claims that no run can test" in page and "It is efficient." in page
    printed = capsys.readouterr().out
    assert 0 < printed.index("**Claims.**") < printed.index("# Comparison on three datasets"), "claims come first"
    written = json.loads(Path("metrics/tables/proxygml/claims.json").read_text())
    assert [of["state"] for of in written].count("untestable") == 3
    needed = {of["claim"]: of["seeds_needed"] for of in written if of["state"] == "not run" and of["dataset"] == "cars"}
    assert needed["It is above SoftTriple."] is None
    assert (
        needed["The complete loss needs the masked softmax (M)."]
        > needed["The complete loss needs the own proxies (S)."]
    )
    lines = plan.page("proxygml")
    assert any("by a model of an H100" in line for line in lines)
    assert any(line.startswith("| main, cars ") and "| 1.0 " in line for line in lines)
    assert any("the print contradicts it" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"higher": ["SMI"]}, r"claims\.0: cars/SMI is no row of the table ablation"),
        ({"table": "ablations"}, r"claims\.0\.table: ablations is no table, choose one of main"),
        ({"untestable": "so"}, "an untestable claim has only claim, source and untestable"),
        ({"epochs": [1, 2]}, "give one of lower, against, and epochs"),
        ({"lower": []}, "give one of lower, against, and epochs"),
        ({"lower": [], "against": "SoftTripel"}, "SoftTripel has no printed recall@1 on cars"),
        ({"margins": 1.0}, "did you mean margin"),
        ({"datasets": []}, "give datasets|at least 1"),
    ],
)
def test_a_wrong_claim_is_refused(folder, change, said):
    path = folder / "papers/proxygml/claims.yaml"
    content = yaml.safe_load(path.read_text())
    content["claims"][0] |= change
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(BadInputError, match=said):
        read_content("proxygml")


def test_a_table_may_not_have_the_name_of_the_claims(folder):
    path = folder / "papers/claims/params.yaml"
    params = yaml.safe_load(path.read_text())
    params["tables"]["claims"] = params["tables"]["losses"]
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    with pytest.raises(BadInputError, match=r"tables\.claims: a grid with claims\.yaml"):
        read_content("claims")


def test_the_page_of_claims_is_made_from_the_committed_results():
    committed = json.loads((ROOT / claims_page.CLAIMS).read_text())
    assert (ROOT / claims_page.PAGE).read_text() == claims_page.page(committed), "run python -m bench.claims"


def test_chance_over_classes_comes_from_what_queries_found(tmp_path, monkeypatch):
    shutil.copytree(PAPERS / "claims", tmp_path / "papers/claims")
    shutil.copy(GRID / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    draws = np.random.default_rng(0)
    queries, hits = np.full(31, 100), {}
    for run in grid_runs("claims", table="losses"):
        recall = np.clip(draws.normal(0.5, 0.1, 31) + 0.02 * (run.row == "proxy_gml"), 0, 1).astype(np.float32)
        path = write_metrics(tmp_path, run, {"best_test_epoch": 0.9, "last_epoch": float(recall.mean())})
        run.cached_queries.mkdir(parents=True)
        shutil.copy(path, run.cached_queries / "metrics.json")
        np.savez(run.cached_queries / "queries.npz", label=np.arange(31), recall=recall, queries=queries)
        hits.setdefault(run.row, []).append(recall)
    found = finding(read_content("claims"), "ProxyGML is above Proxy-NCA", "glyphs")
    difference = 100 * (np.mean(hits["proxy_gml"], 0) - np.mean(hits["proxy_nca"], 0))
    means = difference[draws.integers(0, 31, (20000, 31))].mean(1)
    assert found.classes.value == pytest.approx(found.estimate.value, abs=1e-3) and found.classes.classes == 31
    assert (found.classes.low, found.classes.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.1)
    table = next(table for table in read_content("claims").tables if table.name == "losses")
    written = formats.aggregate(table)["glyphs"]
    own = written["proxy_nca"]["over_test_classes"]
    means = np.mean(hits["proxy_nca"], 0)[draws.integers(0, 31, (20000, 31))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    assert (own["recall@1"]["low"], own["recall@1"]["high"]) == pytest.approx((low, high), abs=0.002)
    best = max(hits, key=lambda row: np.mean(hits[row]))
    assert "less_the_best" not in written[best]["over_test_classes"] and own["less_the_best"]["low"] < 0
    assert (
        table.chance[0].lines[0].entries[0].text == best and "Two kinds of chance" in write_report("claims").read_text()
    )
