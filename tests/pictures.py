"""The pictures of README, from the report of the embedded default (`make pictures`): its beginning, and a gallery."""

import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

REPORT = Path("metrics/reports/default/index.html")
PARTS = {"report.png": ("h1", 1100, 860), "gallery.png": ("#galleries h5", 1440, 640)}
"""The pictures -> what they begin with, their width and their height."""


def main() -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (begin, width, height) in PARTS.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(REPORT.absolute().as_uri())
            page.evaluate(f"document.querySelector('{begin}').scrollIntoView()")
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(128)
            picture.save(Path("docs") / name, optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
