"""Images of a run, from its manifests to batches: decoded once if memory allows, cropped or shifted in uint8."""

import math
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pipeline.base.config import Recipe
from pipeline.base.files import BadInputError
from pipeline.data.manifests import Row, read_manifest, without_relevant
from pipeline.data.packed import DecodedImages, PackedImages, available_memory
from pipeline.training import resident
from pipeline.training.augment import Augment
from pipeline.training.batches import ClassBalanced, Shuffled
from pipeline.training.crops import Crops
from pipeline.training.images import centred, cropped, mean_colour, padded, squashed
from pipeline.training.memory import Memory
from pipeline.training.resident import ResidentImages

CPU = torch.device("cpu")
NONE = Memory(CPU)

MEMORY_SHARE = 0.4
"""The share of the free memory that decoded training images, and resized test images, may each take."""


def read_training(manifest: Path) -> tuple[list[int], Tensor]:
    """Image numbers and labels of a training manifest. Labels, int64 (images,), are renumbered from 0 in class order.

    Raises `BadInputError` if the manifest is not what its stage wrote, or has a single class.
    """
    rows = _rows(manifest)
    labels, renumbered = np.unique([row.label for row in rows], return_inverse=True)
    if len(labels) < 2:
        raise BadInputError(f"{manifest} has one class, {rows[0].label}: training needs two classes or more")
    return [row.image for row in rows], torch.from_numpy(renumbered)


class RetrievedImages(NamedTuple):
    """The images to be retrieved: their `numbers`, and their `labels` int64 (images,). The first `queries` images are
    searched for among the rest, the gallery. If `queries` is None, each image is searched for among all others."""

    manifests: list[Path]
    numbers: list[int]
    labels: Tensor
    queries: int | None

    def search(self, embeddings: Tensor) -> dict[str, Any]:
        """The arguments of `retrieval.retrieval` for queries and gallery, made from all embeddings (images,
        dimension)."""
        labels = self.labels.to(embeddings.device)
        if self.queries is None:
            return {"embeddings": embeddings, "labels": labels}
        return {
            "embeddings": embeddings[: self.queries],
            "labels": labels[: self.queries],
            "gallery": embeddings[self.queries :],
            "gallery_labels": labels[self.queries :],
        }


def read_retrieved(splits: Path, held_out: Path | None = None) -> RetrievedImages:
    """The images of a dataset's test manifest, or of its query and gallery manifests if it has these (In-Shop). With
    `held_out`, those of this manifest, which has held-out training classes.

    Raises `BadInputError` if a manifest is not what its stage wrote, or if no query has an image to find.
    """
    apart = held_out is None and (splits / "query.csv").is_file()
    names = ("query", "gallery") if apart else ("test",)
    manifests = [splits / f"{name}.csv" for name in names] if held_out is None else [held_out]
    parts = [_rows(manifest) for manifest in manifests]
    if len(without_relevant(parts[0], parts[1] if apart else None)) == len(parts[0]):
        where = f"in {manifests[1]}" if apart else "besides"
        raise BadInputError(f"{manifests[0]}: no image has another of its class {where}, so no metric can be computed")
    rows = [row for part in parts for row in part]
    labels = torch.tensor([row.label for row in rows])
    return RetrievedImages(manifests, [row.image for row in rows], labels, len(parts[0]) if apart else None)


def _rows(manifest: Path) -> list[Row]:
    rows = read_manifest(manifest)
    if not rows:
        raise BadInputError(f"{manifest} has no images: run the split stage again")
    return rows


def as_stored(packed: PackedImages, numbers: Sequence[int], channels: int, size: int) -> Tensor:
    """Images that already are `size` pixels wide and high, as uint8 (images, channels, size, size). Raises
    `BadInputError` for an image of another size."""
    for number in numbers:
        entry = packed.entries[number]
        if (entry.height, entry.width) != (size, size):
            raise BadInputError(
                f"{packed.folder}: {entry.name} has {entry.width} x {entry.height} pixels, not {size} x {size} as the "
                "recipe's input_size: let the recipe's augment begin with random_resized_crop, and its test_fit be crop"
            )
    decoded = np.stack([packed.decoded(number, channels) for number in numbers])
    return torch.from_numpy(decoded).permute(0, 3, 1, 2).contiguous()


Batch = tuple[Tensor | Crops, list[Tensor], Tensor]
"""What the loader makes of a batch: images, uint8 (batch, channels, height, width), or `Crops` that say how to crop
them on the GPU; the random numbers of the augmentations that are made on the device; and labels, int64 (batch,)."""


class TrainingImages(Dataset[Batch], ABC):
    """Training images. They are fetched one batch at a time, by (epoch, positions in the epoch, rows)."""

    resident: ResidentImages | None = None

    def __init__(self, labels: Tensor, augment: Augment):
        self.labels, self.augment = labels, augment

    @abstractmethod
    def images(self, epoch: int, positions: np.ndarray, rows: np.ndarray) -> Tensor | Crops:
        """Images of the network's input size, uint8 (batch, channels, height, width), or how to crop them."""

    def __getitems__(self, batch: tuple[int, np.ndarray, np.ndarray]) -> Batch:
        """A batch for `finish`."""
        epoch, positions, rows = batch
        images, draws = self.images(epoch, positions, rows), self.augment.draws(epoch, positions)
        if self.augment.on_host:
            assert isinstance(images, Tensor)
            images, draws = self.augment.apply(images, draws), []
        return images, draws, self.labels[rows]

    def finish(self, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images, uint8 (batch, channels, height, width), and labels, int64 (batch,), after all augmentations."""
        images, draws, labels = batch
        if isinstance(images, Crops):
            assert self.resident is not None
            images = self.resident.crop(images)
        if draws:
            images = self.augment.apply(images.to(device, non_blocking=True), draws)
        return images, labels


class StoredImages(TrainingImages):
    """Training images that have the network's input size: uint8 (images, channels, height, width)."""

    def __init__(self, pixels: Tensor, labels: Tensor, augment: Augment):
        super().__init__(labels, augment)
        self.pixels = pixels

    def images(self, epoch: int, positions: np.ndarray, rows: np.ndarray) -> Tensor:
        """Images, uint8 (batch, channels, height, width)."""
        return self.pixels[rows]


class CroppedImages(TrainingImages):
    """Training images of any size, each cropped at random and resized to the network's input size.

    If a GPU has room for them, the decoded images stay on the GPU (`resident`), and fetching gives their crops'
    positions. Otherwise fetching gives cropped images. They are decoded once if they fit into memory, otherwise each
    time they are fetched.
    """

    def __init__(
        self,
        packed: PackedImages,
        numbers: Sequence[int],
        labels: Tensor,
        channels: int,
        size: int,
        augment: Augment,
        memory: Memory = NONE,
    ):
        super().__init__(labels, augment)
        self.numbers, self.channels, self.size = numbers, channels, size
        self.sizes = np.array([[packed.entries[number].height, packed.entries[number].width] for number in numbers])
        decoded = int(self.sizes.prod(1).sum()) * channels
        self.source: PackedImages | DecodedImages = packed
        if not augment.on_host and resident.usable(memory, decoded):
            self.resident = ResidentImages(packed, numbers, channels, size, memory.device)
        elif decoded < MEMORY_SHARE * available_memory():
            self.source = DecodedImages(packed, numbers, channels)

    def images(self, epoch: int, positions: np.ndarray, rows: np.ndarray) -> Tensor | Crops:
        """Images, uint8 (batch, channels, size, size), or `Crops` that say how to crop them."""
        found = self.augment.boxes(epoch, positions, self.sizes[rows])
        if self.resident is not None:
            return self.resident.plan(rows, found)
        return torch.stack(
            [
                cropped(self.source.decoded(self.numbers[row], self.channels), box, self.size)
                for row, box in zip(rows, found, strict=True)
            ]
        )


def training_images(
    packed: PackedImages,
    numbers: Sequence[int],
    labels: Tensor,
    channels: int,
    recipe: Recipe,
    seed: int,
    memory: Memory = NONE,
) -> TrainingImages:
    """The training images of these numbers, augmented as the recipe says."""
    augment = Augment(recipe, seed)
    if augment.crops:
        return CroppedImages(packed, numbers, labels, channels, recipe.input_size, augment, memory)
    return StoredImages(as_stored(packed, numbers, channels, recipe.input_size), labels, augment)


class LoadedBatches:
    """The batches of a loader, each processed by `finish` in this process. If a loader process cannot read an image,
    its `BadInputError` is raised here with the same message, without the traceback that torch puts before it."""

    def __init__(self, loader: DataLoader[Any], finish: Callable[[Any], Any] = lambda batch: batch):
        self.loader, self.finish = loader, finish

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Generator[Any, None, None]:
        batches = iter(self.loader)
        try:
            yield from map(self.finish, batches)
        except BadInputError as error:
            raise BadInputError(str(error).rpartition(f"{BadInputError.__name__}: ")[2].strip()) from None
        finally:
            # Stop the workers here, not when the iterator is garbage-collected. An error's traceback keeps the iterator
            # alive, and at its end the process would wait for ever for the workers, which ignore SIGTERM.
            getattr(batches, "_shutdown_workers", lambda: None)()


class CentredImages(Dataset[Tensor]):
    """Test images of any size, resized and made square as the recipe says: uint8 tensors."""

    def __init__(self, packed: PackedImages, numbers: Sequence[int], channels: int, recipe: Recipe, workers: int):
        self.packed, self.numbers, self.channels, self.workers = packed, numbers, channels, workers
        self.resize, self.size, self.fit = recipe.test_resize or 0, recipe.input_size, recipe.test_fit
        self.colour = mean_colour(recipe, channels)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> Tensor:
        """The image at `place` in the list of numbers, uint8 (channels, size, size)."""
        pixels = self.packed.decoded(self.numbers[place], self.channels)
        if self.fit == "squash":
            return squashed(pixels, self.size)
        if self.fit == "pad":
            return padded(pixels, self.size, self.colour)
        return centred(pixels, self.resize, self.size)

    def split(self, size: int) -> LoadedBatches:
        """All images in batches of `size`, in the same form as from torch.Tensor.split."""
        return LoadedBatches(DataLoader(self, size, num_workers=self.workers, worker_init_fn=_ignore_termination))


def test_images(
    packed: PackedImages,
    numbers: Sequence[int],
    channels: int,
    recipe: Recipe,
    workers: int,
    memory: Memory = NONE,
) -> Tensor | CentredImages:
    """Test images of the network's input size: uint8 (images, channels, size, size) on the device if they fit there,
    otherwise in memory if they fit there, otherwise `CentredImages`, which makes them each time. All have `split`."""
    if recipe.test_fit == "stored":
        return as_stored(packed, numbers, channels, recipe.input_size)
    images = CentredImages(packed, numbers, channels, recipe, workers)
    shape = (len(numbers), channels, recipe.input_size, recipe.input_size)
    place = memory.device if memory.take(math.prod(shape)) else CPU
    if place == CPU and math.prod(shape) > MEMORY_SHARE * available_memory():
        return images
    kept = torch.empty(shape, dtype=torch.uint8, device=place)
    parts = kept.split(256)
    progress = tqdm(images.split(256), "test images", len(parts), leave=False, disable=None)
    for part, batch in zip(parts, progress, strict=True):
        part.copy_(batch)
    return kept


def _keep(batch: Any) -> Any:
    """The batch itself: `__getitems__` gives whole batches, so there is nothing to collate."""
    return batch


class _Epochs:
    """The batches of all epochs, one after another, each as the arguments by which training images are fetched."""

    def __init__(self, batches: Shuffled | ClassBalanced, epochs: range, first_step: int):
        self.batches, self.epochs, self.first_step = batches, epochs, first_step

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for epoch in self.epochs:
            start = 0
            for step, rows in enumerate(self.batches.epoch(epoch)):
                if epoch > self.epochs.start or step >= self.first_step:
                    yield epoch, np.arange(start, start + len(rows)), rows
                start += len(rows)


def _ignore_termination(worker: int) -> None:
    """Ignore SIGTERM in a loader process. It often goes to all processes of a job, but the training process must first
    save, and then ends its workers itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def training_batches(
    images: TrainingImages,
    batches: Shuffled | ClassBalanced,
    epochs: range,
    workers: int,
    device: torch.device,
    first_step: int = 0,
) -> LoadedBatches:
    """All batches of all `epochs` in one loader, so that workers start once and never wait between epochs: images and
    labels. The first epoch begins at `first_step`. Augmentations are made on the device."""
    loader = DataLoader(
        images,
        batch_sampler=_Epochs(batches, epochs, first_step),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_keep,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
        worker_init_fn=_ignore_termination,
    )
    return LoadedBatches(loader, lambda batch: images.finish(batch, device))
