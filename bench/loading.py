"""Images per second on one core: torchvision's ImageFolder with Pillow, as in the papers, against the packed store.

    python -m bench.loading [--images 150] [--repeats 9]

Each way makes a RandomResizedCrop(224) and a flip of the same JPEG files (500 x 375, as in CUB-200-2011). The ways take
turns, and the result is the ratios of their medians. Here the device normalises images, so only the first way includes
normalising, because it is the papers' complete transform. Expect 2 times the papers' rate when images are decoded each
time, and 9 times when they are decoded once (docs/datasets.md). It takes half a minute.
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
from torchvision import datasets, transforms

from pipeline.data.packed import DecodedImages, PackedImages, SourceImage, pack
from pipeline.training.augmentations.random_resized_crop import CROP_DRAWS, boxes
from pipeline.training.images import cropped

WIDTH, HEIGHT = 500, 375
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photograph(seed: int) -> bytes:
    """A JPEG file whose detail decreases with frequency as in a photograph: about 84 kB at quality 90."""
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


def rate(load: Callable[[], object], count: int) -> float:
    """Images per second if `load` loads each of `count` images once."""
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
        sizes = np.array([[entry.height, entry.width] for entry in packed.entries])

        def ours(images: PackedImages | DecodedImages) -> None:
            generator = np.random.default_rng(0)
            flips = torch.from_numpy(generator.random(len(packed)) < 0.5)
            found = boxes(sizes, generator.random((len(packed), CROP_DRAWS)), 0.08)
            crops = [cropped(images.decoded(image, 3), box, 224) for image, box in enumerate(found)]
            torch.where(flips[:, None, None, None], torch.stack(crops).flip(-1), torch.stack(crops))

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
