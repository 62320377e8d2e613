"""Reports and galleries, as a browser shows them: they ask for nothing, show all their pictures, and read on a
telephone, by keyboard and in print; names cannot break them."""

import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.nn.functional import normalize

from pipeline.base.arrays import write_arrays
from pipeline.base.files import sha256, write_json
from pipeline.data.packed import SourceImage, pack
from pipeline.reports.galleries import choose
from pipeline.reports.maps import spread
from pipeline.reports.pages import baseline_of, write_gallery, write_overview, write_report
from pipeline.runs.grid import grid_runs
from pipeline.runs.record import MetricsRecord
from pipeline.training.loading import RetrievedImages
from pipeline.work.evaluation import kept_embeddings, query_results
from tests.conftest import ROOT
from tests.records import write_metrics

NAMES = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "\u202egnp.evil", "plain & simple", "{{ 7*7 }}")
"""Of images and classes."""
SECTIONS = 8


def build(
    folder: Path, grid: str, tables: list[str], images: int = 40, side: int = 48, most: int = 10_000, epochs: int = 3
) -> None:
    """In `folder`, which is the current one, made-up runs of `most` runs of some tables of a grid of papers/ by the
    papers' protocol, on images of noise in classes of five with awkward names; the first run failed."""
    shutil.copytree(ROOT / "papers" / grid, folder / "papers" / grid)
    params = yaml.safe_load((folder / f"papers/{grid}/params.yaml").read_text())
    params["tables"] = {name: params["tables"][name] for name in tables}
    (folder / f"papers/{grid}/params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    claims = yaml.safe_load((folder / f"papers/{grid}/claims.yaml").read_text())
    claims["claims"] = [claim for claim in claims["claims"] if claim.get("table", tables[0]) in tables]
    (folder / f"papers/{grid}/claims.yaml").write_text(yaml.safe_dump(claims, sort_keys=False))
    rng = np.random.default_rng(0)
    runs = [run for run in grid_runs(grid) if run.run.protocol in ("test", "raw_pixels")][:most]
    datasets = {run.run.dataset for run in grid_runs(grid)}
    labels = np.arange(images) // 5
    packed = folder / "data/packed"
    pack(sources(rng, labels, side), packed / "shared")
    for dataset in datasets:
        (packed / dataset).symlink_to("shared")
    test = RetrievedImages([], list(range(images)), torch.from_numpy(labels), None)
    for number, run in enumerate(runs):
        if number == 0:
            write_json(folder / run.error, {"schema_number": 1, "key": "0" * 64, "error": "<b>no & room</b>"})
            continue
        recall = float(rng.uniform(0.3, 0.9))
        history = {epoch: recall * (1 - 0.5**epoch) for epoch in range(1, epochs + 1)}
        values = dict.fromkeys(("best_test_epoch", "last_epoch"), recall)
        path = write_metrics(folder, run, values, retrieved={"images": images, "classes": 8}, history=history)
        content = json.loads(path.read_text())
        if number % 10 == 1:
            embeddings = normalize(torch.from_numpy(rng.standard_normal((images, 64)).astype(np.float32)))
            results = query_results(embeddings, test) | kept_embeddings(embeddings, test)
            (folder / run.cached_queries).mkdir(parents=True)
            write_arrays(folder / run.cached_queries / "queries.npz", results)
            record = MetricsRecord.model_validate(content)
            values = {name: getattr(record, name) for name in MetricsRecord.model_fields if name != "sha256"}
            values["files"] = record.files | {"queries.npz": sha256(folder / run.cached_queries / "queries.npz")}
            for place in (path, folder / run.cached_queries / "metrics.json"):
                write_json(place, MetricsRecord.made(**values).model_dump(mode="json"))
    for table in {run.table for run in grid_runs(grid)}:
        for ending in ("md", "csv", "json"):
            file = folder / f"metrics/tables/{grid}/{table}.{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


def sources(rng: np.random.Generator, labels: np.ndarray, side: int):
    for number, label in enumerate(labels.tolist()):
        name = f"{NAMES[number % len(NAMES)]} {number}"
        small = rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        picture = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
        yield SourceImage(name, label, f"{NAMES[label % len(NAMES)]} {label}", "", encoded(picture, number))


def encoded(picture: Image.Image, number: int) -> bytes:
    """As JPEG; the last image of the first class and the first of the second are equal."""
    content = io.BytesIO()
    picture = picture if number not in (4, 5) else Image.new("RGB", picture.size, "grey")
    picture.save(content, "JPEG", quality=85)
    return content.getvalue()


@pytest.fixture(scope="module")
def pages(project, tmp_path_factory):
    """The pages by name: of the small project, of a rehearsal of a paper with awkward names, the overview and a
    gallery beside it."""
    folder = tmp_path_factory.mktemp("reports")
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.chdir(folder)
        build(folder, "proxygml", ["ratio", "ablation"], most=12)
        found = {"rehearsal": write_report("proxygml"), "overview": write_overview(["proxygml", "proxy_an"])}
        queries = next(folder.glob("data/cached/queries/**/queries.npz"))
        write_gallery(queries, queries.parts[-5], "one <run>", 5, Path("gallery.html"))
    found = {name: folder / path for name, path in found.items()} | {"gallery": folder / "gallery.html"}
    return found | {"default": project.folder / "metrics/reports/default/index.html"}


class Links(HTMLParser):
    """The addresses that a page names, its tags, and its text."""

    def __init__(self, page: Path):
        super().__init__()
        self.addresses: list[tuple[str, str]] = []
        self.identities: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(page.read_text())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), (tag, attributes)
            self.identities += [value] if name == "id" else []
            if name in ("href", "src", "srcset", "action", "data"):
                self.addresses.append((tag, value))

    def handle_data(self, data):
        self.text += data


ALL = ["default", "rehearsal", "overview", "gallery"]


@pytest.mark.parametrize("name", ALL)
def test_a_page_asks_for_nothing_and_its_links_resolve(pages, name):
    page = pages[name]
    found = Links(page)
    assert len(found.identities) == len(set(found.identities))
    for tag, address in found.addresses:
        if address.startswith("data:"):
            continue
        assert tag in ("a", "use"), (tag, address)
        if address.startswith("#"):
            assert address[1:] in found.identities, address
        else:
            assert (page.parent / address).exists() or address == "../index.html", address
    assert "script" not in found.tags
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert page.read_text().count(f'http-equiv="Content-Security-Policy" content="{policy}"') == 1


def test_names_are_escaped_and_turn_no_text(pages):
    for name in ("rehearsal", "gallery"):
        page, found = pages[name].read_text(), Links(pages[name])
        assert "<script>alert(1)</script>" in found.text and '"><img src=x onerror=alert(1)>' in found.text
        assert "plain & simple" in found.text and "{{ 7*7 }}" in found.text
        assert "\u202e" not in page and "\\u202egnp.evil" in found.text
        assert "onerror=alert(1)>" not in page and "<script" not in page
    assert "<b>no & room</b>" in Links(pages["rehearsal"]).text


def test_a_rehearsal_says_so_in_every_section(pages):
    sections = pages["rehearsal"].read_text().split("<section ")[1:]
    assert len(sections) == SECTIONS
    assert all("REHEARSAL: these runs did not search among the published images" in section for section in sections)
    assert "REHEARSAL:" in pages["overview"].read_text() and "REHEARSAL:" not in pages["default"].read_text()


def test_a_page_has_the_tables_numbers_and_their_runs(pages, project):
    shown = Links(pages["default"])
    numbers = re.findall(
        r"\d+\.\d\d ± \d+\.\d\d|\d+\.\d\d", (project.folder / "metrics/tables/default/glyphs.md").read_text()
    )
    assert len(numbers) > 20 and all(number in shown.text for number in numbers)
    links = [address for _, address in shown.addresses if address.endswith(".json") and "/runs/" in address]
    assert {link.split("/glyphs/glyphs/")[1] for link in links} == {
        "raw_pixels/0.json",
        *(f"{loss}/{seed}.json" for loss in ("proxy_an", "proxy_nca") for seed in (0, 1)),
    }
    text = Links(pages["rehearsal"]).text
    assert "1failed" in text.replace("\n", "") and "images are in the dataset" not in text
    assert "1 image is in the dataset with equal bytes under more than one label" in text


def test_a_report_is_the_same_bytes_again(project, pages, tmp_path, monkeypatch):
    monkeypatch.chdir(pages["rehearsal"].parents[3])
    before = pages["rehearsal"].read_bytes()
    write_report("proxygml")
    assert pages["rehearsal"].read_bytes() == before


def test_a_grid_of_which_nothing_was_run_has_a_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "papers").symlink_to(ROOT / "papers")
    text = Links(write_report("proxy_an")).text
    assert "No gallery: no run has kept what its queries found" in text and "○ not run" in text
    # And what others printed, of a compared table and of a ranked one.
    assert "SemiHard-64" in Links(write_report("proxygml")).text
    text = Links(write_report("comparison")).text
    assert "Other methods on cub, as printed; not run here" in text and "Theirs: " in text


def test_the_gallery_of_a_run_is_made_from_its_metrics_file(project, tmp_path):
    run = "metrics/runs/default/glyphs/glyphs/proxy_an/0.json"
    out = tmp_path / "mine.html"
    said = project.run("python", "-m", "pipeline.gallery", run, "--out", str(out), "--count", "20")
    assert said == f"look at {out}\n"
    text = Links(out).text
    assert text.count("first hit ") >= 60 and "The worst queries" in text and "Most confused classes" in text
    trained = "data/runs/default/glyphs/glyphs/proxy_an/0"
    assert "is the folder of a training: evaluate it" in project.run(
        "python", "-m", "pipeline.gallery", trained, fails=2
    )
    assert "name a file that ends in .html" in project.run(
        "python", "-m", "pipeline.gallery", run, "--out", "x", fails=2
    )


def test_galleries_show_the_extremes():
    found = {
        "first_hit": np.array([0, 90, 3, -1, 70, 0]),
        "average_precision": np.array([0.9, 0.0, 0.1, np.nan, 0.0, 1.0]),
        "similarity": np.full((6, 8), 0.5),
    }
    chosen = choose(found, np.array([0, 1, 2, 3, 1, 0]), 2)
    assert chosen["The worst"] == [1, 2] and chosen["The best"] == [5, 2], "one a class, and none without an answer"
    assert len(chosen["Random"]) == 2


def test_the_baseline_is_what_no_training_gives_and_no_ensemble():
    def rows(*protocols):
        return [(0.5, protocol, SimpleNamespace(run=SimpleNamespace(protocol=protocol))) for protocol in protocols]

    assert baseline_of(rows("ensemble", "test", "untrained", "test"))[1] == "untrained"
    assert baseline_of(rows("ensemble", "raw_pixels", "test"))[1] == "raw_pixels"
    assert baseline_of(rows("test", "ensemble", "held_out"))[1] == "held_out"


def test_a_map_has_images_of_every_class():
    labels = np.repeat([7, 8, 9], [50, 3, 50])
    rows = spread(labels, 23)
    assert len(rows) == 23 and np.bincount(labels[rows])[7:].tolist() == [10, 3, 10]
    assert spread(labels, 200).tolist() == list(range(103))


@pytest.fixture
def open_page(browser, pages):
    """Opens a page at a width, and fails in the end where it asked for anything or its console said anything."""
    said, asked, opened = [], [], []

    def open_page(name, width=1440, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, color_scheme=scheme)
        opened.append(context)
        page = context.new_page()
        address = pages[name].as_uri()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        asked.remove(address)
        return page

    yield open_page
    for context in opened:
        context.close()
    assert said == [] and [address for address in asked if not address.startswith("data:")] == []


PICTURES = """async () => {
    const addresses = [...document.images].map(image => image.src)
        .concat([...document.querySelectorAll('svg image')].map(image => image.getAttribute('href')));
    const sizes = await Promise.all(addresses.map(address => new Promise(done => {
        const image = new Image();
        image.onload = () => done(image.naturalWidth);
        image.onerror = () => done(0);
        image.src = address;
    })));
    return sizes;
}"""


@pytest.mark.chromium
@pytest.mark.parametrize("name", ALL)
def test_every_picture_is_shown_and_axe_finds_nothing(open_page, name):
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(name)
    sizes = page.evaluate(PICTURES)
    assert all(sizes) and (len(sizes) > 20 or name == "overview"), sizes
    drawn = page.evaluate("[...document.querySelectorAll('use')].map(use => use.getBBox().width)")
    assert all(width == 72 for width in drawn) and len(drawn) >= len(sizes) // 2
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


LINES = """of => [...document.querySelectorAll(of)].map(one => one.getBoundingClientRect())
    .map(place => [Math.round(place.left), Math.round(place.top)])"""


@pytest.mark.chromium
def test_a_wide_and_dark_window(open_page):
    """Contents beside the page, sections in two columns, and colours that axe can read."""
    from axe_playwright_python.sync_playwright import Axe

    page = open_page("rehearsal", 1920, "dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 24, 39)"
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    (contents, main), (intervals, curves) = (page.evaluate(LINES, of) for of in ("nav, main", "#intervals, #curves"))
    assert contents[0] < main[0] and contents[1] == main[1]
    assert intervals[0] < curves[0] and intervals[1] == curves[1]


def test_a_page_begins_with_what_was_found(pages):
    found = Links(pages["rehearsal"]).text.split("2. Tables")[0]
    assert re.search(r"cars, ratio: \S+ is the best of 11 rows with a Recall@1 of [\d.]+ ", found), found
    assert re.search(r"Not done, so nothing is known of them: \d+ of \w+", found), found
    found = Links(pages["default"]).text.split("2. Tables")[0]
    assert re.search(
        r"proxy_nca is the best of 2 rows .* above proxy_an \(95 % interval .*\), [\d.]+ above raw_p", found
    )
    assert "All planned runs are done." in found


def test_a_page_has_the_recipe_and_the_settings_of_each_row(pages, project):
    text = " ".join(Links(pages["default"]).text.split("Recipe and settings of each row")[1].split())
    params = yaml.safe_load((project.folder / "params.yaml").read_text())
    assert f"proxy_an loss proxy_an, alpha {params['losses']['proxy_an']['alpha']}, margin 0.1; seeds 0, 1" in text
    assert "raw_pixels the images themselves, without any training; seed 0" in text
    assert "glyphs: what all trained rows share" in text and "learning_rates.network 0.005" in text
    assert "optimiser.name adamw" in text and "epochs 2" in text


@pytest.mark.chromium
@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("name", ALL)
def test_a_page_fits_its_width(open_page, name, width):
    page = open_page(name, width)
    page.evaluate("document.querySelectorAll('details').forEach(of => of.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.chromium
def test_the_keyboard_opens_every_cell(open_page):
    page = open_page("default")
    count = page.locator("details").count()
    assert count > 20
    reached = set()
    for _ in range(3 * count):
        page.keyboard.press("Tab")
        place = page.evaluate("[...document.querySelectorAll('summary')].indexOf(document.activeElement)")
        if place >= 0 and place not in reached:
            reached.add(place)
            page.keyboard.press("Enter")
        if len(reached) == count:
            break
    assert len(reached) == count and page.locator("details[open]").count() == count


@pytest.mark.chromium
def test_print_needs_no_colour(open_page):
    page = open_page("rehearsal")
    page.emulate_media(media="print")
    colours = page.evaluate(
        "[...document.querySelectorAll('.good, .bad, .unknown, .rehearsal, .right span, .wrong span')]"
        ".map(of => getComputedStyle(of).color)"
    )
    assert colours and set(colours) == {"rgb(0, 0, 0)"}
    frames = page.evaluate(
        "['.right', '.wrong', '.query'].map(of => document.querySelector(of + ' .picture'))"
        ".map(of => getComputedStyle(of).borderStyle)"
    )
    assert len(set(frames)) == 3
    # A heading is on the page of what it is the heading of.
    kept = page.evaluate(
        "[...document.querySelectorAll('h2, h3, h4, h5')].map(of => getComputedStyle(of).breakAfter)"
        ".concat([...document.querySelectorAll('.figures, .answers, .blocks')].map(of => getComputedStyle(of).display))"
    )
    assert set(kept) == {"avoid", "block"}
    assert page.pdf()[:5] == b"%PDF-"


def test_queries_of_another_evaluation_are_not_shown(pages, tmp_path, monkeypatch):
    folder = shutil.copytree(pages["rehearsal"].parents[3], tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(folder)
    for path in folder.glob("data/cached/queries/**/queries.npz"):
        path.write_bytes(path.read_bytes() + b"of another evaluation")
    assert "No gallery: no run has kept what its queries found" in Links(write_report("proxygml")).text
