"""Metrics of embeddings of the test images, and the results of each query, for pictures and tables of queries.

`queries.npz` holds for every query, in the order of its manifest:

- `query`: its image number in the packed index, int32 (queries,);
- `nearest`: the image numbers of the nearest images, int32 (queries, 8), best first, -1 if there are fewer;
- `similarity`: their similarities, float32 (queries, 8);
- `first_hit`: how many irrelevant images come before the first relevant one, int32, -1 without a relevant one;
- `average_precision`: average precision at R, float32, NaN if R is 0.

For the classes of the queries it holds:

- `label`: their labels, int32 (classes,);
- `recall`: their Recall@1, float32 (classes,);
- `confused`: the `CONFUSED` most frequent pairs of different labels, int32 (pairs, 3): the label of queries, the label
  of their nearest image, and the number of such queries.

For a network it also holds:

- `embedded`: image numbers, int32 (images,);
- `embeddings`: their embeddings, float16 (images, dimension): of all retrieved images if these take at most `EMBEDDED`
  bytes, otherwise of whole classes, evenly spaced, that take `SAMPLED` bytes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.base import sampling
from pipeline.base.config import Recipe
from pipeline.metrics.clustering import clustering
from pipeline.metrics.ranks import NEVER, per_query
from pipeline.metrics.retrieval import nearest, retrieval
from pipeline.networks.network import Features, initial_network, load_network, outlined
from pipeline.training.embedding import embed
from pipeline.training.loading import CentredImages, RetrievedImages, read_retrieved, test_images
from pipeline.training.shrunk import open_images

NEIGHBOURS = 8
CONFUSED = 64
EMBEDDED, SAMPLED = 2**23, 2**21
"""8 MiB are enough for the test images of CUB and Cars in 512 dimensions. With 2 MiB of embeddings SOP's file has 7
MB."""


def metrics(embeddings: Tensor, test: RetrievedImages, recipe: Recipe, seed: int) -> dict[str, float]:
    """All metrics of test embeddings, float32 (images, dimension) of unit length, as fractions.

    Clusters are made from all retrieved images, queries and gallery together.
    """
    found = retrieval(**test.search(embeddings), ks=recipe.recall_at, counting=recipe.counting)
    return found | clustering(embeddings, test.labels, seed=seed, kmeans=recipe.kmeans)


def query_results(embeddings: Tensor, test: RetrievedImages) -> dict[str, np.ndarray]:
    """The arrays of `queries.npz` except for embeddings, computed from test embeddings, float32 (images, dimension)."""
    search = test.search(embeddings)
    count, gallery = len(search["embeddings"]), search.get("gallery")
    first, average_precision, _ = per_query(
        search["embeddings"], search["labels"], gallery, search.get("gallery_labels"), "exact"
    )
    rows = torch.arange(count, device=embeddings.device)
    found, similarities = nearest(search["embeddings"], rows, NEIGHBOURS, gallery=gallery)
    numbers = np.array(test.numbers, np.int32)
    neighbours = np.full((count, NEIGHBOURS), -1, np.int32)
    neighbours[:, : found.shape[1]] = numbers[found.cpu().numpy() + (count if gallery is not None else 0)]
    nearness = np.zeros((count, NEIGHBOURS), np.float32)
    nearness[:, : found.shape[1]] = similarities.cpu().numpy()
    labels = test.labels.numpy()
    nearest_labels = labels[found[:, 0].cpu().numpy() + (count if gallery is not None else 0)]
    return {
        "query": numbers[:count],
        "nearest": neighbours,
        "similarity": nearness,
        "first_hit": torch.where(first == NEVER, -1, first).cpu().numpy().astype(np.int32),
        "average_precision": average_precision.cpu().numpy().astype(np.float32),
        **class_results(labels[:count], nearest_labels, (first == 0).cpu().numpy()),
    }


def class_results(labels: np.ndarray, nearest_labels: np.ndarray, hits: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of `queries.npz` for classes, computed from the queries' labels, the labels of their nearest images,
    and whether Recall@1 counts the queries as found: (queries,) each."""
    classes, group = np.unique(labels, return_inverse=True)
    wrong = labels != nearest_labels
    pairs, counts = np.unique(np.stack([labels, nearest_labels], 1)[wrong], axis=0, return_counts=True)
    most = np.lexsort((*pairs.T[::-1], -counts))[:CONFUSED]
    return {
        "label": classes.astype(np.int32),
        "recall": (np.bincount(group, hits) / np.bincount(group)).astype(np.float32),
        "confused": np.column_stack([pairs, counts])[most].astype(np.int32),
    }


def kept_embeddings(embeddings: Tensor, test: RetrievedImages) -> dict[str, np.ndarray]:
    """The arrays `embedded` and `embeddings` of `queries.npz`, chosen from test embeddings, float32 (images,
    dimension)."""
    count, dimension = embeddings.shape
    rows = np.arange(count)
    if 2 * embeddings.numel() > EMBEDDED:
        labels = test.labels.numpy()
        classes, sizes = np.unique(labels, return_counts=True)
        wanted = max(1, int(len(classes) * min(1.0, SAMPLED / (2 * dimension * sizes.sum()))))
        rows = rows[np.isin(labels, classes[np.arange(wanted) * len(classes) // wanted])]
    return all_embeddings(embeddings, test, rows)


def all_embeddings(embeddings: Tensor, test: RetrievedImages, rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Test embeddings, float32 (images, dimension), as float16, and their image numbers: of `rows`, or of all."""
    rows = np.arange(len(embeddings)) if rows is None else rows
    found = embeddings.cpu().numpy()[rows].astype(np.float16)
    return {"embedded": np.array(test.numbers, np.int32)[rows], "embeddings": found}


class TestImages:
    """The test images of a dataset, prepared for a recipe. They stay on the device if they fit."""

    def __init__(self, dataset: str, recipe: Recipe, workers: int, device: torch.device):
        self.test = read_retrieved(Path("data/splits") / dataset)
        self.recipe, self.device = recipe, device
        channels = outlined(recipe).channels
        packed = open_images(dataset, recipe)
        self.images: Tensor | CentredImages = test_images(packed, self.test.numbers, channels, recipe, workers, device)

    @property
    def retrieved(self) -> dict[str, int]:
        """The number of retrieved images and of their classes."""
        return {"images": len(self.test.numbers), "classes": len(self.test.labels.unique())}

    def pixels(self) -> Tensor:
        """The images themselves as embeddings: flattened, scaled to unit length, float32 (images, pixels)."""
        return normalize(torch.cat([part.flatten(1).float() for part in self.images.split(256)]).to(self.device))

    def embeddings(self, weights: Path) -> Tensor:
        """The embeddings of the network with the weights that a run kept, float32 (images, dimension)."""
        return embed(load_network(self.recipe, weights, self.device), self.images, self.recipe, self.device)

    def features(self, seed: int) -> Tensor:
        """The pooled features of the recipe's backbone before training, float32 (images, features)."""
        sampling.seed_torch(seed, "network")
        return embed(Features(initial_network(self.recipe).to(self.device)), self.images, self.recipe, self.device)


def evaluate_weights(
    images: TestImages, kept: dict[Path, int], seed: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The metrics of a run's weights, and the results of each query with the last of them. `kept` is file -> epoch. The
    metrics are given by the file's name without its ending. The same epoch is evaluated only once."""
    found: dict[str, Any] = {}
    results: dict[str, np.ndarray] = {}
    last = list(kept.values())[-1]
    for path, epoch in kept.items():
        same = [values for values in found.values() if values["epoch"] == epoch]
        if same:
            found[path.stem] = same[0]
            continue
        embeddings = images.embeddings(path)
        found[path.stem] = {"epoch": epoch} | metrics(embeddings, images.test, images.recipe, seed)
        if epoch == last:
            results = query_results(embeddings, images.test) | kept_embeddings(embeddings, images.test)
    return found, results


def evaluate_pixels(images: TestImages) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The metrics of the images themselves, without any training, and the results of each query."""
    pixels = images.pixels()
    return {"no_training": metrics(pixels, images.test, images.recipe, 0)}, query_results(pixels, images.test)


def evaluate_untrained(images: TestImages, seed: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The metrics of the features that the recipe's backbone gives before training, and the results of each query."""
    features = images.features(seed)
    found = query_results(features, images.test) | kept_embeddings(features, images.test)
    return {"no_training": metrics(features, images.test, images.recipe, seed)}, found


def evaluate_ensemble(
    images: TestImages, members: list[tuple[Path, Path]], rule: str, seed: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The metrics of several runs' concatenated embeddings, and the results of each query. For each run `members` has
    the path of its `queries.npz` and the path of its weights. The weights are used if not all embeddings were kept."""
    parts = []
    for queries, weights in members:
        with np.load(queries, allow_pickle=False) as kept:
            embeddings = kept["embeddings"] if len(kept["embedded"]) == len(images.test.numbers) else None
        if embeddings is None:
            # Rounded in the same way as kept embeddings.
            embeddings = images.embeddings(weights).cpu().numpy().astype(np.float16)
        parts.append(normalize(torch.from_numpy(embeddings).float()))
    together = normalize(torch.cat(parts, 1)).to(images.device)
    values: dict[str, Any] = {"members": len(parts)}
    return {rule: values | metrics(together, images.test, images.recipe, seed)}, query_results(together, images.test)


def held_out_retrieved(dataset: str) -> dict[str, int]:
    """The number of images, and of their classes, on which a run that chooses an epoch is evaluated."""
    held_out = read_retrieved(Path("data/splits") / dataset, held_out=True)
    return {"images": len(held_out.numbers), "classes": len(held_out.labels.unique())}


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by name as .npz, without compression, so that equal arrays give equal bytes with every version of
    zlib."""
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
