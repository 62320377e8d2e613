"""Stage: write CSV manifests of the images that each part of a protocol uses: data/packed -> data/splits.

Manifests hold image number, label and name, in the order of the index. Their counts are compared with the dataset's
file, and their fingerprints with data/checksums, where the first good split pins them. The classification split of the
same images, an older edition, and a split on which nothing can be trained or retrieved are refused. A warning names
images that appear twice, if this makes a result better or worse. Images from a mirror pin nothing.
"""

import argparse
import sys
from pathlib import Path

from pipeline import datasets
from pipeline.base.command import exit_with
from pipeline.base.files import whole
from pipeline.base.lists import listed
from pipeline.data.checksums import foreign, pin
from pipeline.data.index import FILE as INDEX
from pipeline.data.index import read_index
from pipeline.data.manifests import Row, write_manifests
from pipeline.data.mirrors import OTHER
from pipeline.data.packed import FORM
from pipeline.datasets.checks import check, oddities


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.split", description=__doc__)
    parser.add_argument("dataset", help="a file of pipeline/datasets, such as glyphs, or a folder of data/raw")
    name = parser.parse_args().dataset
    dataset = datasets.dataset_module(name)
    packed = Path("data/packed") / name
    entries = read_index(packed)
    manifests = {part: [entries[image] for image in images] for part, images in dataset.split(entries).items()}
    new = check(name, dataset, manifests)
    form = (packed / FORM).read_text(encoding="utf-8") if (packed / FORM).is_file() else ""
    if new and form.startswith(OTHER):
        print(f"warning: {name}: {form}so these are not pinned: {', '.join(new)}", file=sys.stderr)
        new = {}
    for number, (warning, lines) in enumerate(oddities(manifests), 1):
        named = listed(lines, Path("data/splits") / f"{name}.warning_{number}.txt")
        print(f"warning: {name} {warning}:{named}", file=sys.stderr)
    with whole(Path("data/splits") / name, foreign) as folder:
        rows = {
            part: [Row(entry.image, entry.label, entry.name) for entry in chosen] for part, chosen in manifests.items()
        }
        write_manifests(folder, rows, [packed / INDEX])
    for part, chosen in manifests.items():
        print(f"{name} {part}: {len(chosen)} images, {len({entry.label for entry in chosen})} classes")
    pin(new)


if __name__ == "__main__":
    exit_with(main)
