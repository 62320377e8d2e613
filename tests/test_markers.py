"""What tests need is said in one place, and skips them with a reason; in CI it skips none but those for a GPU."""

import re
import tomllib

import pytest

from tests import markers
from tests.conftest import ROOT


class Needing:
    """A test that needs something, as pytest shows it."""

    def __init__(self, need: str):
        self.need, self.reasons = need, []

    def get_closest_marker(self, name: str) -> bool:
        return name == self.need

    def add_marker(self, marker: pytest.MarkDecorator) -> None:
        self.reasons.append(marker.kwargs["reason"])


@pytest.mark.parametrize(("ci", "skipped"), [(None, ["chromium", "gpu"]), ("1", ["gpu"])])
def test_what_is_missing_skips(monkeypatch, ci, skipped):
    monkeypatch.delenv("CI", raising=False)
    if ci:
        monkeypatch.setenv("CI", ci)
    lacks = {"chromium": "no browser", "gpu": "no GPU", "root": ""}
    monkeypatch.setattr(markers, "LACKS", {name: lambda reason=reason: reason for name, reason in lacks.items()})
    tests = [Needing(name) for name in [*lacks, "nothing"]]
    markers.skip_what_cannot_run(tests)
    assert {test.need: test.reasons for test in tests if test.reasons} == {name: [lacks[name]] for name in skipped}


def test_every_need_is_a_marker_with_a_use():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    assert [line.split(":")[0] for line in known] == list(markers.LACKS)
    texts = {path.name: path.read_text() for path in (ROOT / "tests").glob("*.py")}
    used = {name for text in texts.values() for name in re.findall(r"pytest\.mark\.(\w+)", text)}
    assert markers.LACKS.keys() <= used
    scattered = re.compile(r"pytest\.(skip|importorskip)\(|mark\.skip(if)?\(")
    assert {name for name, text in texts.items() if scattered.search(text)} == {"markers.py"}
