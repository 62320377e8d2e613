"""Checks that a dataset's split is the published one and can be used, and warnings about unusual images."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType

from pipeline import datasets
from pipeline.base.files import BadInputError
from pipeline.data.checksums import CHECKSUMS, pins
from pipeline.data.index import Entry
from pipeline.data.manifests import fingerprint, without_relevant

Manifests = Mapping[str, list[Entry]]

TRAINED = ("train", "held_out_train", "held_out_test")
"""The manifests of the training classes; all others hold the classes that are retrieved."""


def check(name: str, dataset: ModuleType, manifests: Manifests) -> dict[str, str]:
    """Raise `BadInputError` unless the manifests are zero-shot, can be evaluated, and agree with the dataset's
    `EXPECTED` and with data/checksums.

    Returns the fingerprints that are not in data/checksums yet: name to pin -> fingerprint.
    """
    labels = {part: {entry.label for entry in entries} for part, entries in manifests.items()}
    shared = labels["train"] & set().union(*(labels[part] for part in labels.keys() - set(TRAINED)))
    if shared:
        raise BadInputError(
            f"{name}: {len(shared)} classes are both in train and among the classes to be retrieved. This is the "
            "classification split (train_test_split.txt of CUB, cars_train and cars_test of Cars196) or another "
            "mixture. Metric learning retrieves classes that training never saw"
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
    if without_relevant(queries, gallery) == len(queries):
        where = "among the others of test" if gallery is None else "in the gallery"
        raise BadInputError(
            f"{name}: none of the {len(queries)} images of {part} has another image of its class {where}, so that no "
            "metric can be computed: give each class two images or more"
        )


def oddities(manifests: Manifests) -> Iterator[str]:
    """Unusual facts about manifests that affect results: queries that cannot be answered, images that appear twice."""
    part, queries, gallery = searched(manifests)
    if unanswered := without_relevant(queries, gallery):
        yield f"{part}: {unanswered} of {len(queries)} images have no other of their class, so they never have a hit"
    seen = {part: entries for part, entries in manifests.items() if not part.startswith("held_out")}
    for part, entries in seen.items():
        labels = defaultdict(list)
        for entry in entries:
            labels[entry.sha256].append(entry.label)
        torn = sum(len(set(labels[entry.sha256])) > 1 for entry in entries)
        if torn:
            yield f"{part}: {torn} images have the same bytes as an image of another class"
        doubled = sum(labels[entry.sha256].count(entry.label) > 1 for entry in entries)
        if doubled and part == "test":
            yield f"{part}: {doubled} images have the same bytes as another of their class, so the two find each other"
    hashes = {part: {entry.sha256 for entry in entries} for part, entries in seen.items()}
    for part, others in (("train", ("test", "query", "gallery")), ("query", ("gallery",))):
        for other in others:
            both = sum(entry.sha256 in hashes.get(part, ()) for entry in seen.get(other, ()))
            if both:
                yield f"{other}: {both} images have the same bytes as an image of {part}"
