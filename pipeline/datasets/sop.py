"""Stanford Online Products: 120,053 photographs of 22,634 things for sale on eBay (Song et al. 2016, Stanford).

The lists in the archive are the split: classes 1-11318 are for training, 11319-22634 for retrieval.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from pipeline import datasets
from pipeline.base.files import BadInputError
from pipeline.data import archives, contents, mirrors
from pipeline.data.file import File
from pipeline.data.index import Entry
from pipeline.data.packed import SourceImage
from pipeline.datasets import Expected

FILES = (
    File(
        "Stanford_Online_Products.zip",
        (
            "http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
            "https://drive.usercontent.google.com/download?id=1TclrpQOF_ullUP99wk_gjGN8pKvtErG8&confirm=t",
        ),
        "https://drive.google.com/file/d/1TclrpQOF_ullUP99wk_gjGN8pKvtErG8",
        3_083_860_082,
        "b04fa78210e69fab050ce73939550e1cd0f96890bdd98ec9fee732c3b756ef48",
        "7f73d41a2f44250d4779881525aea32e",
        contents.archive_with(
            *(f"Stanford_Online_Products/{name}" for name in ("Ebay_train.txt", "Ebay_test.txt", ""))
        ),
    ),
)
KNOWN = {"bicycle_final/111265328556_0.JPG": "77420a4db9dd9284378d7287a0729edb"}
"""The MD5 of an image. A mirror with other bytes has encoded the images anew."""
LISTS = {"train": "Ebay_train.txt", "test": "Ebay_test.txt"}

EXPECTED = {
    "train": Expected(59551, 11318),
    "test": Expected(60502, 11316),
    "held_out_train": Expected(None, 5659),
    "held_out_test": Expected(None, 5659),
}


def download(raw: Path) -> None:
    """Fetch the archive into `raw`, unless another form of it is there."""
    mirrors.download(raw, FILES, LISTS.values())


def form(raw: Path) -> str:
    """Which form of the archive `raw` holds, for the record."""
    return mirrors.form(raw, mirrors.place(raw, FILES, LISTS.values()) == raw, [FILES[0].name])


def images(raw: Path) -> Iterator[SourceImage]:
    """The images of both lists, packed in the order of their ids."""
    archive = mirrors.place(raw, FILES, LISTS.values())
    folder = "" if archive == raw else "Stanford_Online_Products/"
    lists = archives.read_texts(archive, [f"{folder}{name}" for name in LISTS.values()])
    annotated: dict[str, tuple[int, int, str]] = {}
    ids: set[int] = set()
    for part, content in zip(LISTS, lists, strict=True):
        source = f"{archive}: {LISTS[part]}"
        for image_id, class_id, _, name in archives.rows(content, source, 4, skip=1):
            path = f"{folder}{name}"
            if path in annotated:
                raise BadInputError(f"{source} names {name} twice")
            image = archives.number(image_id, source)
            if image in ids:
                raise BadInputError(f"{source} gives the id {image} twice")
            ids.add(image)
            annotated[path] = image, archives.number(class_id, source), part
    for path, (image, label, part), encoded in archives.read_annotated(
        archive, annotated, "Ebay_train.txt, Ebay_test.txt"
    ):
        name = path.removeprefix(folder)
        md5 = hashlib.md5(encoded, usedforsecurity=False).hexdigest() if archive == raw and name in KNOWN else ""
        if md5 and md5 != KNOWN[name]:
            raise BadInputError(f"{raw}: {name} should have the MD5 {KNOWN[name]}: this mirror has changed the images")
        yield SourceImage(name, label - 1, f"{label:05}", part, encoded, (image,))


def split(entries: list[Entry]) -> dict[str, list[int]]:
    """The zero-shot manifests that the lists define."""
    return datasets.by_part(entries, ("train", "test"))
