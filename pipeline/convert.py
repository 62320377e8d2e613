"""Stage: pack a dataset's images, with unchanged bytes, into one file with an index: data/raw -> data/packed.

Every image is decoded once, in the same way as in training. All images that cannot be used are named. If there are
many, the complete list is in data/packed/<dataset>.broken.txt.
"""

import argparse
import sys
from pathlib import Path

from pipeline.base.files import BadInputError, exit_with, whole, write_text
from pipeline.data.index import FILE as INDEX
from pipeline.data.index import read_index
from pipeline.data.packed import SHOWN, BrokenImagesError, Packed, pack
from pipeline.datasets import OWN, dataset_module, module_name


def convert(name: str, upright: bool) -> Packed:
    """Pack the dataset `name` into data/packed. Raises `BadInputError` if images or classes cannot be used."""
    dataset = dataset_module(name)
    if upright and module_name(name) != OWN:
        raise BadInputError(f"--upright is for folders of your own: {name} is read as its published results read it")
    broken = Path("data/packed") / f"{name}.broken.txt"
    broken.unlink(missing_ok=True)
    try:
        with whole(Path("data/packed") / name, INDEX) as folder:
            packed = pack(dataset.images(Path("data/raw") / name), folder, upright)
            labels = {entry.label for entry in read_index(folder)}
            empty = sorted(set(range(max(labels))) - labels)
            if empty:
                raise BadInputError(f"{name}: the classes {', '.join(str(label + 1) for label in empty)} have no image")
    except BrokenImagesError as error:
        if len(error.problems) > SHOWN:
            write_text(broken, "".join(f"{problem}\n" for problem in error.problems))
            raise BadInputError(f"{error}\n{broken} names them all") from None
        raise
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
    arguments = parser.parse_args()
    name = arguments.dataset
    packed = convert(name, arguments.upright)
    size = (Path("data/packed") / name / "images.bin").stat().st_size
    print(f"{name}: {packed.images} images, {size:,} bytes")
    if packed.turned:
        done = "are turned upright" if arguments.upright else "are read as they are stored, as ImageFolder reads them"
        hint = "; --upright turns them" if module_name(name) == OWN and not arguments.upright else ""
        print(f"{name}: {packed.turned} images say in EXIF that they are turned; they {done}{hint}", file=sys.stderr)


if __name__ == "__main__":
    exit_with(main)
