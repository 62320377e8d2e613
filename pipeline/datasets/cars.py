"""Cars196: 16,185 photographs of 196 models of cars (Krause et al. 2013, Stanford).

Classes 1-98 are for training and 99-196 for retrieval, whatever folder an image is in: the published cars_train and
cars_test are the classification split. There are three layouts of the archives, each with its own image names: car_ims
(one archive), the official split (two archives and a devkit), and Kaggle's zip of the official folders. Mirrors have
other folders around them, a folder for each class, or Parquet files, as on the hub. All are packed to the same bytes,
because an image is named and ordered within its class by the SHA-256 of its file.
"""

import csv
import hashlib
import io
import itertools
from collections import Counter, defaultdict
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from pipeline import datasets
from pipeline.base.files import BadInputError
from pipeline.data import archives, contents, fetch, mirrors, parquet
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
DEVKIT, META = "car_devkit.tgz", "cars_meta.mat"
LABELS = (DEVKIT, "cars_test_annos_withlabels.mat")
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
MIRRORED = {
    "car_ims": ("cars_annos.mat",),
    "devkit": ("cars_train_annos.mat", "cars_test_annos_withlabels.mat", "cars_meta.mat"),
    "csv": ("anno_train.csv", "anno_test.csv", "names.csv"),
}
"""The lists with which images of another form than the published layouts are read: images called as in car_ims, or as
in the official split, by the devkit's lists or by those of Kaggle's jutrera/stanford-car-dataset-by-classes-folder."""
PARTS = ("cars_train", "cars_test", "train", "test")
CONTENT = (
    "all images as car_ims/000001.jpg with cars_annos.mat, or as cars_train/00001.jpg and cars_test/00001.jpg (or "
    "train/<class>/00001.jpg and test/<class>/00001.jpg) with the devkit's lists and cars_test_annos_withlabels.mat or "
    "with anno_train.csv, anno_test.csv and names.csv, or as Parquet files with the columns image and label"
)
KNOWN = {"2d44a28f071aeaac9c0802fddcde452e", "bab296d5e4b2290d024920bf4dc23d07"}
"""The MD5 of the first and the last image of car_ims. A mirror without them has encoded the images anew."""

EXPECTED = {
    "train": Expected(8054, 98),
    "test": Expected(8131, 98),
    "held_out_train": Expected(None, 49),
    "held_out_test": Expected(None, 49),
}


def download(raw: Path) -> None:
    """Fetch the files of one layout into `raw`: the layout whose images are there already, otherwise the first layout
    that can be fetched. Raises `BadInputError` if none can."""
    begun = _begun(raw)
    failures: dict[str, str] = {}
    if _in_parquet(raw):
        print(f"{raw}: Parquet files, whose labels are checked against {META}")
        if any(archives.ending(member, [META]) for member in mirrors.members(raw)):
            return
        begun = [(DEVKIT,)]
    elif not begun and any(map(_image, members := mirrors.members(raw))):
        print(f"{raw}: another form than the published archives, so `convert` checks that every image is there")
        if _lists(members):
            return
        begun = [LABELS]
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
    raise BadInputError(several + "\n".join([*failures.values(), mirrors.other_forms(raw, CONTENT)]))


def _begun(raw: Path) -> list[tuple[str, ...]]:
    """The published layouts whose images are in `raw`. Without one, `raw` holds a mirror's form, or nothing."""
    return [layout for layout in LAYOUTS if (raw / layout[0]).exists()]


def _in_parquet(raw: Path) -> list[Path]:
    """The Parquet files of `raw`; empty if it holds a published layout."""
    return parquet.files(raw) if raw.is_dir() and not _begun(raw) else []


def form(raw: Path) -> str:
    """Which form of the archives `raw` holds, for the record."""
    begun = _begun(raw)
    return mirrors.form(raw, not begun, begun[0] if begun else ())


def _image(member: str, wanted: Container[str] | None = None) -> str:
    """The name of a mirror's image as in `car_ims/000001.jpg` or `cars_train/00001.jpg`, whatever folders are around
    it; empty if it has none, or none that is wanted."""
    *folders, name = member.split("/")
    for folder in reversed(folders):
        if folder in ("car_ims", *PARTS):
            found = f"{folder if folder.startswith('car') else f'cars_{folder}'}/{name}"
            return found if name.endswith(".jpg") and (wanted is None or found in wanted) else ""
    return ""


def _lists(members: list[str]) -> list[str]:
    """The names of the lists with which a mirror's images are read; empty if they are not all there."""
    combined = any(_image(member).startswith("car_ims/") for member in members)
    for kind, names in MIRRORED.items():
        if (kind == "car_ims") == combined and {archives.ending(member, names) for member in members} >= set(names):
            return [*names]
    return []


def _mirror(raw: Path) -> tuple[list[str], list[tuple[Path, str, dict[str, int]]]]:
    """As `_layout`, of another form than the published layouts. Raises `BadInputError` if lists are missing, or if a
    folder of a class has images of two."""
    members = mirrors.members(raw)
    names = _lists(members)
    if not names:
        raise BadInputError(f"{raw} does not hold Cars196. {mirrors.other_forms(raw, CONTENT)}")
    texts = dict(zip(names, archives.read_texts(raw, names), strict=True))
    labels: dict[str, int] = {}
    if "names.csv" in texts:
        rows = {name: list(csv.reader(io.StringIO(text.decode("utf-8-sig")))) for name, text in texts.items()}
        # A folder cannot have the slash of Ram C/V.
        class_names = [row[0].strip().replace("Ram C-V", "Ram C/V") for row in rows["names.csv"] if row]
        for name, part in (("anno_train.csv", "cars_train"), ("anno_test.csv", "cars_test")):
            known = [row for row in rows[name] if row and row[0].endswith(".jpg")]
            labels |= {f"{part}/{row[0]}": archives.number(row[-1], f"{raw}: {name}") for row in known}
    else:
        variables = {name: _matlab(text, f"{raw}: {name}") for name, text in texts.items()}
        class_names = variables[names[-1]].get("class_names", [])
        field, folders = ("relative_im_path", [""]) if len(names) == 1 else ("fname", ["cars_train/", "cars_test/"])
        for name, folder in zip(names, folders, strict=False):
            labels |= _labels(variables[name], f"{raw}: {name}", field, folder)
    found = defaultdict(set)
    for member in members:
        if (image := _image(member, labels)) and (folder := member.split("/")[-2]) not in (*PARTS, "car_ims"):
            found[folder].add(labels[image])
    if torn := sorted(folder for folder, of in found.items() if len(of) > 1):
        raise BadInputError(f"{raw}: the lists give the images of the folder {torn[0]} to several classes")
    return class_names, [(raw, ", ".join(names), labels)]


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
    if not _begun(raw) and mirrors.members(raw):
        names, annotated = _mirror(raw)
    elif (raw / "car_ims.tgz").exists():
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


def _plain(name: str) -> str:
    """The name of a class as mirrors may write it: without signs, in small letters."""
    return "".join(filter(str.isalnum, name.casefold()))


def _rows(files: list[Path], class_names: list[str]) -> Iterator[tuple[str, int, bytes]]:
    """Place, class counted from 1 and bytes of the images of Parquet files. Raises `BadInputError` for a label that is
    not the name of a class."""
    labels = {_plain(name): number for number, name in enumerate(class_names, 1)}
    for file in files:
        for number, row in enumerate(parquet.read(file), 1):
            label = labels.get(_plain(row.label))
            if label is None:
                raise BadInputError(
                    f"{row.place}: {row.label[:80]!r} is no class of Cars196. The labels must be the names of classes, "
                    "or numbers whose names are in the file's metadata"
                )
            yield f"{file.name}/{number:06}", label, row.encoded


def images(raw: Path) -> Iterator[SourceImage]:
    """The annotated images, packed in the order of their class and the SHA-256 of their bytes."""
    seen: Counter[str] = Counter()
    if files := _in_parquet(raw):
        variables = _matlab(archives.read_texts(raw, [META])[0], f"{raw}: {META}")
        class_names = [str(name) for name in np.atleast_1d(variables.get("class_names", []))]
        found, lacking = _rows(files, class_names), KNOWN
    else:
        class_names, annotated = _layout(raw)
        lacking = KNOWN if annotated[0][0] == raw else set()
        found = itertools.chain.from_iterable(
            archives.read_annotated(archive, labels, source, _image if archive == raw else archives.ending)
            for archive, source, labels in annotated
        )
    for original, label, encoded in found:
        lacking = lacking and lacking - {hashlib.md5(encoded, usedforsecurity=False).hexdigest()}
        digest = hashlib.sha256(encoded).hexdigest()
        name = f"{label:03}/{digest[:16]}"
        seen[name] += 1
        # A class may hold the same file twice.
        name += f"_{seen[name]}.jpg" if seen[name] > 1 else ".jpg"
        order = (label, digest)
        yield SourceImage(name, label - 1, class_names[label - 1], "", encoded, order, original=original)
    if lacking:
        raise BadInputError(
            f"{raw}: no image has the MD5 {min(lacking)}, as one of Cars196 has: this mirror changed them"
        )


def split(entries: list[Entry]) -> dict[str, list[int]]:
    """Zero-shot: the first half of the classes is for training (Song et al. 2016)."""
    return datasets.by_class(entries, TRAINING_CLASSES)
