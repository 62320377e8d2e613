"""One table in each format: the cells of its model, the same ones, in Markdown, LaTeX, CSV, JSON and HTML."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from pipeline.reports.pages import write_report
from pipeline.runs.grid import grid_runs
from pipeline.tables import formats
from pipeline.tables.grid import read_content
from pipeline.tabulate import write_table
from tests import GRID
from tests.records import write_metrics

ROOT = Path(__file__).parent.parent
LEDGER = """
paper: A table of this test
retrieved:
  glyphs: {images: 3107, classes: 31}
spread: {points: 0.4, reason: any}
tables:
  glyphs:
    title: Losses on glyphs
    source: nowhere
    kind: primary
    error: 0.0
    limits: {glyphs: {recall@1: 1.0}}
    limits_reason: any
    unknown: not printed
    chart: null
    rows:
      glyphs/proxy_gml: {recall@1: 50.0, nmi_arithmetic: null}
      glyphs/proxy_an: {recall@1: 60.0}
      glyphs/proxy_anchor: {recall@1: 60.0}
      glyphs/proxy_nca: {recall@1: 60.0}
    references:
    - {method: Another, network: small, numbers: {glyphs: {recall@1: 12.3}}}
    notes: [What is known.]
"""
VALUES = {"proxy_gml": 0.50, "proxy_an": 0.40, "proxy_nca": 0.2}  # and nothing of proxy_anchor
ADDED = {"raw_pixels", "untrained", *(f"ensemble_of_{loss}" for loss in (*VALUES, "proxy_anchor"))}


@pytest.fixture(params=["rows", "compared", "ranked"])
def table(request, tmp_path, monkeypatch):
    """A table of each kind with runs, a row that lacks a run, one that was not run, and all rows that tables add. Its
    files are written."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "papers/mine"
    folder.mkdir(parents=True)
    params = yaml.safe_load((GRID / "params.yaml").read_text())
    layout = "ranked" if request.param == "ranked" else "rows"
    params["tables"]["glyphs"].update(untrained=True, ensembles=True, layout=layout)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    if request.param != "rows":
        (folder / "published.yaml").write_text(LEDGER)
    for run in grid_runs("mine"):
        if run.run.trained and run.row in VALUES and (run.row, run.run.seed) != ("proxy_nca", 2):
            value = VALUES[run.row] + run.run.seed * len(run.row) / 1000
            write_metrics(tmp_path, run, {"best_test_epoch": value + 0.001, "last_epoch": value})
        elif run.row.startswith("ensemble"):
            write_metrics(tmp_path, run, {"last_epoch": 0.55})
        elif not run.run.trained:
            write_metrics(tmp_path, run, {"no_training": 0.3})
    (table,) = read_content("mine").tables
    write_table(table)
    return table


def cells(block):
    """The text of a block: its head and its lines."""
    return [block.head, *([entry.text for entry in line.entries] for line in block.lines)]


def file(ending):
    return Path("metrics/tables/mine/glyphs").with_suffix(ending).read_text()


def test_markdown_has_the_cells_of_the_model(table):
    lines = [line for line in file(".md").splitlines() if line.startswith("|") and not line.startswith("| --")]
    shown = [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    blocks = [*table.results, *table.curves, *table.printed, *([table.peeking] if table.peeking else [])]
    assert shown == [line for block in blocks for line in cells(block)] and len(shown) > 6


def test_latex_has_the_cells_of_the_model(table):
    plain = file(".tex").replace(r"$\pm$", "±").replace("--", "–").replace(r"\_", "_").replace("$<$", "<")
    lines = [line.removesuffix(r" \\").split(" & ") for line in plain.splitlines() if " & " in line]
    shown = [[cell.strip() for cell in line] for line in lines]
    expected, head = [], None
    for block in table.results:
        expected += cells(block)[1 if block.head == head else 0 :]
        head = block.head
    assert shown == expected
    notes = [note for block in table.results for note in block.notes] + table.notes
    assert notes and all(f"\n% {note}\n" in file(".tex") for note in notes)


def test_csv_and_json_have_the_numbers_of_the_model(table):
    lines = {
        (line["row"], line["selection"], line["metric"]): line for line in csv.DictReader(file(".csv").splitlines())
    }
    aggregate = json.loads(file(".json"))["glyphs"]
    shown = [entry for block in table.results for line in block.lines for entry in line.entries if entry.number]
    told = [entry for entry in shown if entry.number.cell.values and not entry.verdict]
    assert len(told) > 15
    for entry in told:
        number = entry.number
        line, found = lines[number.row.name, number.rule, number.metric], aggregate[number.row.name][number.rule]
        assert entry.text.split()[0] == f"{100 * float(line['mean']):.2f}"
        assert entry.text.split()[0] == f"{100 * found[number.metric]['mean']:.2f}"
        assert int(line["n"]) == found[number.metric]["n"] == len(number.cell.values)
    for entry in shown:
        line = lines.get((entry.number.row.name, entry.number.rule, entry.number.metric))
        assert line or not entry.number.cell.values  # of a metric that was not run and is not printed
        if line and entry.verdict:
            assert line["verdict"] == entry.verdict.text == entry.text
    assert aggregate.keys() == {*VALUES, "proxy_anchor"} | ADDED and aggregate["proxy_anchor"] == {}


class Tables(HTMLParser):
    """The tables of a page as lines of cells, without what opens below a number."""

    def __init__(self, page):
        super().__init__()
        self.lines, self.cell, self.hidden, self.text = [], None, 0, ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.lines.append([])
        elif tag in ("th", "td"):
            self.cell = ""
        elif tag == "ul" and self.cell is not None:
            self.hidden += 1

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self.lines[-1].append(" ".join(self.cell.split()))
            self.cell = None
        elif tag == "ul" and self.cell is not None:
            self.hidden -= 1

    def handle_data(self, data):
        self.text += data
        if self.cell is not None and not self.hidden:
            self.cell += data


def test_the_report_has_the_cells_of_the_model(table):
    page = Tables(write_report("mine").read_text())
    for block in [*table.results, *table.printed, *([table.peeking] if table.peeking else [])]:
        head, *lines = cells(block)
        assert [cell or "row" for cell in head] in page.lines
        for line in lines:
            assert any([re.sub("^[✓✗≈!?○R] ", "", cell) for cell in shown] == line for shown in page.lines), line
    for note in [*table.notes, table.complete, *(note for block in table.results for note in block.notes)]:
        assert note in page.text


def test_the_rows_that_the_table_added_are_in_every_format(table):
    assert {row.name for row in table.rows} >= ADDED
    shown = {line.row.name for block in table.results for line in block.lines}
    assert shown >= ADDED, "and so in all of them, as the tests above show"
    notes = " ".join(note for block in table.results for note in block.notes)
    worse = "Not better than glyphs/raw_pixels, Recall@1 30.00, which is reached without training: proxy_nca."
    assert worse in notes


def test_where_no_row_is_better_than_no_training_a_sentence_says_so(table, monkeypatch):
    run = next(run for run in grid_runs("mine") if run.row == "raw_pixels")
    write_metrics(Path(), run, {"no_training": 0.9})
    (table,) = read_content("mine").tables
    said = "No row is better than glyphs/raw_pixels, Recall@1 90.00, which is reached without training."
    assert f"\n{said}\n" in "\n".join(formats.page(table)) and f"% {said}" in formats.latex(table)


def test_a_table_depends_only_on_what_its_stage_declares(table):
    before = {ending: file(ending) for ending in (".md", ".tex", ".csv", ".json")}
    made = Path("metrics/made/mine/glyphs/glyphs/proxy_an/0.json")
    made.parent.mkdir(parents=True)
    made.write_text("{}")
    shutil.rmtree("data", ignore_errors=True)
    (again,) = read_content("mine").tables
    write_table(again)
    assert {ending: file(ending) for ending in before} == before
