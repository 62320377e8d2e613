"""Stage: write which images each part of a protocol sees, as CSV manifests: data/packed -> data/splits.

Manifests hold image number, label and name, in the order of the index. Their counts and fingerprints are asserted
against the dataset's file: the classification split of the same images, or an older edition, is refused. A fingerprint
that nobody published is pinned in data/checksums by the first good split.
"""

import argparse
import hashlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from pipeline import datasets
from pipeline.base.files import BadInputError, exit_with, submodule, whole
from pipeline.data.checksums import CHECKSUMS, pin, pins
from pipeline.data.manifests import Row, write_manifest
from pipeline.data.packed import Entry, read_index


def fingerprint(entries: list[Entry]) -> str:
    """SHA-256 of the lines "label,name" of `entries`: the same images with the same labels in the same order."""
    return hashlib.sha256("".join(f"{entry.label},{entry.name}\n" for entry in entries).encode()).hexdigest()


def check(name: str, dataset: ModuleType, manifests: dict[str, list[Entry]]) -> dict[str, str]:
    """Raise `BadInputError` unless every manifest is zero-shot and what the dataset's `EXPECTED` says.

    Returns the fingerprints that are known neither there nor in data/checksums, by the name to pin them under.
    """
    labels = {part: {entry.label for entry in entries} for part, entries in manifests.items()}
    seen = set().union(*(labels[part] for part in labels.keys() - {"train", "held_out_train", "held_out_test"}))
    shared = labels["train"] & seen
    if shared:
        raise BadInputError(
            f"{name}: {len(shared)} classes are both in train and among those to be retrieved. This is the "
            "classification split (train_test_split.txt of CUB, cars_train and cars_test of Cars196) or another "
            "mixture; metric learning retrieves classes that training never saw"
        )
    pinned, new = pins(), {}
    for part, expected in dataset.EXPECTED.items():
        entries, key = manifests[part], f"splits/{name}/{part}"
        found = datasets.Expected(len(entries), len(labels[part]), fingerprint(entries))
        expected = expected._replace(sha256=expected.sha256 or pinned.get(key))
        known = {field: value for field, value in expected._asdict().items() if value is not None}
        wrong = {field: value for field, value in found._asdict().items() if value != known.get(field, value)}
        if wrong:
            where = CHECKSUMS if key in pinned and wrong.keys() == {"sha256"} else dataset.__file__
            raise BadInputError(
                f"{where}: the manifest {part} of {name} should have {_told(known, wrong)}, "
                f"but has {_told(wrong, wrong)}: this is another edition or another split of the dataset"
            )
        if expected.sha256 is None:
            new[key] = fingerprint(entries)
    return new


def _told(values: dict[str, int | str], fields: Iterable[str]) -> str:
    """The named ones of an `Expected`'s values, in words."""
    words = {"images": "{:,} images", "classes": "{:,} classes", "sha256": "the fingerprint {}"}
    return ", ".join(words[field].format(values[field]) for field in words if field in fields)


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.split", description=__doc__)
    parser.add_argument("dataset", help="a file of pipeline/datasets, such as glyphs")
    name = parser.parse_args().dataset
    dataset = submodule("datasets", name)
    entries = read_index(Path("data/packed") / name)
    manifests = {part: [entries[image] for image in images] for part, images in dataset.split(entries).items()}
    new = check(name, dataset, manifests)
    with whole(Path("data/splits") / name) as folder:
        folder.mkdir()
        for part, chosen in manifests.items():
            rows = [Row(entry.image, entry.label, entry.name) for entry in chosen]
            write_manifest(folder / f"{part}.csv", rows)
            print(f"{name} {part}: {len(chosen)} images, {len({entry.label for entry in chosen})} classes")
    pin(new)


if __name__ == "__main__":
    exit_with(main)
