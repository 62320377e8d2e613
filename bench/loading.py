"""Images a second on one core: torchvision's ImageFolder with Pillow, as the papers load, against the packed store.

    python -m bench.loading [--images 150] [--repeats 9]

Each way draws RandomResizedCrop(224) and a flip of the same JPEG files (500 x 375, as CUB-200-2011 has them), the ways
taking turns; what counts are the ratios of their medians. Normalising is the device's work here and is left out of all
but the first way, which shows the papers' transform whole. Expect 2 times the papers' rate when decoding and 9 times
when decoded once (docs/datasets.md); it takes half a minute.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torchvision import datasets, transforms

from pipeline.packed import DecodedImages, Entry, PackedImages, SourceImage, pack

WIDTH, HEIGHT = 500, 375
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photograph(seed: int) -> bytes:
    """A JPEG whose detail falls off with frequency as a photograph's does: about 84 kB at quality 90."""
    generator = np.random.default_rng(seed)
    pixels = np.zeros((HEIGHT, WIDTH, 3))
    for octave in range(2, 9):
        noise = generator.normal(size=(HEIGHT * 2**octave // 256 + 2, WIDTH * 2**octave // 256 + 2, 3))
        for channel in range(3):
            layer = Image.fromarray(noise[..., channel].astype(np.float32)).resize(
                (WIDTH, HEIGHT), Image.Resampling.BICUBIC
            )
            pixels[..., channel] += np.asarray(layer) * 0.8**octave
    pixels = 128 + 50 * pixels / pixels.std()
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def boxes(generator: np.random.Generator, entries: list[Entry]) -> np.ndarray:
    """RandomResizedCrop's boxes for a whole epoch at once, int64 (images, 4): top, left, height, width.

    The first of ten draws that fits is taken, else the whole image (torchvision's last resort for odd aspects).
    """
    height, width = (np.array([[getattr(entry, side)] for entry in entries]) for side in ("height", "width"))
    area = height * width * generator.uniform(0.08, 1, (len(entries), 10))
    aspect = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3), area.shape))
    wide, high = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (wide <= width) & (high <= height)
    first, rows = fits.argmax(1), np.arange(len(entries))
    wide, high = (
        np.where(fits.any(1), drawn[rows, first], side[:, 0]) for drawn, side in ((wide, width), (high, height))
    )
    top, left = (
        generator.integers(0, side[:, 0] - drawn.astype(int) + 1) for drawn, side in ((high, height), (wide, width))
    )
    return np.stack([top, left, high, wide], 1).astype(int)


def cropped(pixels: np.ndarray, box: np.ndarray, flip: bool) -> torch.Tensor:
    """A box of uint8 (height, width, 3), resized to 224 with antialiasing, perhaps flipped: uint8 (3, 224, 224)."""
    top, left, height, width = box
    image = torch.from_numpy(pixels[top : top + height, left : left + width]).permute(2, 0, 1)
    image = functional.interpolate(image[None], (224, 224), mode="bilinear", antialias=True)[0]
    return image.flip(-1) if flip else image


def rate(load: Callable[[], object], count: int) -> float:
    """Images a second of loading each of `count` images once."""
    began = time.perf_counter()
    load()
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        sources = [SourceImage(f"{i:04}.jpg", 0, "a", "", photograph(i)) for i in range(arguments.images)]
        (root / "folder" / "a").mkdir(parents=True)
        for source in sources:
            (root / "folder" / "a" / source.name).write_bytes(source.encoded)
        pack(sources, root / "packed")
        crop = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
        whole = transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        papers = datasets.ImageFolder(str(root / "folder"), whole)
        bare = datasets.ImageFolder(str(root / "folder"), transforms.Compose([*crop, transforms.PILToTensor()]))
        packed = PackedImages(root / "packed")
        cached = DecodedImages(packed, range(len(packed)), 3)

        def ours(images: PackedImages | DecodedImages) -> None:
            generator = np.random.default_rng(0)
            flips = generator.random(len(packed)) < 0.5
            for image, box in enumerate(boxes(generator, packed.entries)):
                cropped(images.decoded(image, 3), box, flips[image])

        def theirs(images: datasets.ImageFolder) -> None:
            for image in range(len(images)):
                images[image]

        ways: dict[str, Callable[[], object]] = {
            "ImageFolder, the papers' transform": lambda: theirs(papers),
            "ImageFolder, up to the crop": lambda: theirs(bare),
            "packed, decoded as read": lambda: ours(packed),
            "decoded once": lambda: ours(cached),
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(arguments.repeats):
            for way, load in ways.items():
                rates[way].append(rate(load, arguments.images))
    first, second = (statistics.median(rates[way]) for way in list(ways)[:2])
    size = statistics.mean(len(source.encoded) for source in sources)
    print(f"{arguments.images} JPEG files of {WIDTH} x {HEIGHT}, {size / 1000:.0f} kB each, one core")
    print(f"{'':36}images/s  x papers' x ImageFolder up to the crop")
    for way, found in rates.items():
        median = statistics.median(found)
        print(f"{way:36}{median:8.0f}  {median / first:8.2f} {median / second:8.2f}")


if __name__ == "__main__":
    main()
