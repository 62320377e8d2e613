"""Stage: pack a dataset's images, bytes unchanged, into one file with an index: data/raw -> data/packed."""

import argparse
from pathlib import Path

from pipeline.base.files import BadInputError, exit_with, submodule, whole
from pipeline.data.packed import pack, read_index


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.convert", description=__doc__)
    parser.add_argument("dataset", help="a file of pipeline/datasets, such as glyphs")
    name = parser.parse_args().dataset
    target = Path("data/packed") / name
    dataset = submodule("datasets", name)
    with whole(target) as folder:
        count = pack(dataset.images(Path("data/raw") / name), folder)
        labels = {entry.label for entry in read_index(folder)}
        empty = sorted(set(range(max(labels))) - labels)
        if empty:
            raise BadInputError(f"{name}: the classes {', '.join(str(label + 1) for label in empty)} have no image")
    print(f"{name}: {count} images, {(target / 'images.bin').stat().st_size:,} bytes")


if __name__ == "__main__":
    exit_with(main)
