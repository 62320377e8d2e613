"""Write a trained network, or a packed dataset, in a form that other programs read.

If WHAT is the folder of a run, such as data/runs/default/glyphs/glyphs/proxy_an/0, the folder --to gets its network:
`model.safetensors`, `config.json` (network, preprocessing, key, metrics), `model.pt2` (torch.export) and `model.onnx`,
whose outputs are checked against the network to 1e-5, and a model card with code that needs nothing of this project.
`huggingface_hub.upload_folder` takes the folder as it is. A network that an exporter refuses is named.

If WHAT is a dataset, it is written as folders of classes, which many training programs expect: data/export/<dataset>.
The files are `train/<class>/<image>` and `test/<class>/<image>` (or `query` and `gallery`), with unchanged bytes.
Characters that a folder or file name cannot have are written as in web addresses: `Ram C/V` becomes `Ram C%2FV`. The
dataset `folder` can read such folders.
"""

import argparse
import errno
import sys
from pathlib import Path

from tqdm import tqdm

from pipeline.base.command import exit_with
from pipeline.base.files import BadInputError, check_output, whole
from pipeline.base.names import checked_name
from pipeline.data.manifests import read_manifest
from pipeline.data.packed import PackedImages
from pipeline.runs.kept import weights_of
from pipeline.runs.record import RECORD

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


def export_network(words: argparse.Namespace) -> None:
    """Write the network of a run's folder to --to. Raises `BadInputError` if it cannot be."""
    from pipeline.work.exported import check_licence, write  # here, because it imports torch

    if words.to is None:
        raise BadInputError("--to: name the folder for the network")
    check_output("--to", words.to)
    licence = check_licence(words.licence)
    record, weights = weights_of(Path(words.what), words.weights)
    with whole(words.to) as folder:
        refused = write(folder, record, weights, licence)
    for line in refused:
        print(line, file=sys.stderr)
    print(f"look at {words.to / 'README.md'}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", help="the folder of a run; or a dataset that was converted and split, such as glyphs")
    parser.add_argument(
        "--to", type=Path, help="the folder to write, which must not exist; data/export/DATASET for a dataset"
    )
    parser.add_argument("--weights", help="of a run, such as best_test_epoch; held_out or last_epoch if not given")
    parser.add_argument("--licence", default="unknown", help="of a network: a name of the hub's list, such as mit")
    words = parser.parse_args()
    try:
        is_run = (Path(words.what) / RECORD).is_file()
    except OSError:  # the name is too long
        is_run = False
    if is_run:
        export_network(words)
        return
    if "/" in words.what:
        raise BadInputError(f"{Path(words.what) / RECORD} is missing: name the folder of a run, or a dataset")
    name = checked_name("dataset", words.what)
    target = words.to or Path("data/export") / name
    check_output("--to", target)
    splits = Path("data/splits") / name
    present = [part for part in PARTS if (splits / f"{part}.csv").exists()]
    manifests = {part: [row.image for row in read_manifest(splits / f"{part}.csv")] for part in present}
    if not manifests:
        raise BadInputError(f"{splits} holds no manifest: run `python -m pipeline.split {name}` first")
    with whole(target) as folder:
        count = export(PackedImages(Path("data/packed") / name), manifests, folder)
    print(f"{name}: {count} images in {target}")


if __name__ == "__main__":
    exit_with(main)
