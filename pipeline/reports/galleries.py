"""Galleries: queries with their nearest images, confused classes, and images with equal bytes under two labels."""

import base64
import io
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.base.files import BadInputError
from pipeline.data.index import Entry
from pipeline.data.packed import PackedImages, shown

SIDE, QUALITY = 72, 70
"""Of thumbnails: the longer side in pixels, and WebP's quality."""


class Thumbnails:
    """The images of a dataset that a page shows, each stored once, by its number in the packed index."""

    def __init__(self, dataset: str):
        self.dataset = dataset
        self.packed = PackedImages(Path("data/packed") / dataset)
        self.addresses: dict[int, str] = {}

    def entry(self, image: int) -> Entry:
        """The index's row of an image, whose thumbnail the page will have."""
        if not 0 <= image < len(self.packed):
            raise BadInputError(f"{self.packed.folder} has no image {image}: run the stage of the runs again")
        if image not in self.addresses:
            picture = Image.fromarray(self.packed.decoded(image, 3))
            picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            content = io.BytesIO()
            picture.save(content, "WEBP", quality=QUALITY, method=6)
            self.addresses[image] = f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
        return self.packed.entries[image]

    def picture(self, image: int) -> "Picture":
        """An image as a page shows it."""
        entry = self.entry(image)
        return Picture(f"{self.dataset}-{image}", shown(entry.name), shown(entry.class_name))


@dataclass(frozen=True)
class Picture:
    """A thumbnail on a page, by its id there. Names are made printable: no mark in them turns the text around them."""

    identity: str
    name: str
    class_name: str
    right: bool | None = None
    """Whether a neighbour has the query's class; None of a query."""
    similarity: float = 1.0


@dataclass(frozen=True)
class Answer:
    """A query and the images that it found, the nearest first."""

    query: Picture
    neighbours: list[Picture]
    said: str


@dataclass(frozen=True)
class Gallery:
    """What one run found: answers by what they show, its confused classes (the two names, an example of each, and how
    many queries), and Recall@1 of the hardest and the easiest classes (name, fraction)."""

    title: str
    answers: dict[str, list[Answer]]
    confused: list[tuple[Picture, Picture, int]]
    hardest: list[tuple[str, float]]
    easiest: list[tuple[str, float]]


def read_queries(path: Path) -> dict[str, np.ndarray]:
    """A queries.npz; one that is missing or of an older version is bad input."""
    again = "evaluate its run again (`dvc repro`)"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = dict(arrays)
    except FileNotFoundError:
        raise BadInputError(f"{path} is missing: `dvc pull` it, or {again}") from None
    except (ValueError, OSError, EOFError) as error:
        raise BadInputError(f"{path} is damaged ({error}): {again}") from None
    lacking = {"query", "nearest", "similarity", "first_hit", "average_precision", "label", "recall", "confused"}
    if lacking := lacking - found.keys():
        raise BadInputError(f"{path} lacks {', '.join(sorted(lacking))}: {again}")
    return found


def _answer(thumbnails: Thumbnails, found: dict[str, np.ndarray], place: int) -> Answer:
    query = thumbnails.picture(int(found["query"][place]))
    label = thumbnails.entry(int(found["query"][place])).label
    neighbours = []
    for image, similarity in zip(found["nearest"][place].tolist(), found["similarity"][place].tolist(), strict=True):
        if image >= 0:
            picture, right = thumbnails.picture(image), thumbnails.entry(image).label == label
            neighbours.append(
                Picture(picture.identity, picture.name, picture.class_name, right=right, similarity=similarity)
            )
    first, precision = int(found["first_hit"][place]), float(found["average_precision"][place])
    hit = "nothing to find" if first < 0 else f"first hit {first + 1:,}"
    return Answer(query, neighbours, hit if np.isnan(precision) else f"{hit}, AP@R {precision:.2f}")


def choose(found: dict[str, np.ndarray], labels: np.ndarray, count: int) -> dict[str, list[int]]:
    """Places of the worst queries (the latest first hit, one a class), the best (the highest average precision and the
    surest neighbour, one a class), and random ones."""
    precision = np.nan_to_num(found["average_precision"], nan=-1)
    answerable = found["first_hit"] >= 0
    worst = np.lexsort((precision, -found["first_hit"]))
    best = np.lexsort((-found["similarity"][:, 0], -precision))
    chosen = {"The worst": worst, "The best": best}
    places = {name: _one_a_class(order[answerable[order]], labels, count) for name, order in chosen.items()}
    draw = np.random.default_rng(0).permutation(len(labels))[:count]
    return places | {"Random": sorted(draw.tolist())}


def _one_a_class(order: np.ndarray, labels: np.ndarray, count: int) -> list[int]:
    firsts: dict[int, int] = {}
    for place in order.tolist():
        firsts.setdefault(int(labels[place]), place)
        if len(firsts) == count:
            break
    return list(firsts.values())


def gallery(thumbnails: Thumbnails, path: Path, title: str, count: int = 6, pairs: int = 12) -> Gallery:
    """The gallery of the run whose queries.npz is at `path`: `count` queries of each kind, `pairs` confused classes."""
    found = read_queries(path)
    entries = thumbnails.packed.entries
    if found["query"].max() >= len(entries):
        raise BadInputError(f"{path} is of other images than {thumbnails.packed.folder}: evaluate its run again")
    labels = np.array([entries[image].label for image in found["query"].tolist()])
    names = {entry.label: shown(entry.class_name) for entry in entries}
    nearest_labels = np.array([entries[image].label for image in found["nearest"][:, 0].tolist()])
    confused = []
    for one, other, times in found["confused"][:pairs].tolist():
        example = int(np.flatnonzero((labels == one) & (nearest_labels == other))[0])
        images = int(found["query"][example]), int(found["nearest"][example, 0])
        confused.append((thumbnails.picture(images[0]), thumbnails.picture(images[1]), times))
    order = np.argsort(found["recall"], kind="stable")
    by_class = [(names[int(found["label"][place])], float(found["recall"][place])) for place in order]
    answers = {
        name: [_answer(thumbnails, found, place) for place in places]
        for name, places in choose(found, labels, count).items()
    }
    return Gallery(title, answers, confused, by_class[:8], by_class[::-1][:8])


def two_labels(thumbnails: Thumbnails, most: int = 12) -> tuple[int, list[list[Picture]]]:
    """Images with equal bytes under two labels or more: how many such groups there are, and the first `most`."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in thumbnails.packed.entries:
        groups[entry.sha256].append(entry)
    several = [group for group in groups.values() if len({entry.label for entry in group}) > 1]
    return len(several), [[thumbnails.picture(entry.image) for entry in group] for group in several[:most]]
