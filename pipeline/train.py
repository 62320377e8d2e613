"""Stage: train one network with one loss and one seed, and keep its weights at the best test epoch and the last.

Writes into --out: `best_test_epoch.pt` and `last_epoch.pt` (state dicts), `history.jsonl` (one line an epoch: mean
loss, learning rates, Recall@K where the recipe evaluates; the same bytes again on a rerun), `run.json` (what was run,
on what machine, how long).

The held-out protocol is two runs. With --held-out it trains on one half of the training classes and looks at the other
half in place of the test set; only history and run.json are kept. With --until HISTORY, a run on all training classes
ends after the epoch that was best there and keeps `held_out.pt`; it never looks at the test set.
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

from pipeline.base import sampling
from pipeline.base.config import Params, Recipe, read_params
from pipeline.base.files import BadInputError, exit_with, submodule, whole, write_json, write_text
from pipeline.base.provenance import provenance
from pipeline.data.packed import PackedImages
from pipeline.metrics.limits import check_evaluation
from pipeline.metrics.retrieval import recall_at_k
from pipeline.networks.freezing import set_trainable
from pipeline.networks.network import computing, embed, initial_network, prepare
from pipeline.runs.run import Run, last_epoch, plan_batches
from pipeline.training import checkpoint
from pipeline.training.images import normalise
from pipeline.training.loading import read_retrieved, read_training, test_images, training_batches, training_images

CHECKED_EVERY = 50
"""Steps between looks at the losses: each look waits for the GPU."""


def learning_rates(recipe: Recipe, epoch: int) -> tuple[float, float]:
    """The network's and the proxies' learning rate in an epoch, counted from 1."""
    factor = recipe.decay_factor ** recipe.decays(epoch)
    return recipe.network_learning_rate * factor, recipe.proxy_learning_rate * factor


def build_loss(params: Params, name: str, classes: int, dimension: int, file: Path) -> torch.nn.Module:
    """The loss of an entry of `losses`; a combination of settings that it refuses is bad input."""
    module, settings = params.loss(name)
    try:
        return submodule("losses", module).Loss(classes, dimension, **settings)
    except ValueError as error:
        raise BadInputError(f"{file}: losses.{name}: {error}") from None


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


def train(run: Run) -> None:
    """Run the training, or go on with it from its checkpoint, and write `run.out`; see the module's docstring."""
    start = time.monotonic()
    out, seed, recipe_name = run.out, run.seed, run.recipe or run.dataset
    params = read_params(run.params, recipe_name, run.loss, run.set)
    recipe = params.recipes[recipe_name]
    device = prepare(recipe, run.device or params.machine.device)
    workers = params.machine.workers if run.workers is None else run.workers
    epochs = last_epoch(run, recipe)

    packed_folder, splits = Path("data/packed") / run.dataset, Path("data/splits") / run.dataset
    train_numbers, train_labels = read_training(run.manifest)
    inputs = [packed_folder / "images.bin", packed_folder / "index.csv", run.manifest]
    test = None if run.until else read_retrieved(splits, run.held_out)
    if test and not run.held_out:
        check_evaluation(f"{run.params}: recipes.{recipe_name}", recipe, seed, test.labels.numpy(), test.queries)
    inputs += [run.until] if run.until else []
    inputs += test.manifests if test else []
    if recipe.pretrained:
        inputs.append(Path("data/weights") / f"{recipe.backbone}.pth")
    batches = plan_batches(run, recipe, train_labels)
    sampling.seed_torch(seed, "network")
    network = initial_network(recipe).to(device)
    sampling.seed_torch(seed, "proxies")
    classes = int(train_labels.max()) + 1
    criterion = build_loss(params, run.loss, classes, recipe.dimension, run.params).to(device)
    optimiser = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimiser](
        [{"params": network.parameters()}, {"params": criterion.parameters()}],
        eps=recipe.epsilon,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    packed = PackedImages(packed_folder)
    channels = network.backbone.channels
    images = training_images(packed, train_numbers, train_labels, channels, recipe, seed)
    searched = test_images(packed, test.numbers, channels, recipe, workers) if test else None

    told = run.settled(params) | {"epochs": epochs, "images": len(train_numbers), "classes": classes}
    made = provenance(device, inputs, 0)
    configuration = checkpoint.fingerprint([told, *(made[key] for key in ("code", "inputs", "versions")), str(device)])
    path = checkpoint.place(out)
    trained = [*network.parameters(), *criterion.parameters()]
    stateful = {"network": network, "criterion": criterion, "optimiser": optimiser}
    # All that the run has beside those: the epoch and the step that come next, and what lies behind.
    state: dict[str, Any] = {
        "epoch": 1,
        "step": 0,
        "step_losses": torch.empty(0),
        "history": [],
        "epoch_seconds": [],
        "images_per_second": [],
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
        loader = iter(
            training_batches(
                images,
                batches,
                range(state["epoch"], epochs + 1),
                workers,
                pin=device.type == "cuda",
                first_step=state["step"],
            )
        )
        for epoch in range(state["epoch"], epochs + 1):
            epoch_start, seen = time.monotonic(), 0
            rates = learning_rates(recipe, epoch)
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate
            set_trainable(network, recipe, epoch)
            step_losses = list(state["step_losses"].to(device))
            progress = tqdm(
                total=batches.steps, initial=state["step"], desc=f"{out} epoch {epoch}", leave=False, disable=None
            )
            for step in range(state["step"] + 1, batches.steps + 1):
                pixels, labels = next(loader)
                with computing(recipe):
                    embeddings = network(normalise(pixels, recipe, device))
                # Cut off from the network, so that the loss's own backward pass is in float32 whatever the precision.
                ends = embeddings.detach().requires_grad_()
                loss = criterion(ends, labels.to(device, non_blocking=True))
                optimiser.zero_grad(set_to_none=recipe.frozen_gradients == "none")
                loss.backward()
                with computing(recipe):
                    embeddings.backward(ends.grad)
                if recipe.clip_value:
                    torch.nn.utils.clip_grad_value_(trained, recipe.clip_value)
                optimiser.step()
                seen += len(labels)
                step_losses.append(loss.detach())
                progress.update()
                if step % CHECKED_EVERY == 0 or step == batches.steps or termination.came:
                    check_finite(step_losses, epoch, rates)
                if termination.came:
                    state |= {"step": step, "step_losses": torch.stack(step_losses).cpu()}
                    save()
                    print(f"{out}: told to stop, saved at epoch {epoch}, step {step}; run it again", file=sys.stderr)
                    sys.exit(checkpoint.TERMINATED)
            progress.close()
            train_seconds = time.monotonic() - epoch_start
            mean = torch.stack(step_losses).double().mean().item()
            rates_told = {"network_learning_rate": rates[0], "proxy_learning_rate": rates[1]}
            line: dict[str, Any] = {"epoch": epoch, "loss": mean} | rates_told
            result = ""
            if test and searched is not None and (recipe.evaluates(epoch) or epoch == epochs):
                recall = recall_at_k(**test.search(embed(network, searched, recipe, device)), ks=recipe.recall_at)
                line["recall"] = recall
                result = f", {'held-out' if run.held_out else 'test'} Recall@1 {recall['recall@1']:.2%}"
                if recall["recall@1"] > state["best"]:
                    state |= {"best": recall["recall@1"], "best_weights": kept(network)}
            state["history"].append(line)
            seconds = time.monotonic() - epoch_start
            speed = seen / train_seconds if seen else math.nan
            state["epoch_seconds"].append(round(seconds, 3))
            state["images_per_second"].append(round(speed, 1))
            state |= {"epoch": epoch + 1, "step": 0, "step_losses": torch.empty(0)}
            save()
            left = seconds * (epochs - epoch)
            print(
                f"{out} epoch {epoch}/{epochs}: loss {mean:.4f}{result}, {seconds:.1f} s ({speed:,.0f} images/s), "
                f"{tqdm.format_interval(left)} left",
                file=sys.stderr,
            )

        weights = {"best_test_epoch": state["best_weights"], "last_epoch": kept(network)}
        if run.held_out or run.until:
            weights = {"held_out": kept(network)} if run.until else {}
        with whole(out) as folder:
            folder.mkdir()
            for name, values in weights.items():
                write_weights(folder / f"{name}.pt", values)
            write_text(folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in state["history"]))
            speeds = {key: state[key] for key in ("epoch_seconds", "images_per_second")}
            made = provenance(device, inputs, time.monotonic() - start)
            write_json(folder / "run.json", {**told, "provenance": made, **speeds})
        path.unlink(missing_ok=True)


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the file of recipes and losses")
    parser.add_argument("--dataset", required=True, help="its data lies under data/")
    parser.add_argument("--recipe", help="an entry of recipes; the one named like the dataset if not given")
    parser.add_argument("--loss", required=True, help="an entry of losses")
    parser.add_argument("--seed", type=int, required=True, help="decides everything random in the run")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the history")
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="recipe.KEY=VALUE", help="or loss.KEY=VALUE, for once"
    )
    subset = parser.add_mutually_exclusive_group()
    subset.add_argument("--partial", type=float, metavar="RATE", help="train on this share of each class's images")
    subset.add_argument("--imbalanced", type=int, metavar="GAMMA", help="train on classes of long-tailed sizes")
    subset.add_argument("--held-out", action="store_true", help="choose the epoch on held-out training classes")
    parser.add_argument("--until", type=Path, metavar="HISTORY", help="end after the best epoch of this history.jsonl")
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], help="in place of the params file's machine.device"
    )
    parser.add_argument("--workers", type=int, help="in place of the params file's machine.workers")
    run = Run(**vars(parser.parse_args()))
    if run.held_out and run.until:
        parser.error("--held-out chooses the epoch that --until ends with: give one of them")
    try:
        train(run)
    except torch.cuda.OutOfMemoryError:
        name = run.recipe or run.dataset
        recipe = read_params(run.params).recipes[name]
        free, total = torch.cuda.mem_get_info()
        raise BadInputError(
            f"{run.params}: recipes.{name}.batch_size: {recipe.batch_size} images with the network "
            f"{recipe.backbone} need more than the GPU has ({free / 2**30:.1f} of {total / 2**30:.1f} GiB are free): "
            "use a smaller batch or a smaller network, or stop what else runs there"
        ) from None


if __name__ == "__main__":
    exit_with(main)
