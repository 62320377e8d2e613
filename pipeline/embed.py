"""Embed images of your own with the network of a run, and find the nearest ones.

RUN is the folder of a training, such as data/runs/default/glyphs/glyphs/proxy_an/0. IMAGES are files and folders;
folders are read with all that is below them, except for names that begin with a dot. Images are prepared as the run
prepared its test images, so the same image has the same embedding as in the run's evaluation.

--out gets a file for numpy.load: `names`, text (images,), sorted; `embeddings`, float32 (images, dimension) of unit
length, in the same order; and `key`, the key of the run.

With --nearest K every image is followed by its K nearest others, with their similarities (cosine). With --among FILE
they are searched in another collection, a file that this command wrote with the same run; an image that is in both is
not left out there. --page writes the same as a page with pictures.

Images that cannot be read are named, and nothing is written; with --leave-out they are left out.
"""

import argparse
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipeline.base.arrays import write_arrays
from pipeline.base.command import exit_with
from pipeline.base.config import read_params
from pipeline.base.files import BadInputError, check_apart, check_output, whole
from pipeline.data import decoding
from pipeline.data.decoding import BYTE_LIMIT
from pipeline.data.packed import PackedImages, SourceImage, pack, shown
from pipeline.runs.kept import weights_of
from pipeline.runs.record import TrainingRecord

FIELDS = ("names", "embeddings", "key")


def found(paths: list[Path]) -> dict[str, Path]:
    """The files that some files and folders mean, by name, sorted. Raises `BadInputError` for a path that does not
    exist, and if there is no file."""
    files: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise BadInputError(f"{path} does not exist: name files or folders of images")
        below = [path] if path.is_file() else sorted(path.rglob("*"))
        for file in below:
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file.is_file() and not hidden:
                files[file.as_posix()] = file
    if not files:
        raise BadInputError(f"{', '.join(map(str, paths))}: there is no image")
    return dict(sorted(files.items()))


def sources(files: dict[str, Path], upright: bool, leave_out: bool) -> Iterator[SourceImage]:
    """The files as images to pack. With `leave_out`, those that cannot be read are named on stderr and left out."""
    for name, file in files.items():
        encoded, problem = b"", ""
        try:
            if file.stat().st_size > BYTE_LIMIT:
                problem = f"it has more than {BYTE_LIMIT:,} bytes"
            else:
                encoded = file.read_bytes()
                if leave_out:
                    decoding.check(encoded, upright)
        except OSError as error:
            problem = str(error.strerror)
        except ValueError as error:
            problem = str(error)
        if problem and leave_out:
            print(f"left out: {shown(name)}: {problem}", file=sys.stderr)
            continue
        yield SourceImage(name, 0, "images", "test", encoded, problem=problem)


def embeddings_of(record: TrainingRecord, weights: Path, packed: PackedImages, device: str, workers: int) -> np.ndarray:
    """The embeddings of packed images, float32 (images, dimension), made as the run's evaluation makes them."""
    # Here, because they import torch: help and errors come a second sooner.
    from pipeline.networks.network import load_network, outlined, prepare
    from pipeline.training.embedding import embed
    from pipeline.training.loading import test_images
    from pipeline.training.memory import Memory

    recipe = record.recipe
    chosen = prepare(recipe, device)
    numbers = list(range(len(packed)))
    images = test_images(packed, numbers, outlined(recipe).channels, recipe, workers, Memory(chosen))
    made: np.ndarray = embed(load_network(recipe, weights, chosen), images, recipe, chosen).cpu().numpy()
    return made


def read_collection(path: Path, record: TrainingRecord) -> tuple[list[str], np.ndarray]:
    """The names and embeddings of a file that this command wrote with this run. Raises `BadInputError` for
    any other file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names, embeddings, own = (arrays[field] for field in FIELDS)
        if str(own) != record.key:
            raise BadInputError(f"--among: {path} is of the run {own}, not {record.key}: embed it with this one")
        unit = embeddings.shape == (names.size, record.recipe.dimension) and embeddings.dtype == np.float32
        unit = unit and bool(np.isclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-3).all())
        if names.ndim != 1 or names.dtype.kind != "U" or not names.size or not unit:
            raise ValueError("these are no names and embeddings of images")
    except FileNotFoundError:
        raise BadInputError(f"--among: {path} does not exist") from None
    except (ValueError, TypeError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInputError(f"--among: {path} is not a file that this command wrote ({error})") from None
    return names.tolist(), embeddings


def nearest_of(
    embeddings: np.ndarray, count: int, among: np.ndarray | None
) -> tuple[list[list[int]], list[list[float]]]:
    """For each embedding the rows of its nearest others, or of the nearest ones `among` others, and their
    similarities; nearest first."""
    import torch

    from pipeline.metrics.retrieval import nearest

    own = torch.from_numpy(embeddings)
    gallery = None if among is None else torch.from_numpy(among)
    rows, similarities = nearest(own, torch.arange(len(own)), count, gallery=gallery)
    return rows.tolist(), similarities.tolist()


def write_page(
    path: Path, run: Path, pictures: dict[str, Path], answers: list[tuple[str, list[tuple[str, float]]]]
) -> None:
    """Write the answers, name -> nearest names with similarities, as a page with pictures."""
    from pipeline.reports.galleries import Answer, Picture, thumbnail
    from pipeline.reports.pages import write_nearest

    shown_names = sorted({name for query, near in answers for name in (query, *(other for other, _ in near))})
    stored = {}
    for number, name in enumerate(shown_names):
        # An image of --among may be another file by now, or none.
        with suppress(OSError, ValueError):
            if pictures[name].is_file() and pictures[name].stat().st_size <= BYTE_LIMIT:
                stored[f"image-{number}"] = thumbnail(decoding.decode(pictures[name].read_bytes(), 3))
    numbers = {name: f"image-{number}" for number, name in enumerate(shown_names)}

    def picture(name: str, similarity: float = 1.0) -> Picture:
        return Picture(numbers[name], shown(name), shown(Path(name).name), similarity=similarity)

    write_nearest(
        path,
        f"Nearest images by {run}",
        [Answer(picture(query), [picture(*other) for other in near], "") for query, near in answers],
        stored,
    )


def read_words() -> argparse.Namespace:
    """Read the command line. Raises `BadInputError` for impossible combinations."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a training")
    parser.add_argument("images", type=Path, nargs="+", help="files or folders")
    parser.add_argument("--out", type=Path, help="the .npz file for names and embeddings")
    parser.add_argument("--nearest", type=int, metavar="K", help="print the K nearest others of each image")
    parser.add_argument("--among", type=Path, metavar="FILE", help="search in this file's images instead")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the nearest images as a page (.html)")
    parser.add_argument("--weights", help="such as best_test_epoch; held_out or last_epoch if not given")
    parser.add_argument("--upright", action="store_true", help="turn images as their EXIF data says")
    parser.add_argument("--leave-out", action="store_true", help="leave out images that cannot be read")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], help="instead of params.yaml's machine.device")
    parser.add_argument("--workers", type=int, default=0, help="loader processes; the results do not depend on them")
    words = parser.parse_args()
    if words.out is None and words.nearest is None:
        raise BadInputError("give --out for the embeddings, or --nearest to print the nearest images")
    if words.nearest is not None and words.nearest < 1:
        raise BadInputError(f"--nearest is {words.nearest}: give 1 or more")
    if words.nearest is None and (words.among or words.page):
        raise BadInputError("--among and --page need --nearest")
    if not 0 <= words.workers <= 1024:
        raise BadInputError(f"--workers is {words.workers}: give a number from 0 to 1024")
    for name, path, ending in (("--out", words.out, ".npz"), ("--page", words.page, ".html")):
        if path is not None and path.suffix != ending:
            raise BadInputError(f"{name} is {path}: name a file that ends in {ending}")
        if path is not None:
            check_output(name, path, is_file=True)
    check_apart(out=words.out, page=words.page)
    return words


def main() -> None:
    """Command line."""
    words = read_words()
    record, weights = weights_of(words.run, words.weights)
    device = words.device or read_params(Path("params.yaml")).machine.device
    files = found(words.images)
    gallery = read_collection(words.among, record) if words.among else None
    if words.nearest and gallery is None and len(files) < 2:
        raise BadInputError("--nearest: one image has no others: name more images, or search with --among")
    with tempfile.TemporaryDirectory(prefix="embed-") as scratch:
        images, folder = sources(files, words.upright, words.leave_out), Path(scratch, "packed")
        try:
            pack(images, folder, words.upright, broken_list=Path(f"{scratch}.broken.txt"))
            packed = PackedImages(folder)
            names = [entry.name for entry in packed.entries]
            embeddings = embeddings_of(record, weights, packed, device, words.workers)
        except BadInputError as error:  # without the name of a folder that is gone when it is read
            raise BadInputError(str(error).removeprefix(f"{folder}: ")) from None
    if words.out:
        with whole(words.out) as temporary:
            arrays = {"names": np.array(names), "embeddings": embeddings, "key": np.array(record.key)}
            write_arrays(temporary, arrays)
        print(f"{len(names)} images in {embeddings.shape[1]} dimensions: {words.out}", file=sys.stderr)
    if words.nearest:
        others = gallery[0] if gallery else names
        rows, similarities = nearest_of(embeddings, words.nearest, gallery[1] if gallery else None)
        near = [
            [(others[row], value) for row, value in zip(found_rows, values, strict=True)]
            for found_rows, values in zip(rows, similarities, strict=True)
        ]
        answers = list(zip(names, near, strict=True))
        for query, found_names in answers:
            print(shown(query))
            for other, value in found_names:
                print(f"  {value:.4f}  {shown(other)}")
        if words.page:
            write_page(words.page, words.run, files | {name: Path(name) for name in others}, answers)
            print(f"look at {words.page}", file=sys.stderr)


if __name__ == "__main__":
    exit_with(main)
