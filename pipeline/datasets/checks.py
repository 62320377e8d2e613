"""Checks that a dataset's split is the published one and can be used, and warnings about unusual images."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from pipeline import datasets
from pipeline.base.files import BadInputError
from pipeline.base.lists import listed
from pipeline.data.checksums import CHECKSUMS, pins
from pipeline.data.index import Entry
from pipeline.data.manifests import fingerprint, without_relevant
from pipeline.data.mirrors import bytes_of

Manifests = Mapping[str, list[Entry]]

TRAINED = ("train", "held_out_train", "held_out_test")
"""The manifests of the training classes; all others hold the classes that are retrieved."""


def check(name: str, dataset: ModuleType, manifests: Manifests) -> dict[str, str]:
    """Raise `BadInputError` unless the manifests are zero-shot, can be evaluated, and agree with the dataset's
    `EXPECTED` and with data/checksums, which also has a fingerprint of the images' bytes if there are mirrors.

    Returns the fingerprints that are not in data/checksums yet: name to pin -> fingerprint.
    """
    labels = {part: {entry.label for entry in entries} for part, entries in manifests.items()}
    shared = labels["train"] & set().union(*(labels[part] for part in labels.keys() - set(TRAINED)))
    if shared:
        names = sorted({entry.class_name for entry in manifests["train"] if entry.label in shared})
        fix = (
            "This is the classification split (train_test_split.txt of CUB, cars_train and cars_test of Cars196) or "
            "another mixture"
            if dataset.EXPECTED
            else "Put all images of a class into train, or all of them into the other parts"
        )
        raise BadInputError(
            f"{name}: {len(shared)} classes are both in train and among the classes to be retrieved:"
            f"{listed(names, Path('data/splits', f'{name}.classes.txt'))}\n"
            f"Metric learning retrieves classes that training never saw. {fix}"
        )
    pinned, new = pins(), {}
    for part, expected in dataset.EXPECTED.items():
        entries, key = manifests[part], f"splits/{name}/{part}"
        found = datasets.Expected(len(entries), len(labels[part]))
        known = {field: value for field, value in expected._asdict().items() if value is not None}
        wrong = {field: value for field, value in found._asdict().items() if value != known.get(field, value)}
        other = "this is another edition or another split of the dataset"
        if wrong:
            raise BadInputError(
                f"{dataset.__file__}: the manifest {part} of {name} should have {_words(known, wrong)}, "
                f"but has {_words(wrong, wrong)}: {other}"
            )
        if pinned.get(key, fingerprint(entries)) != fingerprint(entries):
            raise BadInputError(
                f"{CHECKSUMS}: the manifest {part} of {name} should have the fingerprint {pinned[key]}, "
                f"but has {fingerprint(entries)}: {other}"
            )
        if key not in pinned:
            new[key] = fingerprint(entries)
    if hasattr(dataset, "form"):
        key, digest = f"images/{name}", bytes_of([entry for of in manifests.values() for entry in of])
        if pinned.get(key, digest) != digest:
            raise BadInputError(
                f"{CHECKSUMS}: the images of {name} should have the fingerprint {pinned[key]}, but have {digest}: some "
                "have other bytes, as if a mirror had encoded them anew"
            )
        if key not in pinned:
            new[key] = digest
    _check_use(name, manifests)
    return new


def _words(values: dict[str, int], fields: Iterable[str]) -> str:
    """Those values of an `Expected` that `fields` names, as text."""
    words = {"images": "{:,} images", "classes": "{:,} classes"}
    return ", ".join(words[field].format(values[field]) for field in words if field in fields)


def searched(manifests: Manifests) -> tuple[str, list[Entry], list[Entry] | None]:
    """The queries and the gallery: the name of the manifest of queries, its entries, and the entries of the gallery.
    The gallery is None if each query is searched for among all other queries."""
    if "query" in manifests:
        return "query", manifests["query"], manifests["gallery"]
    return "test", manifests["test"], None


def _check_use(name: str, manifests: Manifests) -> None:
    """Raise `BadInputError` if there are fewer than two training classes, or if no query can be answered."""
    classes = len({entry.label for entry in manifests["train"]})
    if classes < 2:
        raise BadInputError(f"{name}: train has {classes} class: training needs two classes or more")
    part, queries, gallery = searched(manifests)
    if len(without_relevant(queries, gallery)) == len(queries):
        where = "among the others of test" if gallery is None else "in the gallery"
        raise BadInputError(
            f"{name}: none of the {len(queries)} images of {part} has another image of its class {where}, so that no "
            "metric can be computed: give each class two images or more"
        )


def oddities(manifests: Manifests) -> Iterator[tuple[str, list[str]]]:
    """Unusual facts about manifests that affect results: queries that cannot be answered, images that appear twice.
    Each is a sentence, and a line for each thing that it counts."""
    part, queries, gallery = searched(manifests)
    if alone := without_relevant(queries, gallery):
        lines = [f"{entry.name} (class {entry.class_name})" for entry in alone]
        yield (
            f"{part}: {len(alone)} of {len(queries)} images have no other of their class, so they never have a hit",
            lines,
        )
    seen = {part: entries for part, entries in manifests.items() if not part.startswith("held_out")}
    for part, entries in seen.items():
        groups = _same_bytes(entries)
        torn = [group for group in groups if len({entry.label for entry in group}) > 1]
        if torn:
            yield f"{part}: {_count(torn)} have the same bytes as an image of another class", _lines(torn)
        doubled = [group for group in groups if len({entry.label for entry in group}) < len(group)]
        if doubled and part == "test":
            said = "have the same bytes as another of their class, so the two find each other"
            labels = [[entry.label for entry in group] for group in doubled]
            count = sum(group.count(label) > 1 for group in labels for label in group)
            yield f"{part}: {count} images {said}", _lines(doubled)
    for part, others in (("train", ("test", "query", "gallery")), ("query", ("gallery",))):
        first: dict[str, Entry] = {}
        for entry in seen.get(part, ()):
            first.setdefault(entry.sha256, entry)
        for other in others:
            both = [(first[entry.sha256], entry) for entry in seen.get(other, ()) if entry.sha256 in first]
            if both:
                yield f"{other}: {len(both)} images have the same bytes as an image of {part}", _lines(both)


def _same_bytes(entries: list[Entry]) -> list[list[Entry]]:
    """The groups of two or more images with the same bytes."""
    groups = defaultdict(list)
    for entry in entries:
        groups[entry.sha256].append(entry)
    return [group for group in groups.values() if len(group) > 1]


def _count(groups: list[list[Entry]]) -> str:
    """The number of images in some groups, as text."""
    return f"{sum(map(len, groups))} images"


def _lines(groups: Iterable[Sequence[Entry]]) -> list[str]:
    """A line for each group of images with the same bytes."""
    return [" = ".join(f"{entry.name} (class {entry.class_name})" for entry in group) for group in groups]
