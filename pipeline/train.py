"""Stage: train one network with one loss and one seed, and keep its weights at the best test epoch and the last.

Writes into --out: `best_test_epoch.pt` and `last_epoch.pt` (state dicts), `history.jsonl` (one line an epoch: mean
loss, learning rates, Recall@K on the test set; the same bytes again on a rerun), `run.json` (what was run, on what
machine, how long).
"""

import argparse
import io
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipeline import sampling
from pipeline.config import Recipe, read_params
from pipeline.files import BadInputError, exit_with, submodule, whole, write_json, write_text
from pipeline.freezing import set_trainable
from pipeline.loading import TrainingImages, decode, normalise, numbers_and_labels, training_batches
from pipeline.network import embed, initial_network, prepare
from pipeline.packed import PackedImages
from pipeline.provenance import provenance
from pipeline.retrieval import recall_at_k

CHECKED_EVERY = 50
"""Steps between looks at the losses: each look waits for the GPU."""


def learning_rates(recipe: Recipe, epoch: int) -> tuple[float, float]:
    """The network's and the proxies' learning rate in an epoch, counted from 1."""
    factor = recipe.decay_factor ** sum(epoch >= decay for decay in recipe.decay_epochs)
    return recipe.network_learning_rate * factor, recipe.proxy_learning_rate * factor


def build_loss(name: str, settings: dict[str, Any], classes: int, dimension: int, params: Path) -> torch.nn.Module:
    """The loss with its settings; a combination that it refuses is bad input."""
    try:
        return submodule("losses", name).Loss(classes, dimension, **settings)
    except ValueError as error:
        raise BadInputError(f"{params}: losses.{name}: {error}") from None


def check_finite(losses: list[torch.Tensor], epoch: int, rates: tuple[float, float]) -> None:
    """Raise `FloatingPointError` if one of an epoch's losses so far is NaN or infinite."""
    values = torch.stack(losses).double().cpu()
    if not values.isfinite().all():
        step = int((~values.isfinite()).int().argmax())
        last = f"the last finite loss is {values[step - 1].item()}" if step else "it is the epoch's first"
        raise FloatingPointError(
            f"the loss is {values[step].item()} at epoch {epoch}, step {step + 1}, with a learning rate of {rates[0]} "
            f"for the network and {rates[1]} for the proxies; {last}"
        )


def _state_bytes(network: torch.nn.Module) -> bytes:
    buffer = io.BytesIO()  # torch writes a file's own name into it, so every file is written under the same one
    torch.save({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, buffer)
    return buffer.getvalue()


def train(
    params_file: Path, dataset: str, loss_name: str, seed: int, out: Path, device_name: str | None, workers: int | None
) -> None:
    """Run the training and write `out`; see the module's docstring."""
    start = time.monotonic()
    params = read_params(params_file, dataset, loss_name)
    recipe = params.recipes[dataset]
    device = prepare(recipe, device_name or params.machine.device)

    packed_folder, splits = Path("data/packed") / dataset, Path("data/splits") / dataset
    inputs = [packed_folder / "images.bin", packed_folder / "index.csv", splits / "train.csv", splits / "test.csv"]
    if recipe.pretrained:
        inputs.append(Path("data/weights") / f"{recipe.backbone}.pth")
    train_numbers, train_labels = numbers_and_labels(splits / "train.csv")
    test_numbers, test_labels = numbers_and_labels(splits / "test.csv")
    if recipe.batch_size > len(train_numbers):
        raise BadInputError(
            f"{params_file}: recipes.{dataset}.batch_size: {recipe.batch_size} is more than the {len(train_numbers)} "
            f"images of {splits / 'train.csv'}, use a smaller batch"
        )
    sampling.seed_torch(seed, "network")
    network = initial_network(recipe).to(device)
    sampling.seed_torch(seed, "proxies")
    classes = int(train_labels.max()) + 1
    criterion = build_loss(loss_name, params.losses[loss_name], classes, recipe.dimension, params_file).to(device)

    packed = PackedImages(packed_folder)
    channels = network.backbone.channels
    train_images, test_images = decode(packed, train_numbers, channels), decode(packed, test_numbers, channels)
    test_labels = test_labels.to(device)
    optimiser = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimiser](
        [{"params": network.parameters()}, {"params": criterion.parameters()}],
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    batches = iter(
        training_batches(
            TrainingImages(train_images, train_labels, recipe.shift, seed),
            recipe.batch_size,
            range(1, recipe.epochs + 1),
            params.machine.workers if workers is None else workers,
            pin=device.type == "cuda",
        )
    )
    steps = math.ceil(len(train_images) / recipe.batch_size)
    history: list[dict[str, Any]] = []
    epoch_seconds, best, best_weights = [], -1.0, b""
    for epoch in range(1, recipe.epochs + 1):
        epoch_start = time.monotonic()
        rates = learning_rates(recipe, epoch)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate
        set_trainable(network, recipe, epoch)
        step_losses = []
        for _ in tqdm(range(steps), f"{out.name} epoch {epoch}/{recipe.epochs}", leave=False, disable=None):
            images, labels = next(batches)
            embeddings = network(normalise(images, recipe.mean, recipe.std, device))
            loss = criterion(embeddings, labels.to(device, non_blocking=True))
            optimiser.zero_grad(set_to_none=recipe.frozen_gradients == "none")
            loss.backward()
            optimiser.step()
            step_losses.append(loss.detach())
            if len(step_losses) % CHECKED_EVERY == 0 or len(step_losses) == steps:
                check_finite(step_losses, epoch, rates)
        values = torch.stack(step_losses).double().cpu()
        recall = recall_at_k(embed(network, test_images, recipe, device), test_labels, recipe.recall_at)
        history.append(
            {
                "epoch": epoch,
                "loss": values.mean().item(),
                "network_learning_rate": rates[0],
                "proxy_learning_rate": rates[1],
                "test": recall,
            }
        )
        if recall["recall@1"] > best:
            best, best_weights = recall["recall@1"], _state_bytes(network)
        epoch_seconds.append(round(time.monotonic() - epoch_start, 3))
        rate = len(train_images) / epoch_seconds[-1]
        print(
            f"{out.name} epoch {epoch}/{recipe.epochs}: loss {history[-1]['loss']:.4f}, test Recall@1 "
            f"{recall['recall@1']:.2%}, {epoch_seconds[-1]:.1f} s ({rate:,.0f} images/s with the test)",
            file=sys.stderr,
        )

    with whole(out) as folder:
        folder.mkdir()
        (folder / "best_test_epoch.pt").write_bytes(best_weights)
        (folder / "last_epoch.pt").write_bytes(_state_bytes(network))
        write_text(folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in history))
        write_json(
            folder / "run.json",
            {
                "dataset": dataset,
                "loss": loss_name,
                "seed": seed,
                "recipe": recipe.model_dump(),
                "loss_settings": params.losses[loss_name],
                "provenance": provenance(device, inputs, time.monotonic() - start),
                "epoch_seconds": epoch_seconds,
            },
        )


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the file of recipes and losses")
    parser.add_argument("--dataset", required=True, help="its recipe in the params file, its data under data/")
    parser.add_argument("--loss", required=True, help="a file of pipeline/losses with settings in the params file")
    parser.add_argument("--seed", type=int, required=True, help="decides everything random in the run")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the history")
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], help="in place of the params file's machine.device"
    )
    parser.add_argument("--workers", type=int, help="in place of the params file's machine.workers")
    arguments = parser.parse_args()
    train(
        arguments.params,
        arguments.dataset,
        arguments.loss,
        arguments.seed,
        arguments.out,
        arguments.device,
        arguments.workers,
    )


if __name__ == "__main__":
    exit_with(main)
