"""A folder of your own images: `data/raw/folder/train/<class>/…` and `data/raw/folder/test/<class>/…`.

In place of `test` there may be `query` and `gallery`. A class is the path of its folder under `train` or `test`, so
classes may lie in groups (`train/Greek/alpha/1.png` is of the class `Greek/alpha`); `%2F` in a folder's name is a
slash, as `pipeline.export` writes it. `data/raw/folder` may be a symbolic link; names that begin with a dot are passed
over. No count is published, so none is asserted; a class in both parts is refused.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from pipeline import datasets
from pipeline.base.files import BadInputError
from pipeline.data.packed import Entry, SourceImage
from pipeline.datasets import Expected

EXPECTED: dict[str, Expected] = {}


def _parts(raw: Path) -> tuple[str, ...]:
    """The names of the parts that `raw` has: train and test, or train, query and gallery."""
    for parts in (("train", "test"), ("train", "query", "gallery")):
        if all((raw / part).is_dir() for part in parts):
            return parts
    raise BadInputError(
        f"{raw} should hold your images as {raw}/train/<class>/<image> and {raw}/test/<class>/<image> "
        "(or query and gallery in place of test): put them there, or make it a symbolic link to them"
    )


def download(raw: Path) -> None:
    """See that the folders are there; nothing is fetched."""
    _parts(raw)


def _classes(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """Name and files of each class under `folder`: every folder that has no folders in it is a class."""
    for place, folders, files in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = [Path(place, name) for name in sorted(files) if not name.startswith(".")]
        path = Path(place)
        if path == folder and not folders:
            raise BadInputError(f"{folder} holds no class: give it one folder for each")
        if images and (folders or path == folder):
            raise BadInputError(f"{images[0]} lies beside folders of classes: put it into one of them")
        if not images and not folders:
            raise BadInputError(f"{path} is a class without an image: remove the folder or fill it")
        if images:
            yield unquote(path.relative_to(folder).as_posix()), images


def _unreadable(error: OSError) -> None:
    """Do not pass over a folder that cannot be read, as os.walk would."""
    raise BadInputError(f"{error.filename} cannot be read: {error.strerror}")


def images(raw: Path) -> Iterator[SourceImage]:
    """The files of each part in turn, classes and files by name; classes of train have the first labels."""
    labels: dict[str, int] = {}
    for part in _parts(raw):
        for class_name, files in sorted(_classes(raw / part)):
            label = labels.setdefault(class_name, len(labels))
            for path in files:
                yield SourceImage(path.relative_to(raw).as_posix(), label, class_name, part, path.read_bytes())


def split(entries: list[Entry]) -> dict[str, list[int]]:
    """As the folders say."""
    present = {entry.part for entry in entries}
    return datasets.by_part(entries, tuple(part for part in ("train", "test", "query", "gallery") if part in present))
