"""What README and the committed tables say is there."""

import re
import subprocess
from pathlib import Path

import pytest

from pipeline.doctor import UNTRIED, tried_line
from pipeline.runs.grid import grid_runs
from tests import GRID

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    *sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("docs/*.md"), *ROOT.glob("metrics/tables/*/*.md")]),
]


@pytest.fixture(scope="module")
def tracked():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return {str(place) for file in files if file for place in (Path(file), *Path(file).parents)}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_resolves_in_a_fresh_clone(page, tracked):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    places = {link: (ROOT / page).parent.joinpath(link).resolve().relative_to(ROOT) for link in links}
    assert [link for link, place in places.items() if str(place) not in tracked] == []
    assert links or page.startswith("docs/")


@pytest.mark.shipped
def test_the_grid_of_the_tests_is_the_default():
    assert (GRID / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes(), "copy params.yaml to tests/grid"


@pytest.mark.shipped
def test_readme_shows_the_committed_table():
    table = (ROOT / "metrics/tables/default/glyphs.md").read_text().splitlines()[2:]
    table = table[: next(place for place, line in enumerate(table) if line.startswith("Mean ±")) + 1]
    shown = "\n".join(f"    {line}".rstrip() for line in table)
    assert shown in (ROOT / "README.md").read_text(), "copy metrics/tables/default/glyphs.md into README.md"


@pytest.mark.shipped
def test_the_comparison_shows_the_committed_table():
    table = re.search(r"\|.*\|\n(?:\|.*\|\n)+", (ROOT / "metrics/tables/comparison_glyphs/glyphs.md").read_text())
    assert table and table[0] in (ROOT / "docs/comparison.md").read_text()


@pytest.mark.parametrize("grid", ["proxygml", "proxy_an", "comparison"])
def test_the_head_of_a_grid_says_how_many_runs_it_has(grid, monkeypatch):
    monkeypatch.chdir(ROOT)
    head = (ROOT / f"papers/{grid}/params.yaml").read_text().split("\n\n")[0]
    (runs,) = re.findall(r"(\d+) runs", head)
    assert int(runs) == len(grid_runs(grid))


def test_what_was_never_run_is_said_in_readme_and_by_doctor():
    section = (ROOT / "docs/not_reproduced.md").read_text().split("## What is known")[0]
    untried = re.findall(r"\*\*(.+?)\*\*", section)
    assert untried == ["No number of the papers", *UNTRIED]
    begin = " ".join((ROOT / "README.md").read_text().split("\n## ")[0].split())
    assert [words for words in untried if words.lower() not in begin.lower()] == []
    found = tried_line("aarch64", gpu=True, container=True)
    assert found.state == "warn" and found.found == "never on: GPU, Docker, Arm"
    assert tried_line("x86_64", gpu=False, container=False).state == "ok"
