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

from pipeline import checkpoint, sampling
from pipeline.config import Recipe, read_params
from pipeline.files import BadInputError, exit_with, submodule, whole, write_json, write_text
from pipeline.freezing import set_trainable
from pipeline.loading import TrainingImages, decode, normalise, read_retrieved, read_training, training_batches
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


def kept(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a network's weights and buffers on the CPU."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}


def write_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write weights so that equal ones give equal bytes: torch writes a file's own name into it, a buffer has none."""
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    path.write_bytes(buffer.getvalue())


def train(
    params_file: Path, dataset: str, loss_name: str, seed: int, out: Path, device_name: str | None, workers: int | None
) -> None:
    """Run the training, or go on with it from its checkpoint, and write `out`; see the module's docstring."""
    start = time.monotonic()
    params = read_params(params_file, dataset, loss_name)
    recipe = params.recipes[dataset]
    device = prepare(recipe, device_name or params.machine.device)

    packed_folder, splits = Path("data/packed") / dataset, Path("data/splits") / dataset
    train_numbers, train_labels = read_training(splits / "train.csv")
    test = read_retrieved(splits)
    inputs = [packed_folder / "images.bin", packed_folder / "index.csv", splits / "train.csv", *test.manifests]
    if recipe.pretrained:
        inputs.append(Path("data/weights") / f"{recipe.backbone}.pth")
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
    optimiser = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimiser](
        [{"params": network.parameters()}, {"params": criterion.parameters()}],
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    packed = PackedImages(packed_folder)
    channels = network.backbone.channels
    train_images, test_images = decode(packed, train_numbers, channels), decode(packed, test.numbers, channels)
    steps = math.ceil(len(train_images) / recipe.batch_size)

    run = {
        "dataset": dataset,
        "loss": loss_name,
        "seed": seed,
        "recipe": recipe.model_dump(),
        "loss_settings": params.losses[loss_name],
    }
    made = provenance(device, inputs, 0)
    configuration = checkpoint.fingerprint([run, *(made[key] for key in ("code", "inputs", "versions")), str(device)])
    path = checkpoint.place(out)
    stateful = {"network": network, "criterion": criterion, "optimiser": optimiser}
    # All that the run has beside those: the epoch and the step that come next, and what lies behind.
    state: dict[str, Any] = {
        "epoch": 1,
        "step": 0,
        "step_losses": torch.empty(0),
        "history": [],
        "epoch_seconds": [],
        "best": -1.0,
        "best_weights": {},
    }

    def save() -> None:
        checkpoint.save(path, configuration, state | {name: part.state_dict() for name, part in stateful.items()})

    termination = checkpoint.Termination()
    with checkpoint.held(path):
        saved = checkpoint.load(path, configuration)
        if saved:
            for name, part in stateful.items():
                part.load_state_dict(saved.pop(name))
            state = saved
            if recipe.frozen_gradients == "zero":
                # As they were when the run was broken off: what has been trained has a gradient, be it of zeros.
                for parameter in optimiser.state:
                    parameter.grad = torch.zeros_like(parameter)
            print(f"{out}: goes on from epoch {state['epoch']}, step {state['step'] + 1}", file=sys.stderr)
        batches = iter(
            training_batches(
                TrainingImages(train_images, train_labels, recipe.shift, seed),
                recipe.batch_size,
                range(state["epoch"], recipe.epochs + 1),
                params.machine.workers if workers is None else workers,
                pin=device.type == "cuda",
                first_step=state["step"],
            )
        )
        for epoch in range(state["epoch"], recipe.epochs + 1):
            epoch_start = time.monotonic()
            rates = learning_rates(recipe, epoch)
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate
            set_trainable(network, recipe, epoch)
            step_losses = list(state["step_losses"].to(device))
            progress = tqdm(total=steps, initial=state["step"], desc=f"{out} epoch {epoch}", leave=False, disable=None)
            for step in range(state["step"] + 1, steps + 1):
                images, labels = next(batches)
                embeddings = network(normalise(images, recipe.mean, recipe.std, device))
                loss = criterion(embeddings, labels.to(device, non_blocking=True))
                optimiser.zero_grad(set_to_none=recipe.frozen_gradients == "none")
                loss.backward()
                optimiser.step()
                step_losses.append(loss.detach())
                progress.update()
                if step % CHECKED_EVERY == 0 or step == steps or termination.came:
                    check_finite(step_losses, epoch, rates)
                if termination.came:
                    state |= {"step": step, "step_losses": torch.stack(step_losses).cpu()}
                    save()
                    print(f"{out}: told to stop, saved at epoch {epoch}, step {step}; run it again", file=sys.stderr)
                    sys.exit(checkpoint.TERMINATED)
            progress.close()
            recall = recall_at_k(**test.search(embed(network, test_images, recipe, device)), ks=recipe.recall_at)
            mean = torch.stack(step_losses).double().mean().item()
            line = {"network_learning_rate": rates[0], "proxy_learning_rate": rates[1], "test": recall}
            state["history"].append({"epoch": epoch, "loss": mean, **line})
            if recall["recall@1"] > state["best"]:
                state |= {"best": recall["recall@1"], "best_weights": kept(network)}
            seconds = round(time.monotonic() - epoch_start, 3)
            state["epoch_seconds"].append(seconds)
            state |= {"epoch": epoch + 1, "step": 0, "step_losses": torch.empty(0)}
            save()
            print(
                f"{out} epoch {epoch}/{recipe.epochs}: loss {mean:.4f}, test Recall@1 {recall['recall@1']:.2%}, "
                f"{seconds:.1f} s ({len(train_images) / seconds:,.0f} images/s with the test)",
                file=sys.stderr,
            )

        with whole(out) as folder:
            folder.mkdir()
            write_weights(folder / "best_test_epoch.pt", state["best_weights"])
            write_weights(folder / "last_epoch.pt", kept(network))
            write_text(folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in state["history"]))
            made = provenance(device, inputs, time.monotonic() - start)
            write_json(folder / "run.json", {**run, "provenance": made, "epoch_seconds": state["epoch_seconds"]})
        path.unlink(missing_ok=True)


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
    try:
        train(
            arguments.params,
            arguments.dataset,
            arguments.loss,
            arguments.seed,
            arguments.out,
            arguments.device,
            arguments.workers,
        )
    except torch.cuda.OutOfMemoryError:
        recipe = read_params(arguments.params).recipes[arguments.dataset]
        free, total = torch.cuda.mem_get_info()
        raise BadInputError(
            f"{arguments.params}: recipes.{arguments.dataset}.batch_size: {recipe.batch_size} images with the network "
            f"{recipe.backbone} need more than the GPU has ({free / 2**30:.1f} of {total / 2**30:.1f} GiB are free): "
            "use a smaller batch or a smaller network, or stop what else runs there"
        ) from None


if __name__ == "__main__":
    exit_with(main)
