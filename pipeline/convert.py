"""Stage: pack a dataset's images, with unchanged bytes, into one file with an index: data/raw -> data/packed.

Every image is decoded once, in the same way as in training. All images that cannot be used are named, also JPEG files
that are read but have lost pixels. If there are many, the complete list is in data/packed/<dataset>.broken.txt. Fix
or replace them, or leave them out with --leave-out-broken.
"""

import argparse
import itertools
import sys
from pathlib import Path

from pipeline.base.command import exit_with
from pipeline.base.files import BadInputError, whole
from pipeline.base.lists import SHOWN, listed
from pipeline.data.checksums import foreign
from pipeline.data.index import read_index
from pipeline.data.packed import LIST, Damage, Packed, pack
from pipeline.datasets import OWN, dataset_module, module_name


def convert(name: str, upright: bool, leave_out: bool = False) -> Packed:
    """Pack the dataset `name` into data/packed. Raises `BadInputError` if images or classes cannot be used. Damaged
    images of a published dataset are packed, because its published results used them."""
    dataset, own = dataset_module(name), module_name(name) == OWN
    for option, given in (("--upright", upright), ("--leave-out-broken", leave_out)):
        if given and not own:
            raise BadInputError(f"{option} is for folders of your own: {name} is read as its published results read it")
    broken = Path("data/packed") / f"{name}{LIST}"
    broken.unlink(missing_ok=True)
    damage: Damage = "keep" if not own else "leave out" if leave_out else "refuse"
    with whole(Path("data/packed") / name, foreign) as folder:
        raw = Path("data/raw") / name
        form = dataset.form(raw) if hasattr(dataset, "form") else ""
        packed = pack(dataset.images(raw), folder, upright, damage, broken, form)
        labels = {entry.label for entry in read_index(folder)}
        # A list may give a class the number 10**9, so the numbers up to the largest are not listed.
        if empty := max(labels) + 1 - len(labels):
            lacking = (str(label + 1) for label in itertools.count() if label not in labels)
            named = ", ".join(itertools.islice(lacking, min(empty, SHOWN)))
            more = f" and {empty - SHOWN:,} more" if empty > SHOWN else ""
            raise BadInputError(f"{name}: the classes {named}{more} have no image")
    return packed


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="a file of pipeline/datasets, such as glyphs, or a folder of data/raw")
    parser.add_argument(
        "--upright", action="store_true", help="turn images as their EXIF data says; only for your own datasets"
    )
    parser.add_argument(
        "--leave-out-broken",
        action="store_true",
        help="leave out images that cannot be read or have lost pixels; only for your own datasets",
    )
    arguments = parser.parse_args()
    name = arguments.dataset
    packed = convert(name, arguments.upright, arguments.leave_out_broken)
    size = (Path("data/packed") / name / "images.bin").stat().st_size
    print(f"{name}: {packed.images} images, {size:,} bytes")
    for lines, said in (
        (packed.damaged, "images have lost pixels, and are used as they are"),
        (packed.left_out, "images are broken and left out"),
    ):
        if lines:
            named = listed(lines, Path("data/packed") / f"{name}{LIST}")
            print(f"warning: {name}: {len(lines):,} {said}{named}", file=sys.stderr)
    if packed.turned:
        done = "are turned upright" if arguments.upright else "are read as they are stored, as ImageFolder reads them"
        hint = "; --upright turns them" if module_name(name) == OWN and not arguments.upright else ""
        print(f"{name}: {packed.turned} images say in EXIF that they are turned; they {done}{hint}", file=sys.stderr)


if __name__ == "__main__":
    exit_with(main)
