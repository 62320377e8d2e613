"""Images from a packed dataset to batches: decoded once, shifted in uint8, normalised on the device."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset

from pipeline import sampling
from pipeline.files import BadInputError
from pipeline.manifests import Row, read_manifest
from pipeline.packed import PackedImages


def read_training(manifest: Path) -> tuple[list[int], Tensor]:
    """Image numbers and labels of a training manifest; labels, int64 (images,), renumbered from 0 in class order."""
    rows = _rows(manifest)
    return [row.image for row in rows], torch.from_numpy(np.unique([row.label for row in rows], return_inverse=True)[1])


class RetrievedImages(NamedTuple):
    """The images to be retrieved: of `numbers`, with `labels` int64 (images,). The first `queries` of them are searched
    for among the rest, the gallery; where `queries` is None, each is searched for among all others."""

    manifests: list[Path]
    numbers: list[int]
    labels: Tensor
    queries: int | None

    def search(self, embeddings: Tensor) -> dict[str, Any]:
        """The arguments of `retrieval.retrieval` that say who is searched for among whom, from all embeddings (images,
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


def read_retrieved(splits: Path) -> RetrievedImages:
    """The test manifest of a dataset's splits, or its query and gallery manifests where it has those (In-Shop)."""
    apart = (splits / "query.csv").is_file()
    manifests = [splits / f"{part}.csv" for part in (("query", "gallery") if apart else ("test",))]
    parts = [_rows(manifest) for manifest in manifests]
    rows = [row for part in parts for row in part]
    labels = torch.tensor([row.label for row in rows])
    return RetrievedImages(manifests, [row.image for row in rows], labels, len(parts[0]) if apart else None)


def _rows(manifest: Path) -> list[Row]:
    rows = read_manifest(manifest)
    if not rows:
        raise BadInputError(f"{manifest} has no images: run the split stage again")
    return rows


def decode(packed: PackedImages, numbers: list[int], channels: int) -> Tensor:
    """The images of the given numbers, all of one size, as uint8 (images, channels, height, width)."""
    decoded = np.stack([packed.decoded(number, channels) for number in numbers])
    return torch.from_numpy(decoded).permute(0, 3, 1, 2).contiguous()


def normalise(images: Tensor, mean: list[float], std: list[float], device: torch.device) -> Tensor:
    """uint8 (batch, channels, height, width) to float32 on `device`, scaled to 0..1, less the mean, over the std."""
    images = images.to(device, non_blocking=True, memory_format=torch.channels_last).float() / 255
    return (images - torch.tensor(mean, device=device)[:, None, None]) / torch.tensor(std, device=device)[:, None, None]


class TrainingImages(Dataset):
    """Shifted training images, fetched a batch at a time by (epoch, positions, image rows)."""

    def __init__(self, images: Tensor, labels: Tensor, shift: int, seed: int):
        self.images, self.labels, self.shift, self.seed = images, labels, shift, seed
        self._epoch, self._offsets = 0, torch.empty(0)

    def __getitems__(self, batch: tuple[int, np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor]:
        """Images, uint8 (batch, channels, height, width), and labels, int64 (batch,)."""
        epoch, positions, rows = batch
        if epoch != self._epoch:
            draws = sampling.uniform(self.seed, "shift", epoch, (len(self.images), 2))
            self._epoch, self._offsets = epoch, torch.from_numpy((draws * (2 * self.shift + 1)).astype(np.int64))
        images = pad(self.images[rows], (self.shift,) * 4)
        height, width = self.images.shape[2:]
        offsets = self._offsets[positions]
        y = offsets[:, :1] + torch.arange(height)
        x = offsets[:, 1:] + torch.arange(width)
        shifted = images[torch.arange(len(rows))[:, None, None], :, y[:, :, None], x[:, None, :]]
        return shifted.permute(0, 3, 1, 2), self.labels[rows]


def _keep(batch: Any) -> Any:
    """`__getitems__` gives whole batches, so there is nothing to collate."""
    return batch


class _Epochs:
    """The batches of all epochs, one after another, each as the keys that `TrainingImages` fetches by."""

    def __init__(self, count: int, batch_size: int, epochs: range, first_step: int, seed: int):
        self.count, self.batch_size, self.epochs, self.seed = count, batch_size, epochs, seed
        self.first_step = first_step

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for epoch in self.epochs:
            rows = sampling.order(self.seed, epoch, self.count)
            first = self.first_step * self.batch_size if epoch == self.epochs.start else 0
            for start in range(first, self.count, self.batch_size):
                positions = np.arange(start, min(start + self.batch_size, self.count))
                yield epoch, positions, rows[positions]


def _ignore_termination(worker: int) -> None:
    """SIGTERM often goes to all processes of a job: the training process saves and ends its workers itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def training_batches(
    images: TrainingImages, batch_size: int, epochs: range, workers: int, pin: bool, first_step: int = 0
) -> DataLoader:
    """All batches of all `epochs` in one loader, so that workers start once and never wait between epochs. Each epoch
    is a shuffle of all images, its last batch as small as it comes; the first epoch begins at `first_step`."""
    return DataLoader(
        images,
        batch_sampler=_Epochs(len(images.images), batch_size, epochs, first_step, images.seed),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_keep,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_ignore_termination,
    )
