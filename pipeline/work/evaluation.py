"""Metrics of embeddings of the test images, and the results of each query, for pictures and tables of queries.

`queries.npz` holds for every query, in the order of its manifest:

- `query`: its image number in the packed index, int32 (queries,);
- `nearest`: the image numbers of the nearest images, int32 (queries, 8), best first, -1 if there are fewer;
- `similarity`: their similarities, float32 (queries, 8);
- `first_hit`: how many irrelevant images come before the first relevant one, int32, -1 without a relevant one;
- `average_precision`: average precision at R, float32, NaN if R is 0.

If the recipe has the metric other_groups, it also holds for every query `nearest_in_others`, `similarity_in_others` and
`first_hit_in_others`: the same as the three above, where images of the query's group are left out.

For the classes of the queries it holds:

- `label`: their labels, int32 (classes,);
- `recall`: their Recall@1, float32 (classes,);
- `queries`: the number of their queries, int32 (classes,);
- `confused`: the `CONFUSED` most frequent pairs of different labels, int32 (pairs, 3): the label of queries, the label
  of their nearest image, and the number of such queries.

For a network it also holds:

- `embedded`: image numbers, int32 (images,);
- `embeddings`: their embeddings, float16 (images, dimension): of all retrieved images if these take at most `EMBEDDED`
  bytes, otherwise of whole classes, evenly spaced, that take `SAMPLED` bytes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.base import sampling
from pipeline.base.choices import chosen
from pipeline.base.config import Recipe
from pipeline.data.groups import read_groups
from pipeline.metrics.found import Found
from pipeline.metrics.ranks import NEVER
from pipeline.metrics.retrieval import nearest, per_query
from pipeline.networks.network import Features, initial_network, load_network, outlined
from pipeline.training.embedding import embed
from pipeline.training.loading import CentredImages, RetrievedImages, read_retrieved, test_images
from pipeline.training.memory import Memory
from pipeline.training.shrunk import open_images

NEIGHBOURS = 8
CONFUSED = 64
EMBEDDED, SAMPLED = 2**23, 2**21
"""8 MiB are enough for the test images of CUB and Cars in 512 dimensions. With 2 MiB of embeddings SOP's file has 7
MB."""


def found_by(embeddings: Tensor, test: RetrievedImages, recipe: Recipe, seed: int, groups: Tensor | None) -> Found:
    """What a search of test embeddings finds: what the metrics read."""
    return Found(embeddings, test.labels, test.search(embeddings), recipe.recall_at, seed, groups)


def metrics(
    embeddings: Tensor, test: RetrievedImages, recipe: Recipe, seed: int, groups: Tensor | None = None
) -> dict[str, float]:
    """The recipe's metrics of test embeddings, float32 (images, dimension) of unit length, as fractions. `groups`
    (images,) int64 are the images' groups, if the dataset has groups.

    Clusters are made from all retrieved images, queries and gallery together.
    """
    found = found_by(embeddings, test, recipe, seed, groups)
    values: dict[str, float] = {}
    for name, settings in recipe.metrics_by_name():
        values |= chosen("metric", name)(found, **settings)
    return values


def nearest_images(
    search: dict[str, Tensor], test: RetrievedImages, left_out: Callable[[Tensor], Tensor] | None = None
) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """The numbers of each query's nearest images, int32 (queries, `NEIGHBOURS`), -1 if there are fewer, their
    similarities, float32, and the places of the nearest ones among what is searched. `left_out` is as in
    `retrieval.nearest`."""
    count, gallery = len(search["embeddings"]), search.get("gallery")
    rows = torch.arange(count, device=search["embeddings"].device)
    found, similarities = nearest(search["embeddings"], rows, NEIGHBOURS, gallery=gallery, left_out=left_out)
    numbers = np.array(test.numbers, np.int32)[0 if gallery is None else count :]
    places = found.cpu().numpy()
    neighbours = np.full((count, NEIGHBOURS), -1, np.int32)
    neighbours[:, : places.shape[1]] = np.where(places < 0, -1, numbers[places])
    nearness = np.zeros((count, NEIGHBOURS), np.float32)
    nearness[:, : places.shape[1]] = np.where(places < 0, 0, similarities.cpu().numpy())
    return neighbours, nearness, found[:, 0]


def results_in_others(
    embeddings: Tensor, test: RetrievedImages, recipe: Recipe, groups: Tensor | None
) -> dict[str, np.ndarray]:
    """The arrays of `queries.npz` for the search in other groups, if the recipe has the metric other_groups."""
    settings = dict(recipe.metrics_by_name()).get("other_groups")
    if settings is None:
        return {}
    found = found_by(embeddings, test, recipe, 0, groups)
    first, _, _ = found.ranks_in_others(settings["left_out"])
    neighbours, nearness, _ = nearest_images(found.search, test, found.in_groups(settings["left_out"]).left_out)
    return {
        "nearest_in_others": neighbours,
        "similarity_in_others": nearness,
        "first_hit_in_others": torch.where(first == NEVER, -1, first).cpu().numpy().astype(np.int32),
    }


def query_results(embeddings: Tensor, test: RetrievedImages) -> dict[str, np.ndarray]:
    """The arrays of `queries.npz` except for embeddings and for other groups, computed from test embeddings, float32
    (images, dimension)."""
    search = test.search(embeddings)
    count, gallery = len(search["embeddings"]), search.get("gallery")
    first, average_precision, _ = per_query(
        search["embeddings"], search["labels"], gallery, search.get("gallery_labels"), "exact"
    )
    neighbours, nearness, found = nearest_images(search, test)
    labels = test.labels.numpy()
    nearest_labels = labels[found.cpu().numpy() + (count if gallery is not None else 0)]
    return {
        "query": np.array(test.numbers, np.int32)[:count],
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
        "queries": np.bincount(group).astype(np.int32),
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


def numbered(names: list[str]) -> Tensor:
    """Names as numbers, int64 (names,): the same number for the same name."""
    return torch.from_numpy(np.unique(names, return_inverse=True)[1])


class TestImages:
    """The test images of a dataset, prepared for a recipe. They stay on the device if they fit."""

    def __init__(self, dataset: str, recipe: Recipe, workers: int, device: torch.device, shared_by: int = 1):
        self.test = read_retrieved(Path("data/splits") / dataset)
        self.recipe, self.device = recipe, device
        channels = outlined(recipe).channels
        packed = open_images(dataset, recipe)
        memory = Memory(device, shared_by)
        names = read_groups(packed.folder)
        self.groups = None if names is None else numbered([names[number] for number in self.test.numbers])
        self.images: Tensor | CentredImages = test_images(packed, self.test.numbers, channels, recipe, workers, memory)

    def metrics(self, embeddings: Tensor, seed: int) -> dict[str, float]:
        """The recipe's metrics of embeddings, float32 (images, dimension), as fractions."""
        return metrics(embeddings, self.test, self.recipe, seed, self.groups)

    def results(self, embeddings: Tensor) -> dict[str, np.ndarray]:
        """The arrays of `queries.npz`, except for kept embeddings."""
        others = results_in_others(embeddings, self.test, self.recipe, self.groups)
        return query_results(embeddings, self.test) | others

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
        found[path.stem] = {"epoch": epoch} | images.metrics(embeddings, seed)
        if epoch == last:
            results = images.results(embeddings) | kept_embeddings(embeddings, images.test)
    return found, results


def evaluate_pixels(images: TestImages) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The metrics of the images themselves, without any training, and the results of each query."""
    pixels = images.pixels()
    return {"no_training": images.metrics(pixels, 0)}, images.results(pixels)


def evaluate_untrained(images: TestImages, seed: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The metrics of the features that the recipe's backbone gives before training, and the results of each query."""
    features = images.features(seed)
    found = images.results(features) | kept_embeddings(features, images.test)
    return {"no_training": images.metrics(features, seed)}, found


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
    return {rule: values | images.metrics(together, seed)}, images.results(together)


def held_out_retrieved(manifest: Path) -> dict[str, int]:
    """The number of images, and of their classes, on which a run that chooses an epoch is evaluated."""
    held_out = read_retrieved(manifest.parent, manifest)
    return {"images": len(held_out.numbers), "classes": len(held_out.labels.unique())}
