"""Look-alikes of the published archives: true file names and layouts, really encoded images, a few small classes."""

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
from PIL import Image

from pipeline.data.checksums import write_sums
from pipeline.data.index import FILE, Entry, write_index
from pipeline.data.manifests import Row, write_manifests

REPOSITORY = Path(__file__).parent.parent


def picture(seed: int, mode: str = "RGB", format: str = "JPEG", size: tuple[int, int] = (40, 30)) -> bytes:
    """An encoded image: smooth noise from `seed`, so that no two are alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, format)
    return buffer.getvalue()


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """A tar header; the size is that of `content`."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content)
    return info


def tgz(path: Path, files: dict[str, bytes], extra: Iterable[tuple[tarfile.TarInfo, bytes]] = ()) -> Path:
    """Write a gzipped tar file; `extra` are members with a header of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(path, "wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as archive:
        for name, content in files.items():
            archive.addfile(member(name, content), io.BytesIO(content))
        for info, content in extra:
            archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    """Write a zip file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def cub_files(numbers: Iterable[int] = (46, 9, 2), more: int = 0) -> dict[str, bytes]:
    """CUB-200-2011 of four classes, two of them for training: a grey image, a `._` file, images before their lists.

    `numbers` are those of each class's images, `more` is a number of further classes.
    """
    classes = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross", "004.Groove_billed_Ani"]
    classes += [f"{number:03}.Bird" for number in range(5, 5 + more)]
    names = [f"{folder}/{folder[4:]}_{number:04}_{number + 7}.jpg" for folder in classes for number in numbers]
    images = {name: picture(seed, "L" if seed == 4 else "RGB") for seed, name in enumerate(names)}
    root = "CUB_200_2011"
    files = {f"{root}/images/{name}": images[name] for name in sorted(names, reverse=True)}
    files[f"{root}/images/{classes[0]}/._{names[0].split('/')[1]}"] = b"Mac OS X"
    files[f"{root}/images.txt"] = "".join(f"{place} {name}\n" for place, name in enumerate(names, 1)).encode()
    files[f"{root}/image_class_labels.txt"] = "".join(
        f"{place} {int(name[:3])}\n" for place, name in enumerate(names, 1)
    ).encode()
    files[f"{root}/classes.txt"] = "".join(f"{place} {name}\n" for place, name in enumerate(classes, 1)).encode()
    return files


def cub(raw: Path, numbers: Iterable[int] = (46, 9, 2), more: int = 0) -> None:
    """Write the archive of `cub_files` into the folder `raw`."""
    tgz(raw / "CUB_200_2011.tgz", cub_files(numbers, more))


CUB_COUNTS = {"train": (6, 2), "test": (6, 2), "held_out_train": (3, 1), "held_out_test": (3, 1)}


def project(
    folder: Path,
    counts: dict[str, dict[str, tuple[int, int]]],
    checksums: dict[str, str] | None = None,
    weights: bool = False,
) -> Path:
    """Copy the pipeline into `folder` and tell its datasets what the look-alikes hold in place of what was published.

    `counts` gives images and classes of each manifest by dataset; half of the classes train. Of the published files'
    sizes and checksums none is kept; `checksums` gives SHA-256 by file name. `weights`: forget the weights' too.
    """
    shutil.copytree(REPOSITORY / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "data").mkdir()
    shutil.copy(REPOSITORY / "requirements.lock", folder)
    for name in (".gitignore", "checksums", "dvc.yaml"):
        if (REPOSITORY / "data" / name).exists():
            shutil.copy(REPOSITORY / "data" / name, folder / "data" / name)
    for dataset, manifests in counts.items():
        with (folder / "pipeline" / "datasets" / f"{dataset}.py").open("a") as module:
            expected = {part: f"Expected({images}, {classes})" for part, (images, classes) in manifests.items()}
            module.write(f"\nTRAINING_CLASSES = {manifests['train'][1]}\n")
            module.write(f"EXPECTED = {{{', '.join(f'{part!r}: {value}' for part, value in expected.items())}}}\n")
            module.write(
                "FILES = tuple(file._replace(size=None, md5=None, sha256="
                f"{checksums or {}}.get(file.name)) for file in FILES)\n"
            )
    if weights:
        with (folder / "pipeline" / "networks" / "published.py").open("a") as module:
            module.write("\nFILES = {name: file._replace(size=None, sha256=None) for name, file in FILES.items()}\n")
    return folder


def manifests(root: Path, dataset: str, **parts: list[Row]) -> Path:
    """Write data/splits/<dataset> under `root`, beside an index of the same images; the images themselves are not
    there. Returns the folder of the manifests."""
    rows = sorted({row for part in parts.values() for row in part})
    packed, splits = root / "data/packed" / dataset, root / "data/splits" / dataset
    packed.mkdir(parents=True)
    splits.parent.mkdir(parents=True, exist_ok=True)
    entries = [
        Entry(row.image, place, 1, 1, 1, row.label, str(row.label), "", row.name, "0" * 64)
        for place, row in enumerate(rows)
    ]
    write_index(packed, entries, upright=False)
    write_sums(packed, [packed / FILE])
    write_manifests(splits, parts, [packed / FILE])
    return splits


def stage(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m pipeline.…` in `folder` to its end."""
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )


CAR_NAMES = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012", "smart fortwo 2012"]


def annotations(names: list[str], classes: list[int], field: str, tests: list[int] | None = None) -> np.ndarray:
    """The struct array `annotations` of the .mat files: four columns of a box, a class, a name."""
    boxes = [(f"bbox_{side}", object) for side in ("x1", "y1", "x2", "y2")]
    rows = np.zeros(len(names), [(field, object), *boxes, ("class", object), ("test", object)])
    rows[field], rows["class"], rows["test"] = names, classes, tests or [0] * len(names)
    for name, _ in boxes:
        rows[name] = 7
    return rows


def mat(**variables: object) -> bytes:
    """The bytes of a .mat file."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, variables)
    return buffer.getvalue()


def cars_images(more: int = 0) -> list[tuple[int, int, bytes]]:
    """Class, official part (1 is test) and bytes of each image, in the order of car_ims; one class comes back later,
    one image is CMYK, and one is in its class twice. `more` is a number of images of each of eight classes besides."""
    classes = [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 1, *[*range(1, 9)] * more]
    encoded = [picture(100 + place, "CMYK" if place == 5 else "RGB") for place in range(len(classes))]
    encoded[11] = encoded[0]
    return [(label, place % 2, content) for place, (label, content) in enumerate(zip(classes, encoded, strict=True))]


def cars_combined(raw: Path) -> None:
    """Write car_ims.tgz and cars_annos.mat."""
    images = cars_images()
    names = [f"car_ims/{place:06}.jpg" for place in range(1, len(images) + 1)]
    tgz(raw / "car_ims.tgz", {name: content for name, (_, _, content) in zip(names, images, strict=True)})
    rows = annotations(names, [label for label, _, _ in images], "relative_im_path", [test for _, test, _ in images])
    (raw / "cars_annos.mat").write_bytes(mat(annotations=rows, class_names=np.array(CAR_NAMES, object)))


def cars_official(raw: Path, kaggle: bool = False, more: int = 0) -> None:
    """Write the official split's archives, or Kaggle's zip of them, and the devkit; images in another order."""
    images = cars_images(more)[::-1]
    names = CAR_NAMES + [f"Car {number} 2012" for number in range(5, 9)] * bool(more)
    devkit = {"devkit/cars_meta.mat": mat(class_names=np.array(names, object))}
    folders: dict[str, bytes] = {}
    for part, wanted in (("train", 0), ("test", 1)):
        chosen = [(label, content) for label, test, content in images if test == wanted]
        names = [f"{place:05}.jpg" for place in range(1, len(chosen) + 1)]
        rows = mat(annotations=annotations(names, [label for label, _ in chosen], "fname"))
        if part == "train":
            devkit["devkit/cars_train_annos.mat"] = rows
        else:
            raw.mkdir(parents=True, exist_ok=True)
            (raw / "cars_test_annos_withlabels.mat").write_bytes(rows)
        files = {f"cars_{part}/{name}": content for name, (_, content) in zip(names, chosen, strict=True)}
        if kaggle:
            folders |= {f"cars_{part}/{name}": content for name, content in files.items()}
        else:
            tgz(raw / f"cars_{part}.tgz", files)
    tgz(raw / "car_devkit.tgz", devkit)
    if kaggle:
        zipped(raw / "stanford-cars-dataset.zip", folders)


def cars_by_class(raw: Path) -> None:
    """Write Kaggle's folders of classes with their lists, as in jutrera/stanford-car-dataset-by-classes-folder."""
    files = {"names.csv": "".join(f"{name}\n" for name in CAR_NAMES).encode()}
    for part, wanted in (("train", 0), ("test", 1)):
        chosen = [(label, content) for label, test, content in cars_images()[::-1] if test == wanted]
        rows = ""
        for place, (label, content) in enumerate(chosen, 1):
            files[f"car_data/{part}/{CAR_NAMES[label - 1].replace('/', '-')}/{place:05}.jpg"] = content
            rows += f"{place:05}.jpg,39,116,569,375,{label}\n"
        files[f"anno_{part}.csv"] = rows.encode()
    zipped(raw / "by_class.zip", files)


def parquet(path: Path, rows: list[tuple[object, object]], names: list[str] | None = None) -> Path:
    """Write images and labels as the library `datasets` does, with ClassLabel's names in the schema's metadata."""
    table = pa.table({"image": [image for image, _ in rows], "label": [label for _, label in rows]})
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3)
    return path


def cars_on_the_hub(raw: Path) -> None:
    """Write Parquet files as on the hub, with the classes in another order, and the devkit's names of the classes."""
    names = sorted(name.lower() for name in CAR_NAMES)[::-1]
    for part, wanted in (("train", 0), ("test", 1)):
        chosen = [(label, content) for label, test, content in cars_images()[::-1] if test == wanted]
        rows: list[tuple[object, object]] = [
            ({"bytes": content, "path": None}, names.index(CAR_NAMES[label - 1].lower())) for label, content in chosen
        ]
        parquet(raw / f"data/{part}-00000-of-00001.parquet", rows, names)
    (raw / "cars_meta.mat").write_bytes(mat(class_names=np.array(CAR_NAMES, object)))


CARS_COUNTS = {"train": (7, 2), "test": (5, 2), "held_out_train": (4, 1), "held_out_test": (3, 1)}


def sop_files(classes: int = 6, images: int = 2) -> dict[str, bytes]:
    """Stanford Online Products of six classes, half of them for training; one file named .JPG is a palette PNG."""
    root, lists = "Stanford_Online_Products", {"train": "", "test": ""}
    files = {}
    for label in range(1, classes + 1):
        part, group = ("train", "bicycle_final") if label <= classes // 2 else ("test", "chair_final")
        for number in range(images):
            image = images * (label - 1) + 1 + number
            name = f"{group}/{111085122870 + label}_{number}.JPG"
            files[f"{root}/{name}"] = picture(200 + image, *(("P", "PNG") if image == 4 else ("RGB", "JPEG")))
            lists[part] += f"{image} {label} {1 if part == 'train' else 3} {name}\n"
    head = "image_id class_id super_class_id path\n"
    files[f"{root}/Ebay_train.txt"] = (head + lists["train"]).encode()
    files[f"{root}/Ebay_test.txt"] = (head + lists["test"]).encode()
    files[f"__MACOSX/{root}/._Ebay_train.txt"] = b"Mac OS X"
    return files


def sop(raw: Path, classes: int = 6, images: int = 2) -> None:
    """Write the archive of `sop_files` into the folder `raw`."""
    zipped(raw / "Stanford_Online_Products.zip", sop_files(classes, images))


SOP_COUNTS = {"train": (6, 3), "test": (6, 3), "held_out_train": (2, 1), "held_out_test": (4, 2)}


INSHOP_PARTS = {2: "train train", 7: "train train", 5: "query gallery gallery", 10: "query gallery", 3: "train train"}


def inshop(raw: Path, parts: dict[int, str] = INSHOP_PARTS) -> None:
    """In-Shop of five items, three for training, listed women first: two queries and three gallery images."""
    files, lines = {}, []
    for item, statuses in parts.items():
        for number, status in enumerate(statuses.split()):
            name = f"img/{'WOMEN/Dresses' if item % 2 else 'MEN/Denim'}/id_{item:08}/02_{number}_front.jpg"
            files[name] = picture(300 + 10 * item + number)
            lines.append(f"{name:<70} id_{item:08} {status}\n")
    zipped(raw / "img.zip", files)
    head = f"{len(lines)}\nimage_name item_id evaluation_status\n"
    (raw / "list_eval_partition.txt").write_text(head + "".join(lines))


INSHOP_COUNTS = {"train": (6, 3), "query": (2, 2), "gallery": (3, 2), "held_out_train": (2, 1), "held_out_test": (4, 2)}
