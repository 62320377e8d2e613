"""What the project says of itself: one version, and whose work it builds on, as the installed packages say it."""

import datetime
import importlib.metadata
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from tests.conftest import ROOT

NOTICED = re.findall(
    r"^(\S+)\n  https://(\S+)\n  (BSD|Apache|MIT).*?, (Copyright .*)\n", (ROOT / "NOTICE").read_text(), re.M
)


def test_one_version():
    """Of pyproject.toml, of the citation, and the newest in the list of changes, whose dates are days."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    releases = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    parts = [re.fullmatch(r"(\d+\.\d+\.\d+) \((20\d\d-\d\d-\d\d)\)", line).groups() for line in releases]
    numbers, dates = zip(*parts, strict=True)
    assert numbers[0] == version
    assert [*numbers] == sorted(numbers, key=lambda number: [*map(int, number.split("."))], reverse=True)
    assert [*dates] == sorted(map(str, map(datetime.date.fromisoformat, dates)), reverse=True)


def test_make_and_the_package_list_what_there_is():
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    assert re.findall(r"^make (\S+) +\S", listed, re.M) == phony
    commands = {path.stem for path in (ROOT / "pipeline").glob("[a-z]*.py")}
    listed = subprocess.run([sys.executable, "-m", "pipeline"], cwd=ROOT, capture_output=True, check=True, text=True)
    assert {*re.findall(r"^(\w+) +[A-Z]", listed.stdout, re.M)} == commands
    # A command without a --help of its own would begin its work.
    assert all("add_argument" in (ROOT / f"pipeline/{name}.py").read_text() for name in commands)


def test_pythons_are_those_that_make_takes():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert re.findall(r"\((3, \d+)\)", (ROOT / "Makefile").read_text()) == ["3, 11", "3, 12"]
    assert wanted == ">=3.11,<3.13"


def test_the_notice_has_the_packages_that_networks_losses_and_fonts_come_from():
    assert [name for name, *_ in NOTICED] == ["torchvision", "timm", "pytorch-metric-learning", "pyfiglet"]


@pytest.mark.parametrize(("name", "address", "licence", "holder"), NOTICED)
def test_the_notice_says_what_the_package_says(name, address, licence, holder):
    package = importlib.metadata.distribution(name)
    about = package.metadata
    assert address in " ".join([about.get("Home-page") or "", *(about.get_all("Project-URL") or [])])
    assert licence in " ".join([about.get("License") or "", *(about.get_all("Classifier") or [])])
    text = next(file for file in package.files if file.name == "LICENSE").read_text(encoding="utf-8")
    start = re.match(r"Copyright (?:\(c\) |© )?(?:[\d-]+ )?[A-Z]?\w*", holder)[0]
    assert start in " ".join(text.split())
