"""One file a dataset. Each module gives

- `download(raw: Path)`: put the verified original files into the folder `raw`;
- `images(raw: Path) -> Iterator[SourceImage]`: read them, always in the same order;
- `split(entries: list[Entry]) -> dict[str, list[int]]`: which images each manifest holds;
- `EXPECTED`: what each manifest must count: name -> `Expected`.
"""

import importlib
import pkgutil
from types import ModuleType
from typing import NamedTuple

from pipeline.files import BadInputError


class Expected(NamedTuple):
    """What a manifest must hold: number of images, number of classes, and `split.fingerprint` of its rows."""

    images: int
    classes: int
    sha256: str


def load(name: str) -> ModuleType:
    """The module of the dataset `name`; an unknown name is bad input."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in names:
        raise BadInputError(f"there is no dataset {name!r}: choose one of {', '.join(names)}")
    return importlib.import_module(f"{__name__}.{name}")
