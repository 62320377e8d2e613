"""A copy of the package, whose text a test changes, and the keys that runs then have."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.runs import code, reach

CACHED = (
    reach.file_of,
    reach._module,
    reach.locate,
    reach._definition,
    reach.reach,
    reach.code,
    reach._imported_modules,
)


class Package:
    """The package's text in another folder, from which keys are computed. The code that runs is not changed."""

    def __init__(self, folder: Path):
        self.folder = folder / "pipeline"
        shutil.copytree(code.PACKAGE, self.folder, ignore=shutil.ignore_patterns("__pycache__"))
        self.patch = pytest.MonkeyPatch()
        for module in (code, reach):
            self.patch.setattr(module, "PACKAGE", self.folder)
        self.changed()

    def changed(self) -> None:
        """Call this after a change of the text."""
        for function in CACHED:
            function.cache_clear()

    def close(self) -> None:
        """Compute keys from the package itself again."""
        self.patch.undo()
        self.changed()

    @contextmanager
    def edited(self, name: str, old: str, new: str) -> Iterator[None]:
        """Replace the only place of a text in a file while the block runs; an empty text is the end of the file."""
        path = self.folder / name
        text = path.read_text() if path.is_file() else None
        assert not old or (text or "").count(old) == 1, f"{name} has {(text or '').count(old)} times: {old}"
        path.write_text(text.replace(old, new) if text and old else (text or "") + new)
        self.changed()
        try:
            yield
        finally:
            path.write_text(text) if text is not None else path.unlink()
            self.changed()
