"""Tests. `pipeline` comes first: it holds the processor's instructions, which has to be done before torch comes."""

from pathlib import Path

import pipeline  # noqa: F401

GRID = Path(__file__).parent / "grid"
"""The folder with the default grid as tests know it, so that people may change params.yaml and the tests stay green."""


def swap(path: Path, old: str, new: str, count: int = -1) -> str:
    """Replace a text in a file, everywhere or at the first `count` places, and give what the file was before. Fails if
    the text is not there, so that no test passes because it changed nothing."""
    text = path.read_text()
    assert old in text, f"{path} has no {old!r}"
    path.write_text(text.replace(old, new, count))
    return text
