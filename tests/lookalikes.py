"""Look-alikes of the published archives: true file names and layouts, really encoded images, a few small classes."""

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

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


def cub_files() -> dict[str, bytes]:
    """CUB-200-2011 of four classes, two of them for training: a grey image, a `._` file, images before their lists."""
    classes = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross", "004.Groove_billed_Ani"]
    names = [f"{folder}/{folder[4:]}_{number:04}_{number + 7}.jpg" for folder in classes for number in (46, 9, 2)]
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


def cub(raw: Path) -> None:
    """Write the archive of `cub_files` into the folder `raw`."""
    tgz(raw / "CUB_200_2011.tgz", cub_files())


CUB_COUNTS = {"train": (6, 2), "test": (6, 2), "held_out_train": (3, 1), "held_out_test": (3, 1)}


def project(
    folder: Path, counts: dict[str, dict[str, tuple[int, int]]], checksums: dict[str, str] | None = None
) -> Path:
    """Copy the pipeline into `folder` and tell its datasets what the look-alikes hold in place of what was published.

    `counts` gives images and classes of each manifest by dataset; half of the classes train. Of the published files'
    sizes and checksums none is kept; `checksums` gives SHA-256 by file name.
    """
    shutil.copytree(REPOSITORY / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "data").mkdir()
    for name in (".gitignore", "checksums", "dvc.yaml"):
        if (REPOSITORY / "data" / name).exists():
            shutil.copy(REPOSITORY / "data" / name, folder / "data" / name)
    for dataset, manifests in counts.items():
        with (folder / "pipeline" / "datasets" / f"{dataset}.py").open("a") as module:
            expected = {part: f"Expected({images}, {classes}, None)" for part, (images, classes) in manifests.items()}
            module.write(f"\nTRAINING_CLASSES = {manifests['train'][1]}\n")
            module.write(f"EXPECTED = {{{', '.join(f'{part!r}: {value}' for part, value in expected.items())}}}\n")
            module.write(
                "FILES = tuple(file._replace(size=None, md5=None, sha256="
                f"{checksums or {}}.get(file.name)) for file in FILES)\n"
            )
    return folder


def stage(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m pipeline.…` in `folder` to its end."""
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
