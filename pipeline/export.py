"""Write a packed dataset as folders of classes, which many training programs expect: data/export/<dataset>.

The files are `train/<class>/<image>` and `test/<class>/<image>` (or `query` and `gallery`), with unchanged bytes.
Characters that a folder or file name cannot have are written as in web addresses: `Ram C/V` becomes `Ram C%2FV`. The
dataset `folder` can read such folders.
"""

import argparse
import errno
from pathlib import Path

from tqdm import tqdm

from pipeline.base.files import BadInputError, exit_with, whole
from pipeline.data.manifests import read_manifest
from pipeline.data.packed import PackedImages

PARTS = ("train", "test", "query", "gallery")


def quoted(name: str) -> str:
    """`name` as the name of one folder or file: `unquote` gives it back."""
    name = name.replace("%", "%25").replace("/", "%2F")
    return "%2E" + name[1:] if name.startswith(".") else name


def export(packed: PackedImages, manifests: dict[str, list[int]], target: Path) -> int:
    """Write the images of each manifest to `target`/<manifest>/<class>/ and return their number.

    A file keeps the last part of its name. If two files of a class share this part, the second has its whole name,
    quoted. Raises `BadInputError` for names that the file system does not accept.
    """
    count = 0
    for part, images in manifests.items():
        for image in tqdm(images, unit=" images", desc=part, disable=None):
            entry = packed.entries[image]
            folder = target / part / quoted(entry.class_name)
            path = folder / quoted(entry.name.rsplit("/", 1)[-1])
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if path.exists():
                    path = folder / quoted(entry.name)
                with path.open("xb") as file:
                    file.write(packed.encoded(image))
            except OSError as error:
                # Names that another file system accepts: long names, or names that differ only by case.
                if error.errno not in (errno.ENAMETOOLONG, errno.EEXIST, errno.EINVAL):
                    raise
                raise BadInputError(
                    f"{path}: {error.strerror}: export to a file system that accepts such names"
                ) from None
            count += 1
    return count


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.export", description=__doc__)
    parser.add_argument("dataset", help="a dataset that was converted and split, such as glyphs")
    parser.add_argument(
        "--to", type=Path, help="the folder to write, which must not exist; data/export/DATASET if not given"
    )
    arguments = parser.parse_args()
    target = arguments.to or Path("data/export") / arguments.dataset
    if target.exists():
        raise BadInputError(f"{target} exists: remove it, or name another folder with --to")
    splits = Path("data/splits") / arguments.dataset
    present = [part for part in PARTS if (splits / f"{part}.csv").exists()]
    manifests = {part: [row.image for row in read_manifest(splits / f"{part}.csv")] for part in present}
    if not manifests:
        raise BadInputError(f"{splits} holds no manifest: run `python -m pipeline.split {arguments.dataset}` first")
    with whole(target) as folder:
        count = export(PackedImages(Path("data/packed") / arguments.dataset), manifests, folder)
    print(f"{arguments.dataset}: {count} images in {target}")


if __name__ == "__main__":
    exit_with(main)
