"""Stage: retrieval and clustering metrics of runs' kept weights on the test set, one JSON a run.

Takes several runs at once because starting Python costs more than evaluating a small one. Each JSON holds the metrics,
as fractions, of the weights at the best test epoch and at the last, the history's choice of the former, and the
provenance of both training and evaluation. --raw-pixels evaluates the images themselves, scaled to unit length.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from pipeline.clustering import clustering
from pipeline.config import Recipe, read_params
from pipeline.files import BadInputError, exit_with, read_json, submodule, whole, write_json
from pipeline.loading import decode, numbers_and_labels
from pipeline.network import embed, load_network, prepare
from pipeline.packed import PackedImages
from pipeline.provenance import provenance
from pipeline.retrieval import retrieval


def metrics(embeddings: Tensor, labels: Tensor, recipe: Recipe, seed: int) -> dict[str, float]:
    """All metrics of test embeddings, float32 (images, dimension) of unit length, as fractions."""
    return retrieval(embeddings, labels, recipe.recall_at) | clustering(
        embeddings, labels, seed=seed, kmeans=recipe.kmeans
    )


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
    manifest = Path("data/splits") / arguments.dataset / "test.csv"
    inputs = [packed_folder / "images.bin", packed_folder / "index.csv", manifest]
    numbers, labels = numbers_and_labels(manifest)
    channels = submodule("backbones", recipe.backbone).Backbone.channels
    images, labels = decode(PackedImages(packed_folder), numbers, channels), labels.to(device)

    results: dict[str, dict[str, Any]] = {}
    if arguments.raw_pixels:
        pixels = normalize(images.flatten(1).float().to(device))
        results["0"] = {"metrics": {"no_training": metrics(pixels, labels, recipe, seed=0)}}
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
            found[selection] = {"epoch": epoch} | metrics(embeddings, labels, recipe, seed)
        results[str(seed)] = {"run": trained, "metrics": found}
    with whole(arguments.out) as folder:
        folder.mkdir()
        made = provenance(device, inputs, time.monotonic() - start)
        for name, result in results.items():
            write_json(folder / f"{name}.json", {"dataset": arguments.dataset, **result, "provenance": made})


if __name__ == "__main__":
    exit_with(main)
