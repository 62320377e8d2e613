"""Take in your own images: a folder with a folder for each class, a CSV file of paths and labels, or Parquet files with
images and labels, as the library `datasets` writes them.

    python -m pipeline.import_images photographs birds
    python -m pipeline.choose birds
    dvc repro papers/dvc.yaml

The first command reads every image, splits the classes into training and retrieval, shows both as links in
data/raw/birds, and writes the grid papers/birds/params.yaml; the others make the first table. Images of Parquet files
are written to data/raw/birds. In a folder a class is every folder that holds files, however deep it lies. Folders
called train, test, val, valid or validation at the top are put together, and so are all Parquet files, because these
parts usually have the same classes, and metric learning retrieves classes that training never saw.
"""

import argparse
import csv
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.base import sampling
from pipeline.base.command import exit_with
from pipeline.base.files import BadInputError, remove, whole, write_text
from pipeline.base.lists import listed
from pipeline.base.names import checked_name
from pipeline.data import decoding, parquet
from pipeline.data.packed import shown
from pipeline.datasets import OWN, folder, module_name
from pipeline.networks.published import FILES
from pipeline.runs.grid import DEFAULT

PARTS = {"train", "test", "val", "valid", "validation"}
"""Names of folders that split a dataset, not classes."""

MEASURED = 500
"""The most training images of which the mean and standard deviation are computed."""

PHOTOGRAPH = 64
"""Images are taken for photographs if most are in colour and their shorter side has more pixels."""

UNPACKED = "unpacked"
"""The folder of images from Parquet files until they are in their classes."""

STARTS = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png"}
"""The first bytes of an image file -> the end of its name."""

LONGEST = 255
"""The most bytes of a file's name."""

Classes = dict[str, list[Path]]


def from_folder(source: Path, raw: Path) -> Classes:
    """Class -> its files, from a folder of class folders. Raises `BadInputError` if it cannot be used."""
    problems: list[str] = []
    ignored: list[Path] = []
    found = dict(folder.classes_below(source, problems, ignored))
    if problems:
        raise BadInputError(f"{source} cannot be used: {len(problems):,}{listed(problems, raw.with_suffix('.txt'))}")
    folder.say_ignored(source, ignored)
    tops = {name.partition("/")[0] for name in found}
    classes: Classes = defaultdict(list)
    for name, files in found.items():
        classes[name.partition("/")[2] if tops <= PARTS and "/" in name else name] += files
    if tops <= PARTS and len(classes) < len(found):
        print(f"{source}: classes of {', '.join(sorted(tops))} are put together", file=sys.stderr)
    return dict(classes)


def from_csv(source: Path, path_column: str, label_column: str) -> Classes:
    """Class -> its files, from a CSV file with a header. Paths are relative to the file's folder. Raises
    `BadInputError` if a column or a label is missing."""
    classes: Classes = defaultdict(list)
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            lacking = [column for column in (path_column, label_column) if column not in (reader.fieldnames or [])]
            if lacking:
                columns = ", ".join(reader.fieldnames or []) or "none"
                raise BadInputError(
                    f"{source} has no column {lacking[0]}, its columns are {columns}: name yours with --path-column "
                    "and --label-column"
                )
            for row in reader:
                path, label = row[path_column] or "", (row[label_column] or "").strip()
                if not path or not label:
                    raise BadInputError(f"{source} line {reader.line_num}: a path or a label is missing")
                classes[quoted(label)].append(source.parent / path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInputError(f"{source} is not a CSV file in UTF-8: {error}") from None
    return dict(classes)


def from_parquet(files: list[Path], to: Path, image: str, label: str) -> tuple[Classes, dict[Path, str]]:
    """Class -> its files, which are written to the folder `to`, from the rows of Parquet files; and where each file
    comes from. They are called by their number, because nothing in the rows is a path. Raises `BadInputError` for what
    cannot be used."""
    classes: Classes = defaultdict(list)
    places: dict[Path, str] = {}
    to.mkdir(parents=True)
    for path in files:
        for row in parquet.read(path, image, label):
            kind = next((kind for start, kind in STARTS.items() if row.encoded.startswith(start)), "")
            file = to / f"{len(places) + 1:07}{kind}"
            file.write_bytes(row.encoded)
            places[file] = row.place
            classes[quoted(row.label)].append(file)
    if len(files) > 1:
        print(f"{len(files)} Parquet files are put together", file=sys.stderr)
    return dict(classes), places


def quoted(label: str) -> str:
    """A label as the name of a folder, which the folder dataset reads as the same label. Raises `BadInputError` for one
    that is too long."""
    safe = label.replace("%", "%25").replace("/", "%2F")
    safe = f"%2E{safe[1:]}" if safe.startswith(".") else safe
    if len(safe.encode(errors="replace")) > LONGEST:
        raise BadInputError(f"the label {shown(label[:80])}… is too long for the name of a folder: shorten it")
    return safe


class Readable:
    """The images that can be decoded, what is wrong with the others, and whether most are photographs. `places` says
    where files come from that are not a person's own."""

    def __init__(self, classes: Classes, places: dict[Path, str]):
        self.classes: Classes = {}
        self.broken: list[str] = []
        photographs = count = 0
        for name, files in sorted(classes.items()):
            usable = []
            for file in files:
                try:
                    if {unicodedata.category(sign) for sign in f"{name}{file}"} & {"Cc", "Cs"}:  # as `pack` does
                        raise ValueError(f"its name, or that of its class {name!r}, holds control characters")
                    encoded, problem = folder.read(file)
                    if problem:
                        raise ValueError(problem)
                    width, height, _, lost = decoding.check(encoded)
                    if lost:
                        raise ValueError(f"pixels are lost ({lost})")
                except ValueError as error:
                    self.broken.append(f"{shown(places.get(file, str(file)))}: {error}")
                    continue
                usable.append(file)
                colours = decoding.decode(encoded, 3)
                count += 1
                photographs += min(width, height) > PHOTOGRAPH and bool((colours != colours[..., :1]).any())
            if usable:
                self.classes[name] = usable
        self.photographs = photographs > count / 2


def split(classes: Classes, share: float, seed: int) -> tuple[list[str], list[str]]:
    """The classes for training and for retrieval, drawn by the seed. A class with one image is for training, because a
    query needs another image of its class. Raises `BadInputError` if either part would be too small."""
    several = sorted(name for name, files in classes.items() if len(files) > 1)
    drawn = np.argsort(sampling.uniform(seed, "import", 0, (len(several),)), kind="stable")
    test = sorted(several[place] for place in drawn[: round(share * len(several))])
    train = sorted(classes.keys() - set(test))
    if len(test) < 2 or len(train) < 2:
        raise BadInputError(
            f"{len(classes)} classes, {len(several)} of them with two images or more, give {len(train)} for training "
            f"and {len(test)} for retrieval: each part needs two"
        )
    return train, test


def link(place: Path, parts: dict[str, list[str]], classes: Classes) -> None:
    """Make `place`/<part>/<class>/<file> for every image, as a link to where it is; a file in `place` is moved."""
    for part, names in parts.items():
        for name in names:
            inside = place / part / name
            inside.mkdir(parents=True)
            taken: set[str] = set()
            for number, file in enumerate(classes[name]):
                own = file.name
                while own in taken or own.startswith("."):  # what begins with a dot is not read
                    own = f"{number}_{own}"
                taken.add(own)
                if file.is_relative_to(place):
                    file.rename(inside / own)
                else:
                    (inside / own).symlink_to(file.resolve())


def pixels(files: Iterable[Path]) -> tuple[float, float]:
    """Mean and standard deviation of the grey pixels of some images, from 0 to 1, with two digits."""
    grey = [decoding.decode(file.read_bytes(), 1).ravel() for file in files]
    values = np.concatenate([of[:: max(1, len(of) // 4096)] for of in grey]) / 255
    return round(float(values.mean()), 2), max(0.05, round(float(values.std()), 2))


def grid(name: str, photographs: bool, files: list[Path]) -> dict[str, Any]:
    """The content of the grid's params.yaml: the recipe of the template for photographs, or that of the embedded
    default, which trains a small network from scratch, for everything else."""
    template = yaml.safe_load(Path("papers/photos/params.yaml" if photographs else "params.yaml").read_text("utf-8"))
    recipe = template["recipes"]["photos" if photographs else "glyphs"]
    losses = template["losses"]
    table: dict[str, Any] = {
        "title": f"{name}: unseen classes",
        "layout": "ranked",
        "datasets": [name],
        "rows": {"loss": [loss for loss in ("proxy_an", "proxy_anchor") if loss in losses] or [*losses][:2]},
        "seeds": [0, 1, 2],
        "raw_pixels": True,
    }
    if photographs:
        table["untrained"] = True
    else:
        recipe.pop("test_fit", None)
        mean, std = pixels(files[:: max(1, len(files) // MEASURED)])
        recipe |= {"mean": [mean], "std": [std], "test_resize": recipe["input_size"]}
        recipe |= {"augment": [{"name": "random_resized_crop", "smallest": 0.8}]}
        recipe["metrics"] = ["recall", "map_at_r", "nmi"]
    losses = {loss: losses[loss] for loss in table["rows"]["loss"]}
    machine = {"device": "cpu", "workers": 0}
    return {"tables": {"losses": table}, "machine": machine, "recipes": {name: recipe}, "losses": losses}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.import_images",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", type=Path, help="a folder of class folders or of Parquet files, a CSV or a Parquet file"
    )
    parser.add_argument("name", help="the name of the dataset and of its grid, such as birds")
    parser.add_argument("--seed", type=int, default=0, help="decides which classes are for retrieval; 0 if not given")
    parser.add_argument("--test-share", type=float, default=0.5, help="the share of the classes for retrieval; 0.5")
    parser.add_argument("--leave-out-broken", action="store_true", help="leave out images that cannot be used")
    parser.add_argument("--path-column", default="path", help="the CSV file's column of paths; path if not given")
    parser.add_argument("--label-column", default="label", help="the column of labels; label if not given")
    parser.add_argument("--image-column", default="image", help="the Parquet column of images; image if not given")
    words = parser.parse_args()
    checked_name("dataset", words.name)
    if module_name(words.name) != OWN:
        raise BadInputError(f"{words.name} is a published dataset: choose another name")
    if words.name in (DEFAULT, "all", "none", *FILES):
        raise BadInputError(f"{words.name} means something else to other commands: choose another name")
    raw, params = Path("data/raw") / words.name, Path("papers") / words.name / "params.yaml"
    for path in (raw, params.parent):
        if path.exists() or path.is_symlink():
            raise BadInputError(f"{path} exists: choose another name, or remove it")
    if not 0 < words.test_share < 1:
        raise BadInputError(f"--test-share is above 0 and below 1, not {words.test_share}")
    if not words.source.is_dir() and not words.source.is_file():
        raise BadInputError(f"{words.source} is neither a folder nor a file")
    with whole(raw) as place:
        places: dict[Path, str] = {}
        if files := parquet.files(words.source):
            classes, places = from_parquet(files, place / UNPACKED, words.image_column, words.label_column)
        elif words.source.is_dir():
            classes = from_folder(words.source, raw)
        else:
            classes = from_csv(words.source, words.path_column, words.label_column)
        found = Readable(classes, places)
        if found.broken:
            named = f"{len(found.broken):,}{listed(found.broken, raw.with_suffix('.broken.txt'))}"
            if not words.leave_out_broken:
                raise BadInputError(f"images that cannot be used, fix them or add --leave-out-broken: {named}")
            print(f"images that are left out: {named}", file=sys.stderr)
        train, test = split(found.classes, words.test_share, words.seed)
        content = grid(words.name, found.photographs, [file for name in train for file in found.classes[name]])
        link(place, {"train": train, "test": test}, found.classes)
        remove(place / UNPACKED)
    head = f"# Written by `python -m pipeline.import_images`; the classes are split by seed {words.seed}.\n"
    write_text(params, head + yaml.safe_dump(content, sort_keys=False, width=120))
    counts = [sum(len(found.classes[name]) for name in part) for part in (train, test)]
    print(
        f"{words.name}: {len(train)} classes with {counts[0]:,} images for training, {len(test)} with {counts[1]:,} "
        f"for retrieval (seed {words.seed}), {'' if places else 'as links '}in {raw}; settings in {params}. Now run\n"
        f"python -m pipeline.choose {words.name}\ndvc repro papers/dvc.yaml"
    )


if __name__ == "__main__":
    exit_with(main)
