"""The site of all pages: it is whole, reads as the pages do on a forge, and works from the file system."""

import contextlib
import re
import shutil
import tomllib
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from pipeline.base.files import BadInputError
from tests import site
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The site of the committed pages and tables, with the default's report."""
    copy = tmp_path_factory.mktemp("copy")
    for part in ("docs", "papers", "metrics/tables", "metrics/runs", "metrics/made"):
        shutil.copytree(ROOT / part, copy / part)
    for path in [*ROOT.glob("*.md"), ROOT / "params.yaml"]:
        shutil.copy(path, copy)
    with contextlib.chdir(copy):
        return site.build(Path("site"), ["default"]).absolute()


class Parts(HTMLParser):
    """How many of each kind of part a page has in its article, or in all of it."""

    def __init__(self, text: str, inside: bool):
        super().__init__()
        self.inside, self.counts = inside, Counter()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside |= tag == "article"
        if self.inside and tag in ("h2", "h3", "img", "li", "pre", "table", "tr"):
            self.counts[tag] += 1

    def handle_endtag(self, tag):
        self.inside &= tag != "article"


def test_the_site_has_every_page_as_it_is_written(html):
    """Zensical's Markdown is not the forge's: a list or code that it does not see changes the counts."""
    pages = {path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
    nav = re.findall(r'"([^"]+\.md)"', (ROOT / "docs/site" / site.CONFIG).read_text())
    assert sorted(nav) == sorted(map(str, {*pages, Path("metrics/index.md")}))
    assert tomllib.loads((ROOT / "docs/site" / site.CONFIG).read_text())["project"]["theme"]["font"] is False
    tables = {path.relative_to(ROOT) for path in ROOT.glob("metrics/tables/*/*.md")}
    assert len(tables) >= 3
    for page in sorted(pages | tables):
        made = html / ("index.html" if page.name == "README.md" else page.with_suffix(".html"))
        wanted = Parts(MarkdownIt().enable("table").render((ROOT / page).read_text()), inside=True)
        assert Parts(made.read_text(), inside=False).counts == wanted.counts, page


def test_broken_links_are_named_and_a_folder_of_a_person_is_left(html, tmp_path, monkeypatch):
    copy = shutil.copytree(html, tmp_path / "html")
    assert [*site.broken_links(copy)] == []
    page = copy / "docs/extra.html"
    good = '<a href="../index.html#reproduce-a-paper">a</a><a href="https://example.org">b</a><img src="report.png">'
    bad = ["evaluation.html#nothing", "../pipeline/gone.py", ".."]
    page.write_text(good + "".join(f'<a href="{link}">c</a>' for link in bad))
    assert [*site.broken_links(copy)] == [f"docs/extra.html: {link}" for link in bad]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(BadInputError, match="mine: is there, and is no site"):
        site.build(mine, [])
    assert (mine / "notes.txt").read_text() == "mine"


@pytest.mark.chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_works_from_the_file_system_and_asks_for_nothing_outside(html, browser, scheme):
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(viewport={"width": 1440, "height": 900}, offline=True, color_scheme=scheme)
    page = context.new_page()
    said, asked = [], []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    for name in ("index", "docs/extend", "metrics/tables/default/glyphs"):
        page.goto((html / f"{name}.html").as_uri())
        page.wait_for_load_state("networkidle")
        assert all(page.evaluate("[...document.images].map(image => image.naturalWidth)"))
        assert said == []
        results = Axe().run(page)
        assert results.violations_count == 0, results.generate_report()
        said.clear()  # axe tries to read the style sheets once more, which no page may from the file system
    page.get_by_role("button", name="Search").click()
    page.keyboard.type("prediction interval")
    page.get_by_role("option", name="What a verdict is worth").click()
    page.wait_for_url("**/docs/verdicts.html*")
    page.goto((html / "metrics/index.html").as_uri())
    page.get_by_role("link", name="report", exact=True).first.click()
    page.wait_for_url("**/metrics/reports/default/index.html")
    with page.expect_navigation():
        page.locator("a[href$='tables/default/glyphs.html']").first.click()
    assert page.locator("article table").count() >= 3
    assert [address for address in asked if not address.startswith(("file:", "data:"))] == [] and said == []
    context.close()
