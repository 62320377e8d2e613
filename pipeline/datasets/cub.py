"""CUB-200-2011: 11,788 photographs of 200 kinds of birds (Wah et al. 2011, Caltech).

Classes 1-100 are for training and 101-200 for retrieval. Eight images are grey. CUB-200 of 2010 is another, smaller
dataset with the same class names, and is refused. Some test images are also training images of ImageNet, so weights
pretrained on ImageNet have seen them.
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

FILES = (
    File(
        "CUB_200_2011.tgz",
        (
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "https://drive.usercontent.google.com/download?id=1hbzc_P1FuxMkcabkgn9ZKinBwW683j45&confirm=t",
            "https://s3.amazonaws.com/fast-ai-imageclas/CUB_200_2011.tgz",
        ),
        "https://data.caltech.edu/records/65de6-vp158",
        1_150_585_339,
        "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
        "97eceeb196236b17998738112f37df78",
        contents.archive_with("CUB_200_2011/images.txt", "CUB_200_2011/image_class_labels.txt", "CUB_200_2011/images/"),
    ),
)
LISTS = ("images.txt", "image_class_labels.txt")
TRAINING_CLASSES = 100
IMAGES_OF_2010 = 6033

EXPECTED = {
    "train": Expected(5864, 100),
    "test": Expected(5924, 100),
    "held_out_train": Expected(None, 50),
    "held_out_test": Expected(None, 50),
}


def download(raw: Path) -> None:
    """Fetch the archive into `raw`, unless another form of it is there."""
    mirrors.download(raw, FILES, LISTS)


def form(raw: Path) -> str:
    """Which form of the archive `raw` holds, for the record."""
    return mirrors.form(raw, mirrors.place(raw, FILES, LISTS) == raw, [FILES[0].name])


def images(raw: Path) -> Iterator[SourceImage]:
    """The images that images.txt lists, packed in the order of their ids in it."""
    archive = mirrors.place(raw, FILES, LISTS)
    folder = "" if archive == raw else "CUB_200_2011/"
    hint = f" (CUB-200 of 2010 has the same classes, but {IMAGES_OF_2010:,} images)"
    names, labels = archives.read_texts(archive, [f"{folder}{name}" for name in LISTS], hint)
    label_of = archives.by_id(labels, f"{archive}: image_class_labels.txt")
    annotated: dict[str, tuple[int, int, str]] = {}
    for key, name in archives.by_id(names, f"{archive}: images.txt").items():
        path = f"{folder}images/{name}"
        if path in annotated:
            raise BadInputError(f"{archive}: images.txt names {name} twice")
        if key not in label_of:
            raise BadInputError(
                f"{archive}: image_class_labels.txt lacks the id {key}, which images.txt gives to {name}"
            )
        label = archives.number(label_of[key], f"{archive}: image_class_labels.txt") - 1
        annotated[path] = archives.number(key, f"{archive}: images.txt"), label, name
    for _, (place, label, name), encoded in archives.read_annotated(archive, annotated, "images.txt"):
        yield SourceImage(name, label, name.split("/")[0], "", encoded, (place,))


def split(entries: list[Entry]) -> dict[str, list[int]]:
    """Zero-shot: the first half of the classes is for training (Song et al. 2016). Raises `BadInputError` for CUB-200
    of 2010."""
    if len(entries) == IMAGES_OF_2010:
        raise BadInputError("cub: these are the 6,033 images of CUB-200 (2010): get CUB_200_2011.tgz (2011) instead")
    return datasets.by_class(entries, TRAINING_CLASSES)
