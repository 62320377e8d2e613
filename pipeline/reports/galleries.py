"""Galleries: queries with their nearest images, confused classes, and images with equal bytes but different labels."""

import base64
import io
import zipfile
import zlib
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.base.files import BadInputError
from pipeline.data.index import Entry
from pipeline.data.packed import PackedImages, shown

SIDE, QUALITY = 72, 70
"""The longer side of thumbnails in pixels, and the quality for WebP."""


def thumbnail(pixels: np.ndarray) -> str:
    """The thumbnail of an image, uint8 (height, width, 3), as a data address."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=QUALITY, method=6)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


class Thumbnails:
    """Thumbnails of the images of a dataset that a page shows. Each is stored once, by its number in the packed
    index."""

    def __init__(self, dataset: str):
        self.dataset = dataset
        self.packed = PackedImages(Path("data/packed") / dataset)
        self.addresses: dict[int, str] = {}

    def entry(self, image: int) -> Entry:
        """The index's row of an image. Its thumbnail is added. Raises `BadInputError` if there is no such image."""
        if not 0 <= image < len(self.packed):
            raise BadInputError(f"{self.packed.folder} has no image {image}: run the stage of the runs again")
        if image not in self.addresses:
            self.addresses[image] = thumbnail(self.packed.decoded(image, 3))
        return self.packed.entries[image]

    def picture(self, image: int) -> "Picture":
        """The picture of an image for a page. Its thumbnail is added."""
        entry = self.entry(image)
        return Picture(f"{self.dataset}-{image}", shown(entry.name), shown(entry.class_name))


@dataclass(frozen=True)
class Picture:
    """A thumbnail on a page, by its id on the page. Names are made printable, so that no sign in them reverses the
    direction of text."""

    identity: str
    name: str
    class_name: str
    right: bool | None = None
    """Whether a neighbour has the query's class; None for a query, and where there are no classes."""
    similarity: float = 1.0


@dataclass(frozen=True)
class Answer:
    """A query and the images that it found, nearest first."""

    query: Picture
    neighbours: list[Picture]
    said: str
    others: list[Picture] = field(default_factory=list)
    """The nearest images of other groups, if they were kept."""
    said_of_others: str = ""


@dataclass(frozen=True)
class Gallery:
    """The gallery of one run: answers by kind ("The worst" and so on); confused classes, as pictures of an example
    query and of its nearest image, and the number of such queries; and Recall@1 of the hardest and the easiest classes,
    as name and fraction."""

    title: str
    answers: dict[str, list[Answer]]
    confused: list[tuple[Picture, Picture, int]]
    hardest: list[tuple[str, float]]
    easiest: list[tuple[str, float]]


def read_queries(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a queries.npz, by name. Raises `BadInputError` if it is missing, damaged or of an older version."""
    again = "evaluate its run again (`dvc repro`)"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = dict(arrays)
    except FileNotFoundError:
        raise BadInputError(f"{path} is missing: `dvc pull` it, or {again}") from None
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInputError(f"{path} is damaged ({error}): {again}") from None
    lacking = {"query", "nearest", "similarity", "first_hit", "average_precision", "label", "recall", "confused"}
    if lacking := lacking - found.keys():
        raise BadInputError(f"{path} lacks {', '.join(sorted(lacking))}: {again}")
    return found


def _answer(thumbnails: Thumbnails, found: dict[str, np.ndarray], place: int) -> Answer:
    query = thumbnails.picture(int(found["query"][place]))
    label = thumbnails.entry(int(found["query"][place])).label

    def neighbours(where: str) -> list[Picture]:
        images, similarities = (found[f"{name}{where}"][place].tolist() for name in ("nearest", "similarity"))
        return [
            replace(thumbnails.picture(image), right=thumbnails.entry(image).label == label, similarity=near)
            for image, near in zip(images, similarities, strict=True)
            if image >= 0
        ]

    hit, precision = _hit(found["first_hit"][place]), float(found["average_precision"][place])
    said = hit if np.isnan(precision) else f"{hit}, AP@R {precision:.2f}"
    if "nearest_in_others" not in found:
        return Answer(query, neighbours(""), said)
    return Answer(query, neighbours(""), said, neighbours("_in_others"), _hit(found["first_hit_in_others"][place]))


def _hit(first: int) -> str:
    """The rank of the first hit, as text; `first` is the number of irrelevant images before it, or -1."""
    return "nothing to find" if first < 0 else f"first hit {first + 1:,}"


def choose(found: dict[str, np.ndarray], labels: np.ndarray, count: int) -> dict[str, list[int]]:
    """The places of `count` queries of each kind: the worst (latest first hit, one for each class), the best (highest
    average precision, then highest similarity, one for each class), and random ones."""
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
    """The gallery of the run whose queries.npz is at `path`: `count` queries of each kind, and `pairs` pairs of
    confused classes. Raises `BadInputError` if the file does not fit the dataset."""
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
    """Groups of images with equal bytes but different labels: the number of groups, and the first `most` of them."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in thumbnails.packed.entries:
        groups[entry.sha256].append(entry)
    several = [group for group in groups.values() if len({entry.label for entry in group}) > 1]
    return len(several), [[thumbnails.picture(entry.image) for entry in group] for group in several[:most]]
