"""In-Shop Clothes Retrieval: 52,712 photographs of 7,982 garments (Liu et al. 2016, DeepFashion, CUHK).

The published list is the split: each query is searched for in the gallery, not among the other queries. A class is an
item, and labels follow the number in the item's id. Training items and retrieved items share one numbering.
"""

from collections.abc import Iterator
from pathlib import Path

from pipeline import datasets
from pipeline.base.files import BadInputError
from pipeline.data import archives, contents, mirrors
from pipeline.data.file import File
from pipeline.data.index import Entry
from pipeline.data.packed import SourceImage
from pipeline.datasets import Expected

PAGE = "http://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html"
FILES = (
    File(
        "img.zip",
        (),
        f"https://drive.google.com/file/d/0B7EVK8r0v71pS2YxRE1QTFZzekU (the folder Img of {PAGE}; not img_highres.zip)",
        check=contents.archive_with("img/"),
    ),
    File(
        "list_eval_partition.txt",
        (),
        f"https://drive.google.com/file/d/0B7EVK8r0v71pYVBqLXpRVjhHeWM (the folder Eval of {PAGE})",
        check=lambda path: _listed(path),
    ),
)
BY_HAND = (
    f"get img.zip and list_eval_partition.txt from {PAGE} and put them into data/raw/inshop by hand, as "
    "docs/datasets.md says"
)
PARTS = ("train", "query", "gallery")
LISTS = (FILES[1].name,)

EXPECTED = {
    "train": Expected(25882, 3997),
    "query": Expected(14218, 3985),
    "gallery": Expected(12612, 3985),
    "held_out_train": Expected(None, 1998),
    "held_out_test": Expected(None, 1999),
}


def download(raw: Path) -> None:
    """Check the two files that a person has put into `raw`, because nobody publishes them for programs."""
    mirrors.download(raw, FILES, LISTS)


def form(raw: Path) -> str:
    """Which form of the archive `raw` holds, for the record."""
    return mirrors.form(raw, mirrors.place(raw, FILES, LISTS) == raw, [file.name for file in FILES])


def _listed(source: Path, content: bytes | None = None) -> list[list[str]]:
    """Name, item and status of each image that the list names. Raises `BadInputError` if the list is missing, or if the
    number of images is not the one in the list's first line."""
    if content is None and not source.is_file():
        raise BadInputError(f"{source} is missing: run the download stage")
    content = source.read_bytes() if content is None else content
    count = archives.number(content.decode(errors="replace").split("\n", 1)[0].strip(), f"{source} line 1")
    rows = list(archives.rows(content, str(source), 3, skip=2))
    if len(rows) != count:
        raise BadInputError(f"{source} announces {count} images but lists {len(rows)}: {archives.FIX}")
    return rows


def images(raw: Path) -> Iterator[SourceImage]:
    """The images of the list, packed in the list's order."""
    archive, source = mirrors.place(raw, FILES, LISTS), raw / LISTS[0]
    rows = _listed(source, archives.read_texts(raw, [*LISTS])[0] if archive == raw else None)
    items = sorted(
        {item for _, item, _ in rows}, key=lambda item: archives.number(item.removeprefix("id_"), str(source))
    )
    label_of = {item: label for label, item in enumerate(items)}
    annotated: dict[str, tuple[int, str, str]] = {}
    for place, (name, item, part) in enumerate(rows):
        if name in annotated:
            raise BadInputError(f"{source} names {name} twice")
        if part not in PARTS:
            raise BadInputError(f"{source}: the status of {name} is {part!r}, not one of {', '.join(PARTS)}")
        annotated[name] = place, item, part
    for name, (place, item, part), encoded in archives.read_annotated(archive, annotated, str(source)):
        yield SourceImage(name, label_of[item], item, part, encoded, (place,))


def split(entries: list[Entry]) -> dict[str, list[int]]:
    """The manifests that the list defines. No rule is published for the held-out training items; ours is the second
    half."""
    return datasets.by_part(entries, PARTS)
