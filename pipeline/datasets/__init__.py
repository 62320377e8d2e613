"""One file for each dataset. Each module has

- `download(raw: Path)`: puts the verified original files into the folder `raw`;
- `images(raw: Path) -> Iterator[SourceImage]`: reads the images, always in the same order;
- `split(entries: list[Entry]) -> dict[str, list[int]]`: says which images each manifest holds;
- `EXPECTED`: the numbers of images and classes of each manifest: name -> `Expected`;
- `form(raw: Path) -> str`, if mirrors have other forms: which form `raw` holds (`pipeline/data/mirrors.py`);
- `BY_HAND`, if programs cannot fetch the files: says what a person has to do.

Manifests are `train` and `test`; or `train`, `query` and `gallery` if the published split has separate queries and a
gallery. `held_out_train` and `held_out_test` are the two halves of the training classes.

A dataset of any other name is a folder of the user's own images, data/raw/<name>, which `folder` reads.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from pipeline.base.files import BadInputError
from pipeline.base.names import checked_name
from pipeline.data.index import Entry

OTHERS = ("checks",)
"""The files of this package that are no datasets."""

OWN = "folder"
"""The file that reads the user's own datasets."""


def module_name(dataset: str) -> str:
    """The file of this package that reads a dataset: the dataset's own file, or `folder`. Raises `BadInputError` for a
    name that no dataset can have."""
    checked_name("dataset", dataset)
    if dataset in OTHERS:
        raise BadInputError(
            f"{dataset} cannot be the name of a dataset, because pipeline/datasets/{dataset}.py is none"
        )
    file = Path(__file__).with_name(f"{dataset}.py")
    return dataset if file.is_file() and not dataset.startswith("_") else OWN


def dataset_module(dataset: str) -> ModuleType:
    """The module that reads a dataset."""
    return importlib.import_module(f"pipeline.datasets.{module_name(dataset)}")


class Expected(NamedTuple):
    """The number of images and of classes that a manifest must have; None was never published.

    The fingerprints of manifests are in `data/checksums`, where the first good split pins them.
    """

    images: int | None
    classes: int


def by_class(entries: list[Entry], training_classes: int) -> dict[str, list[int]]:
    """Zero-shot manifests: the first `training_classes` labels are for training, the others for retrieval."""
    return with_held_out(
        {
            "train": [entry.image for entry in entries if entry.label < training_classes],
            "test": [entry.image for entry in entries if entry.label >= training_classes],
        },
        entries,
    )


def by_part(entries: list[Entry], parts: tuple[str, ...]) -> dict[str, list[int]]:
    """Manifests by the published lists: each manifest holds the entries of the part with its name."""
    return with_held_out({part: [entry.image for entry in entries if entry.part == part] for part in parts}, entries)


def with_held_out(manifests: dict[str, list[int]], entries: list[Entry]) -> dict[str, list[int]]:
    """Add `held_out_train` and `held_out_test`: the first half of the training classes (rounded down) and the rest."""
    labels = sorted({entries[image].label for image in manifests["train"]})
    first = set(labels[: len(labels) // 2])
    held_out: dict[str, list[int]] = {"held_out_train": [], "held_out_test": []}
    for image in manifests["train"]:
        held_out["held_out_train" if entries[image].label in first else "held_out_test"].append(image)
    return manifests | held_out
