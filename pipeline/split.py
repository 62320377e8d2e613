"""Stage: write which images each part of a protocol sees, as CSV manifests: data/packed -> data/splits.

Manifests hold image number, label and name, in the order of the index. Their counts and fingerprints are asserted
against the dataset's file: the classification split of the same images, or an older edition, is refused.
"""

import argparse
import csv
import hashlib
from pathlib import Path
from types import ModuleType

from pipeline import datasets
from pipeline.files import BadInputError, exit_with, whole
from pipeline.packed import Entry, read_index


def fingerprint(entries: list[Entry]) -> str:
    """SHA-256 of the lines "label,name" of `entries`: the same images with the same labels in the same order."""
    return hashlib.sha256("".join(f"{entry.label},{entry.name}\n" for entry in entries).encode()).hexdigest()


def check(dataset: ModuleType, manifests: dict[str, list[Entry]]) -> None:
    """Raise `BadInputError` unless every manifest is what the dataset's `EXPECTED` says."""
    for name, expected in dataset.EXPECTED.items():
        entries = manifests[name]
        found = datasets.Expected(len(entries), len({entry.label for entry in entries}), fingerprint(entries))
        if found != expected:
            raise BadInputError(
                f"{dataset.__file__}: the manifest {name} should hold {expected} but holds {found}: this is another "
                "edition or another split of the dataset"
            )


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.split", description=__doc__)
    parser.add_argument("dataset", help="a file of pipeline/datasets, such as glyphs")
    name = parser.parse_args().dataset
    dataset = datasets.load(name)
    entries = read_index(Path("data/packed") / name)
    manifests = {part: [entries[image] for image in images] for part, images in dataset.split(entries).items()}
    check(dataset, manifests)
    with whole(Path("data/splits") / name) as folder:
        folder.mkdir()
        for part, chosen in manifests.items():
            with (folder / f"{part}.csv").open("w", newline="", encoding="utf-8") as file:
                rows = csv.writer(file, lineterminator="\n")
                rows.writerow(["image", "label", "name"])
                rows.writerows([entry.image, entry.label, entry.name] for entry in chosen)
            print(f"{name} {part}: {len(chosen)} images, {len({entry.label for entry in chosen})} classes")


if __name__ == "__main__":
    exit_with(main)
