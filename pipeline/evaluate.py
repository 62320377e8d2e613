"""Stage: retrieval and clustering metrics of runs' kept weights on the test set, two JSON files a run.

Takes several runs at once because starting Python costs more than evaluating a small one. A run is a folder that the
train stage wrote. Its `<name>.json` holds the metrics, as fractions, of the weights at the best test epoch and at the
last (of a held-out run: at its only one), and the provenance of both training and evaluation; `<name>_retrievals.json`
the nearest neighbours of some queries at the last epoch. --raw-pixels evaluates the images themselves, scaled to unit
length.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.base import sampling
from pipeline.base.config import Recipe, read_params
from pipeline.base.files import BadInputError, exit_with, read_json, submodule, write_json
from pipeline.base.provenance import provenance
from pipeline.data.packed import Entry, PackedImages
from pipeline.metrics.clustering import clustering
from pipeline.metrics.limits import check_evaluation
from pipeline.metrics.retrieval import nearest, retrieval
from pipeline.networks.network import embed, load_network, prepare
from pipeline.runs.run import best_epoch, read_history
from pipeline.training.loading import RetrievedImages, read_retrieved, test_images

QUERIES_SHOWN, NEIGHBOURS_SHOWN = 32, 8


def metrics(embeddings: Tensor, test: RetrievedImages, recipe: Recipe, seed: int) -> dict[str, float]:
    """All metrics of test embeddings, float32 (images, dimension) of unit length, as fractions.

    Clusters are made of all images that are retrieved, queries and gallery together.
    """
    found = retrieval(**test.search(embeddings), ks=recipe.recall_at, counting=recipe.counting)
    return found | clustering(embeddings, test.labels, seed=seed, kmeans=recipe.kmeans)


def retrievals(embeddings: Tensor, test: RetrievedImages, entries: list[Entry]) -> list[dict[str, Any]]:
    """The nearest neighbours of a few queries, for pictures: the same queries in every run of a dataset.

    Each is {"query", "label", "nearest": [{"image", "label", "similarity", "hit"}, best first]}; an image is told by
    its name in the packed index.
    """
    search = test.search(embeddings)
    count, gallery = len(search["embeddings"]), search.get("gallery")
    chosen = torch.from_numpy(np.sort(sampling.order(0, 0, count)[:QUERIES_SHOWN]))
    found, similarities = nearest(search["embeddings"], chosen.to(embeddings.device), NEIGHBOURS_SHOWN, gallery=gallery)
    found += count if gallery is not None else 0

    def told(row: int) -> dict[str, Any]:
        entry = entries[test.numbers[row]]
        return {"image": entry.name, "label": entry.class_name}

    return [
        {
            "query": told(query)["image"],
            "label": told(query)["label"],
            "nearest": [
                told(row) | {"similarity": round(similarity, 6), "hit": bool(test.labels[row] == test.labels[query])}
                for row, similarity in zip(rows, of, strict=True)
            ],
        }
        for query, rows, of in zip(chosen.tolist(), found.tolist(), similarities.tolist(), strict=True)
    ]


def find_runs(folders: list[Path]) -> dict[Path, dict[str, Any]]:
    """The run.json of every run among `folders`, each a run's folder or one that holds some."""
    found: dict[Path, dict[str, Any]] = {}
    for folder in folders:
        runs = (
            [folder] if (folder / "run.json").is_file() else sorted(file.parent for file in folder.glob("*/run.json"))
        )
        if not runs:
            raise BadInputError(f"{folder} holds no run: run the train stage (`dvc repro`)")
        found |= {run: read_json(run / "run.json") for run in runs}
    told = {run: [trained["dataset"], trained["recipe"]] for run, trained in found.items()}
    first = next(iter(told))
    for run in told:
        if told[run] != told[first]:
            raise BadInputError(f"{run} and {first} differ in dataset or recipe: evaluate them apart")
    return found


def kept_weights(run: Path, trained: dict[str, Any]) -> dict[str, int]:
    """The names of the weights that a run kept, less `.pt`, and their epochs."""
    if trained["protocol"] == "held_out":
        return {"held_out": trained["epochs"]}
    if trained["protocol"] != "test":
        raise BadInputError(
            f"{run} chose an epoch on held-out classes and kept no weights: evaluate the run --until it"
        )
    return {"best_test_epoch": best_epoch(read_history(run / "history.jsonl")), "last_epoch": trained["epochs"]}


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="*", help="folders of runs of one dataset and recipe, or of one run")
    parser.add_argument("--raw-pixels", metavar="DATASET", help="evaluate this dataset's images themselves")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the file with machine and recipes")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON files")
    arguments = parser.parse_args()
    if bool(arguments.runs) == bool(arguments.raw_pixels):
        parser.error("give the folders of runs, or --raw-pixels and a dataset")

    start = time.monotonic()
    params = read_params(arguments.params, arguments.raw_pixels)
    runs = find_runs(arguments.runs) if arguments.runs else {}
    if runs:
        first = next(iter(runs.values()))
        dataset, recipe = first["dataset"], Recipe.model_validate(first["recipe"])
    else:
        dataset, recipe = arguments.raw_pixels, params.recipes[arguments.raw_pixels]
    device = prepare(recipe, params.machine.device)
    packed_folder = Path("data/packed") / dataset
    test = read_retrieved(Path("data/splits") / dataset)
    for seed in {run["seed"] for run in runs.values()} or {0}:
        check_evaluation(dataset, recipe, seed, test.labels.numpy(), test.queries)
    inputs = [packed_folder / "images.bin", packed_folder / "index.csv", *test.manifests]
    packed = PackedImages(packed_folder)
    channels = submodule("networks.backbones", recipe.backbone).Backbone.channels
    images = test_images(packed, test.numbers, channels, recipe, params.machine.workers)

    results: dict[str, dict[str, Any]] = {}
    shown: dict[str, list[dict[str, Any]]] = {}
    if not runs:
        pixels = normalize(torch.cat([part.flatten(1).float() for part in images.split(256)]).to(device))
        results["0"] = {"metrics": {"no_training": metrics(pixels, test, recipe, seed=0)}}
        shown["0"] = retrievals(pixels, test, packed.entries)
    for run, trained in runs.items():
        found: dict[str, dict[str, float]] = {}
        for selection, epoch in kept_weights(run, trained).items():
            if epoch in [other["epoch"] for other in found.values()]:
                found[selection] = found["best_test_epoch"]
                continue
            weights = run / f"{selection}.pt"
            network = load_network(recipe, weights, device)
            inputs.append(weights)
            embeddings = embed(network, images, recipe, device)
            found[selection] = {"epoch": epoch} | metrics(embeddings, test, recipe, trained["seed"])
        results[run.name] = {"run": trained, "metrics": found}
        shown[run.name] = retrievals(embeddings, test, packed.entries)
    retrieved = {"images": len(test.numbers), "classes": len(test.labels.unique())}
    made = provenance(device, inputs, time.monotonic() - start)
    for name, result in results.items():
        write_json(arguments.out / f"{name}_retrievals.json", shown[name])
        told = {"dataset": dataset, "retrieved": retrieved, **result, "provenance": made}
        write_json(arguments.out / f"{name}.json", told)


if __name__ == "__main__":
    exit_with(main)
