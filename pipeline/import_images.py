"""Take in your own images: a folder with a folder for each class, or a CSV file of paths and labels.

    python -m pipeline.import_images photographs birds
    python -m pipeline.choose birds
    dvc repro papers/dvc.yaml

The first command reads every image, splits the classes into training and retrieval, shows both as links in
data/raw/birds, and writes the grid papers/birds/params.yaml; the others make the first table. A class is every folder
that holds files, however deep it lies. Folders called train, test, val, valid or validation at the top are put
together, because they usually have the same classes, and metric learning retrieves classes that training never saw.
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
from pipeline.base.files import BadInputError, whole, write_text
from pipeline.base.lists import listed
from pipeline.base.names import checked_name
from pipeline.data import decoding
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


def quoted(label: str) -> str:
    """A label as the name of a folder, which the folder dataset reads as the same label."""
    safe = label.replace("%", "%25").replace("/", "%2F")
    return f"%2E{safe[1:]}" if safe.startswith(".") else safe


class Readable:
    """The images that can be decoded, what is wrong with the others, and whether most are photographs."""

    def __init__(self, classes: Classes):
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
                    self.broken.append(f"{shown(str(file))}: {error}")
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


def link(raw: Path, parts: dict[str, list[str]], classes: Classes) -> None:
    """Make `raw`/<part>/<class>/<file> for every image, as links to where it is."""
    with whole(raw) as place:
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
    parser.add_argument("source", type=Path, help="a folder of class folders, or a CSV file")
    parser.add_argument("name", help="the name of the dataset and of its grid, such as birds")
    parser.add_argument("--seed", type=int, default=0, help="decides which classes are for retrieval; 0 if not given")
    parser.add_argument("--test-share", type=float, default=0.5, help="the share of the classes for retrieval; 0.5")
    parser.add_argument("--leave-out-broken", action="store_true", help="leave out images that cannot be used")
    parser.add_argument("--path-column", default="path", help="the CSV file's column of paths; path if not given")
    parser.add_argument("--label-column", default="label", help="the CSV file's column of labels; label if not given")
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
    if words.source.is_dir():
        classes = from_folder(words.source, raw)
    elif words.source.is_file():
        classes = from_csv(words.source, words.path_column, words.label_column)
    else:
        raise BadInputError(f"{words.source} is neither a folder nor a CSV file")
    found = Readable(classes)
    if found.broken:
        named = f"{len(found.broken):,}{listed(found.broken, raw.with_suffix('.broken.txt'))}"
        if not words.leave_out_broken:
            raise BadInputError(f"images that cannot be used, fix them or add --leave-out-broken: {named}")
        print(f"images that are left out: {named}", file=sys.stderr)
    train, test = split(found.classes, words.test_share, words.seed)
    link(raw, {"train": train, "test": test}, found.classes)
    content = grid(words.name, found.photographs, [file for name in train for file in found.classes[name]])
    head = f"# Written by `python -m pipeline.import_images`; the classes are split by seed {words.seed}.\n"
    write_text(params, head + yaml.safe_dump(content, sort_keys=False, width=120))
    counts = [sum(len(found.classes[name]) for name in part) for part in (train, test)]
    print(
        f"{words.name}: {len(train)} classes with {counts[0]:,} images for training, {len(test)} with {counts[1]:,} "
        f"for retrieval (seed {words.seed}), as links in {raw}; settings in {params}. Now run\n"
        f"python -m pipeline.choose {words.name}\ndvc repro papers/dvc.yaml"
    )


if __name__ == "__main__":
    exit_with(main)
