"""Stage: retrieval and clustering metrics of runs' kept weights on the test set, two JSON files a run.

Takes several runs at once because starting Python costs more than evaluating a small one. `<seed>.json` holds the
metrics, as fractions, of the weights at the best test epoch and at the last, and the provenance of both training and
evaluation; `<seed>_retrievals.json` the nearest neighbours of some queries at the last epoch. --raw-pixels evaluates
the images themselves, scaled to unit length.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pipeline import sampling
from pipeline.clustering import clustering
from pipeline.config import Recipe, read_params
from pipeline.files import BadInputError, exit_with, read_json, submodule, whole, write_json
from pipeline.loading import RetrievedImages, decode, read_retrieved
from pipeline.network import embed, load_network, prepare
from pipeline.packed import Entry, PackedImages
from pipeline.provenance import provenance
from pipeline.retrieval import nearest, retrieval

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


def best_epoch(history: Path) -> int:
    """The first epoch of highest Recall@1 on the test set, counted from 1."""
    try:
        lines = [json.loads(line) for line in history.read_text().splitlines()]
    except FileNotFoundError:
        raise BadInputError(f"{history} is missing: run the train stage (`dvc repro`)") from None
    return max(lines, key=lambda line: line["test"]["recall@1"])["epoch"]


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the file of recipes")
    parser.add_argument("--dataset", required=True, help="its recipe in the params file, its data under data/")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--runs", type=Path, help="folder of one loss's runs: those of table.seeds are evaluated")
    what.add_argument("--raw-pixels", action="store_true", help="evaluate the images themselves")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON files")
    arguments = parser.parse_args()

    start = time.monotonic()
    params = read_params(arguments.params, arguments.dataset)
    recipe = params.recipes[arguments.dataset]
    device = prepare(recipe, params.machine.device)
    packed_folder = Path("data/packed") / arguments.dataset
    test = read_retrieved(Path("data/splits") / arguments.dataset)
    inputs = [packed_folder / "images.bin", packed_folder / "index.csv", *test.manifests]
    packed = PackedImages(packed_folder)
    images = decode(packed, test.numbers, submodule("backbones", recipe.backbone).Backbone.channels)

    results: dict[str, dict[str, Any]] = {}
    shown: dict[str, list[dict[str, Any]]] = {}
    if arguments.raw_pixels:
        pixels = normalize(images.flatten(1).float().to(device))
        results["0"] = {"metrics": {"no_training": metrics(pixels, test, recipe, seed=0)}}
        shown["0"] = retrievals(pixels, test, packed.entries)
    for seed in () if arguments.raw_pixels else params.table.seeds:
        run = arguments.runs / str(seed)
        trained = read_json(run / "run.json")
        kept = {"best_test_epoch": best_epoch(run / "history.jsonl"), "last_epoch": recipe.epochs}
        found: dict[str, dict[str, float]] = {}
        for selection, epoch in kept.items():
            if epoch in [other["epoch"] for other in found.values()]:
                found[selection] = found["best_test_epoch"]
                continue
            weights = run / f"{selection}.pt"
            network = load_network(recipe, weights, device)
            inputs.append(weights)
            embeddings = embed(network, images, recipe, device)
            found[selection] = {"epoch": epoch} | metrics(embeddings, test, recipe, seed)
        results[str(seed)] = {"run": trained, "metrics": found}
        shown[str(seed)] = retrievals(embeddings, test, packed.entries)
    with whole(arguments.out) as folder:
        folder.mkdir()
        made = provenance(device, inputs, time.monotonic() - start)
        for name, result in results.items():
            write_json(folder / f"{name}.json", {"dataset": arguments.dataset, **result, "provenance": made})
            write_json(folder / f"{name}_retrievals.json", shown[name])


if __name__ == "__main__":
    exit_with(main)
