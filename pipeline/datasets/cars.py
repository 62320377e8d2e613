"""Cars196: 16,185 photographs of 196 models of cars (Krause et al. 2013, Stanford).

Classes 1-98 are for training and 99-196 for retrieval, whatever folder an image is in: the published cars_train and
cars_test are the classification split. There are three layouts of the archives, each with its own image names: car_ims
(one archive), the official split (two archives and a devkit), and Kaggle's zip of the official folders. All three are
packed to the same bytes, because an image is named and ordered within its class by the SHA-256 of its file.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from pipeline import datasets
from pipeline.base.files import BadInputError
from pipeline.data import archives, contents, fetch
from pipeline.data.file import File
from pipeline.data.index import Entry
from pipeline.data.packed import SourceImage
from pipeline.datasets import Expected

KAGGLE = "https://www.kaggle.com/datasets/jessicali9530/stanford-cars-dataset"
FILES = (
    File(
        "car_ims.tgz",
        (
            "http://ai.stanford.edu/~jkrause/car196/car_ims.tgz",
            "http://imagenet.stanford.edu/internal/car196/car_ims.tgz",
        ),
        "somebody who has it (its own addresses are dead)",
        md5="d5c8f0aa497503f355e17dc7886c3f14",
        check=contents.archive_with("car_ims/"),
    ),
    File(
        "cars_annos.mat",
        (
            "http://ai.stanford.edu/~jkrause/car196/cars_annos.mat",
            "http://imagenet.stanford.edu/internal/car196/cars_annos.mat",
        ),
        KAGGLE,
        md5="b407c6086d669747186bd1d764ff9dbc",
        check=lambda path: _labels(_matlab(path.read_bytes(), str(path)), str(path), "relative_im_path", ""),
    ),
    File(
        "cars_train.tgz",
        ("http://ai.stanford.edu/~jkrause/car196/cars_train.tgz",),
        "somebody who has it (its own address is dead)",
        979_269_282,
        "512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
        check=contents.archive_with("cars_train/"),
    ),
    File(
        "cars_test.tgz",
        ("http://ai.stanford.edu/~jkrause/car196/cars_test.tgz",),
        "somebody who has it (its own address is dead)",
        977_350_468,
        "bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
        check=contents.archive_with("cars_test/"),
    ),
    File(
        "stanford-cars-dataset.zip",
        (),
        f"{KAGGLE} (it is called archive.zip there)",
        check=contents.archive_with("cars_train/cars_train/", "cars_test/cars_test/"),
    ),
    File(
        "car_devkit.tgz",
        ("https://github.com/pytorch/vision/files/11644847/car_devkit.tgz",),
        "https://github.com/pytorch/vision/files/11644847/car_devkit.tgz",
        330_960,
        "b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
        check=contents.archive_with("devkit/cars_train_annos.mat", "devkit/cars_meta.mat"),
    ),
    File(
        "cars_test_annos_withlabels.mat",
        ("http://ai.stanford.edu/~jkrause/car196/cars_test_annos_withlabels.mat",),
        "Kaggle (search there for its name)",
        185_758,
        "790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
        check=lambda path: _labels(_matlab(path.read_bytes(), str(path)), str(path), "fname", ""),
    ),
)
LABELS = ("car_devkit.tgz", "cars_test_annos_withlabels.mat")
LAYOUTS = (
    ("car_ims.tgz", "cars_annos.mat"),
    ("cars_train.tgz", "cars_test.tgz", *LABELS),
    ("stanford-cars-dataset.zip", *LABELS),
)
BY_HAND = (
    "put car_ims.tgz and cars_annos.mat, or another of the sets in docs/datasets.md, into data/raw/cars. Get them from "
    "somebody who has them, because their addresses are dead"
)
TRAINING_CLASSES = 98

EXPECTED = {
    "train": Expected(8054, 98),
    "test": Expected(8131, 98),
    "held_out_train": Expected(None, 49),
    "held_out_test": Expected(None, 49),
}


def download(raw: Path) -> None:
    """Fetch the files of one layout into `raw`: the layout whose images are there already, otherwise the first layout
    that can be fetched. Raises `BadInputError` if none can."""
    begun = [layout for layout in LAYOUTS if (raw / layout[0]).exists()]
    failures: dict[str, str] = {}
    for layout in begun[:1] or LAYOUTS:
        for file in FILES:
            if file.name in layout and file.name not in failures:
                try:
                    fetch.fetch(file, raw)
                except BadInputError as error:
                    failures[file.name] = str(error)
        if not failures.keys() & set(layout):
            return
    sets = "".join(f"\n- {', '.join(layout)}" for layout in begun[:1] or LAYOUTS)
    several = "" if begun else f"Cars196 comes in three sets of files. One of them must be complete:{sets}\n"
    raise BadInputError(several + "\n".join(failures.values()))


def _matlab(content: bytes, source: str) -> dict[str, Any]:
    """The variables of a .mat file. Raises `BadInputError` if it is none."""
    try:
        variables: dict[str, Any] = scipy.io.loadmat(io.BytesIO(content), squeeze_me=True)
    # Damaged files lead to many kinds of errors in the reader.
    except Exception as error:
        raise BadInputError(f"{source} is not a MATLAB file ({error}): {archives.FIX}") from None
    return variables


def _labels(variables: dict[str, Any], source: str, field: str, folder: str) -> dict[str, int]:
    """The class, counted from 1, of each image that the variable `annotations` names: `folder` + value of `field` ->
    class. Raises `BadInputError` if these annotations are missing or name an image twice."""
    try:
        rows = np.atleast_1d(variables["annotations"])
        names = [folder + str(name) for name in rows[field]]
        labels = dict(zip(names, (int(label) for label in rows["class"]), strict=True))
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise BadInputError(f"{source} has no annotations with {field} and class ({error}): {archives.FIX}") from None
    if len(labels) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        raise BadInputError(f"{source} names {', '.join(twice)} twice")
    return labels


def _content(path: Path) -> bytes:
    """The bytes of a file of `raw`. Raises `BadInputError` if it is missing."""
    if not path.is_file():
        raise BadInputError(f"{path} is missing: run the download stage")
    return path.read_bytes()


def _layout(raw: Path) -> tuple[list[str], list[tuple[Path, str, dict[str, int]]]]:
    """The names of the classes, and for each archive of images: its path, the source of its annotations, and the
    classes of its images."""
    if (raw / "car_ims.tgz").exists():
        annotations = str(raw / "cars_annos.mat")
        variables = _matlab(_content(raw / "cars_annos.mat"), annotations)
        annotated = [(raw / "car_ims.tgz", annotations, _labels(variables, annotations, "relative_im_path", ""))]
        names = variables.get("class_names", [])
    else:
        devkit, test = (raw / name for name in LABELS)
        train_content, meta = archives.read_texts(devkit, ["devkit/cars_train_annos.mat", "devkit/cars_meta.mat"])
        names = _matlab(meta, f"{devkit}: cars_meta.mat").get("class_names", [])
        together = (raw / "stanford-cars-dataset.zip").exists()
        annotated = []
        for part, file, content in (("train", devkit, train_content), ("test", test, _content(test))):
            archive = raw / ("stanford-cars-dataset.zip" if together else f"cars_{part}.tgz")
            folder = f"cars_{part}/cars_{part}/" if together else f"cars_{part}/"
            annotations = f"{file}: cars_train_annos.mat" if part == "train" else str(file)
            annotated.append(
                (archive, annotations, _labels(_matlab(content, annotations), annotations, "fname", folder))
            )
    class_names = [str(name) for name in np.atleast_1d(names)]
    for _, source, labels in annotated:
        beyond = sorted(set(labels.values()) - set(range(1, len(class_names) + 1)))
        if beyond:
            raise BadInputError(f"{source} has the classes {beyond}, but there are names for {len(class_names)} only")
    return class_names, annotated


def images(raw: Path) -> Iterator[SourceImage]:
    """The annotated images, packed in the order of their class and the SHA-256 of their bytes."""
    class_names, annotated = _layout(raw)
    seen: Counter[str] = Counter()
    for archive, source, labels in annotated:
        for original, label, encoded in archives.read_annotated(archive, labels, source):
            digest = hashlib.sha256(encoded).hexdigest()
            name = f"{label:03}/{digest[:16]}"
            seen[name] += 1
            # A class may hold the same file twice.
            name += f"_{seen[name]}.jpg" if seen[name] > 1 else ".jpg"
            order = (label, digest)
            yield SourceImage(name, label - 1, class_names[label - 1], "", encoded, order, original=original)


def split(entries: list[Entry]) -> dict[str, list[int]]:
    """Zero-shot: the first half of the classes is for training (Song et al. 2016)."""
    return datasets.by_class(entries, TRAINING_CLASSES)
