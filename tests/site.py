"""The site (`make site`): README, the pages of docs/, the committed tables and the grids' reports, in one folder.

`python -m tests.site FOLDER` writes FOLDER/html, which works from the file system and on any server, and asks for
nothing outside. All files keep their places, so that links between them hold. Zensical makes the pages; FOLDER is
replaced.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.base.command import exit_with
from pipeline.base.files import BadInputError
from pipeline.reports.pages import SEAL, sealed, write_overview, write_report

CONFIG = "zensical.toml"
"""Also the mark of a folder that this command made."""


def lay_out(folder: Path, grids: list[str]) -> None:
    """Copy what the site is made of from the current folder into folder/pages; README is its first page."""
    pages = folder / "pages"
    for part in ("docs", "metrics/tables", "metrics/runs"):
        shutil.copytree(part, pages / part)
    for page in Path().glob("*.md"):
        shutil.copy(page, pages)
    for page in pages.rglob("*.md"):
        text = re.sub(r"^```(\w+) (\S+)$", r'```\1 title="\2"', page.read_text(encoding="utf-8"), flags=re.M)
        page.write_text(text, encoding="utf-8")
    lines = ["# Tables and reports", "A report is a page of its own, without this site's search.", ""]
    for grid in grids:
        tables = sorted(path.stem for path in Path("metrics/tables", grid).glob("*.md"))
        links = ", ".join(f"[{name}](tables/{grid}/{name}.md)" for name in tables)
        lines += [f"- {grid}: {links}; [report](reports/{grid}/index.html)"]
    (pages / "metrics/index.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for report in (Path("metrics/reports", name, "index.html") for name in ["", *grids]):
        (pages / report).parent.mkdir(parents=True, exist_ok=True)
        text = report.read_text(encoding="utf-8")
        text = re.sub(r'(href="\.\./\.\./tables/[^"]+)\.md"', r'\1.html"', SEAL.sub("", text))  # a table is a page here
        (pages / report).write_text(sealed(text), encoding="utf-8")


class Page(HTMLParser):
    """Of a page of HTML: `links`, the addresses that it has, and `names`, what an address in it may end with."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by HTMLParser."""
        for name, value in attrs:
            if name in ("href", "src") and value and (tag, value) != ("link", "data:,"):
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.names.add(value)


def broken_links(html: Path) -> Iterator[str]:
    """Each link within the pages of a folder to a file or a heading that is not there, as "page: link"."""
    pages = {path: Page(path) for path in sorted(html.rglob("*.html"))}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            missing = not target.is_file() or (
                parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].names
            )
            if missing:
                yield f"{path.relative_to(html)}: {link}"


def build(folder: Path, grids: list[str]) -> Path:
    """Build the site in a folder, which is replaced if it is such a site; gives the folder of its pages.

    Raises BadInputError if the folder is something else, CalledProcessError if Zensical refuses a page.
    """
    if folder.is_symlink() or (folder.exists() and not (folder / CONFIG).is_file()):
        raise BadInputError(f"{folder}: is there, and is no site made by this command; name another folder")
    shutil.rmtree(folder, ignore_errors=True)
    for grid in grids:
        write_report(grid)
    write_overview(grids)
    lay_out(folder, grids)
    shutil.copy(Path("docs/site", CONFIG), folder)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(folder / CONFIG)]
    subprocess.run(command, check=True)
    for path in (folder / "html").rglob("*.html"):
        if "reports" not in path.parts:
            # Tables of our pages may have no headings. A wide table scrolls, which a keyboard must reach.
            text = path.read_text(encoding="utf-8").replace("<th></th>", "<td></td>")
            text = re.sub(r"(<table>.*?</table>)", r'<div class="wide" tabindex="0">\1</div>', text, flags=re.S)
            path.write_text(text, encoding="utf-8")
    if broken := [*broken_links(folder / "html")]:
        raise BadInputError("\n  ".join(["broken links of the site:", *broken]))
    return folder / "html"


def main() -> None:
    """Command line."""
    if len(sys.argv) != 2:
        raise BadInputError("give one folder: python -m tests.site FOLDER")
    html = build(Path(sys.argv[1]), sorted(path.name for path in Path("metrics/tables").iterdir()))
    print(f"look at {html / 'index.html'}")


if __name__ == "__main__":
    exit_with(main)
