"""One file a dataset. Each module gives

- `download(raw: Path)`: put the verified original files into the folder `raw`;
- `images(raw: Path) -> Iterator[SourceImage]`: read them, always in the same order;
- `split(entries: list[Entry]) -> dict[str, list[int]]`: which images each manifest holds;
- `EXPECTED`: what each manifest must count: name -> `Expected`;
- `BY_HAND`, where programs cannot fetch the files: what a person has to do.

Manifests are `train` and `test`, or `train`, `query` and `gallery` where the published split says who is searched for
among whom; `held_out_train` and `held_out_test` are the two halves of the training classes.

A dataset of another name is a folder of one's own images, data/raw/<name>, which `folder` reads.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from pipeline.base.files import BadInputError
from pipeline.base.names import name_problem
from pipeline.data.index import Entry

OWN = "folder"
"""The file that reads datasets of one's own."""


def module_name(dataset: str) -> str:
    """The file of this package that reads a dataset: its own, or that of folders of images."""
    if problem := name_problem(dataset):
        raise BadInputError(f"{dataset!r} cannot be the name of a dataset: {problem}")
    file = Path(__file__).with_name(f"{dataset}.py")
    return dataset if file.is_file() and not dataset.startswith("_") else OWN


def dataset_module(dataset: str) -> ModuleType:
    """The module that reads a dataset."""
    return importlib.import_module(f"pipeline.datasets.{module_name(dataset)}")


class Expected(NamedTuple):
    """What a manifest must hold: number of images and of classes; None was never published.

    The fingerprints of manifests are in `data/checksums`, where the first good split pins them.
    """

    images: int | None
    classes: int


def by_class(entries: list[Entry], training_classes: int) -> dict[str, list[int]]:
    """Zero-shot manifests: the first `training_classes` labels train, the others are for retrieval."""
    return with_held_out(
        {
            "train": [entry.image for entry in entries if entry.label < training_classes],
            "test": [entry.image for entry in entries if entry.label >= training_classes],
        },
        entries,
    )


def by_part(entries: list[Entry], parts: tuple[str, ...]) -> dict[str, list[int]]:
    """Manifests as the published lists say: each holds the entries of the part that bears its name."""
    return with_held_out({part: [entry.image for entry in entries if entry.part == part] for part in parts}, entries)


def with_held_out(manifests: dict[str, list[int]], entries: list[Entry]) -> dict[str, list[int]]:
    """Add `held_out_train` and `held_out_test`: the first half of the training classes (rounded down) and the rest."""
    labels = sorted({entries[image].label for image in manifests["train"]})
    first = set(labels[: len(labels) // 2])
    held_out: dict[str, list[int]] = {"held_out_train": [], "held_out_test": []}
    for image in manifests["train"]:
        held_out["held_out_train" if entries[image].label in first else "held_out_test"].append(image)
    return manifests | held_out
