"""Check a loss before days are spent on it. Prints one line for each check, ok or fail; the exit code is 1 if one
fails.

The checks are:

- gradients: equal to finite differences in float64;
- bfloat16 and extremes: loss and gradients are finite in bfloat16 and for the hardest batches;
- order of a batch: any order gives the same (for a loss that draws at random, the mean of many draws is compared);
- the same again: the same bits are computed again, also after resuming from the loss's state;
- cost: a step at CUB's and at SOP's size takes at most ten times the time and memory of Proxy-Anchor.

The loss is an entry of a params file and is checked with its settings there.
"""

import argparse
import copy
import os
import statistics
import sys
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile

from pipeline.base.command import exit_with
from pipeline.base.config import read_params
from pipeline.losses import proxy_anchor
from pipeline.training.parts import build_loss
from pipeline.training.step import scalar

CLASSES, DIMENSION = 100, 16
"""For all checks except cost: CUB's number of classes, and embeddings short enough for finite differences."""
SIZES = {"CUB": (100, 27, 3), "SOP": (11318, 40, 2)}
"""The number of classes, the classes in a batch and the samples of each, as in Proxy-AN. Embeddings have 512
dimensions."""
COST_LIMIT = 10
"""A step of the loss may take this many times the time and memory of Proxy-Anchor. ResNet-50's step takes hundreds of
times as much."""
TURNS, PATIENCE = 8, 10
"""The number of steps that are timed, including a first one that is not counted, and the seconds after which two steps
are enough."""
ENTRIES, STEP, TOLERANCE = 200, 1e-6, 1e-5
"""The number of entries of each tensor that are moved by plus and minus STEP, and the largest allowed error as a share
of the largest gradient."""
DRAWS, STANDARD_ERRORS = 400, 5
"""A loss that draws at random is called DRAWS times, and its mean may change by this many standard errors."""

Build = Callable[[], nn.Module]
"""Builds the loss in float32, with proxies drawn from torch's generator."""


def batch(classes: int, samples: int, of: int, dimension: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Unit-length embeddings, float64 (classes * samples, dimension), loosely clustered by class, and their labels,
    int64 (classes * samples,) below `of`."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randperm(of, generator=generator)[:classes].repeat_interleave(samples)
    centres = torch.randn(of, dimension, generator=generator, dtype=torch.float64)[labels]
    noise = torch.randn(len(labels), dimension, generator=generator, dtype=torch.float64)
    return normalize(centres + noise).to(device), labels.to(device)


class Tried:
    """A loss that is called on batches again and again, each time from the state in which it was built."""

    def __init__(self, build: Build, dtype: torch.dtype = torch.float64):
        torch.manual_seed(0)
        self.criterion, self.dtype = build().to(dtype), dtype
        learned = dict(self.criterion.named_parameters())
        self.rest = copy.deepcopy({name: of for name, of in self.criterion.state_dict().items() if name not in learned})

    def rewind(self) -> None:
        """Restore the state before any call, except for the parameters."""
        self.criterion.load_state_dict(self.rest, strict=False)
        torch.manual_seed(0)

    def value(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, as in a first call."""
        self.rewind()
        loss: Tensor = self.criterion(embeddings, labels)
        return loss

    def gradients(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss of a batch as `value`, the gradient of the embeddings as `embeddings`, and the gradients of the
        parameters by their names."""
        leaf = embeddings.detach().to(self.dtype).requires_grad_()
        self.criterion.zero_grad()
        value = scalar(self.value(leaf, labels), self.criterion)
        value.backward()
        leaves = {"embeddings": leaf, **dict(self.criterion.named_parameters())}
        return {"value": value.detach()} | {name: of.grad for name, of in leaves.items() if of.grad is not None}


def check_gradients(build: Build, device: torch.device) -> tuple[bool, str]:
    """Compare gradients with central finite differences in float64, for entries drawn at random."""
    tried = Tried(build)
    embeddings, labels = batch(8, 3, CLASSES, DIMENSION, device)
    gradients = tried.gradients(embeddings, labels)
    tensors = {"embeddings": embeddings, **{name: of.data for name, of in tried.criterion.named_parameters()}}
    worst = (0.0, "")
    for name, tensor in tensors.items():
        gradient = gradients.get(name, torch.zeros_like(tensor)).flatten()
        flat = tensor.view(-1)
        scale = gradient.abs().max().item() or 1.0
        for entry in torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))[:ENTRIES].tolist():
            kept, values = flat[entry].item(), []
            for moved in (kept + STEP, kept - STEP):
                flat[entry] = moved
                with torch.no_grad():
                    values.append(tried.value(embeddings, labels).item())
            flat[entry] = kept
            worst = max(worst, (abs((values[0] - values[1]) / (2 * STEP) - gradient[entry].item()) / scale, name))
    return worst[0] <= TOLERANCE, f"off by {worst[0]:.0e} of the largest entry, in {worst[1]}"


def check_bfloat16(build: Build, device: torch.device) -> tuple[bool, str]:
    """Check that loss and gradients are finite for embeddings and parameters in bfloat16."""
    embeddings, labels = batch(8, 3, CLASSES, DIMENSION, device)
    found = Tried(build, torch.bfloat16).gradients(embeddings, labels)
    exact = Tried(build).gradients(embeddings, labels)["value"].item()
    off = abs(found["value"].item() - exact) / (abs(exact) or 1)
    return _finite(found), f"the loss is off by {off:.2%}"


def check_extremes(build: Build, device: torch.device) -> tuple[bool, str]:
    """Check that loss and gradients are finite in float32 for difficult batches that training may have."""
    embeddings, labels = batch(8, 3, CLASSES, DIMENSION, device)
    one = embeddings[:1].expand(len(labels), -1)
    signs = torch.ones(len(labels), 1, device=device).double()
    signs[::3] = -1
    batches = {
        "a batch of one image": (embeddings[:1], labels[:1]),
        "a batch of one class": (embeddings, labels[:1].expand(len(labels))),
        "a batch without two of a class": (embeddings, torch.arange(len(labels), device=device)),
        "all embeddings equal": (one, labels),
        "classes torn apart": (one * signs, labels),
    }
    tried = Tried(build, torch.float32)
    broken = [name for name, given in batches.items() if not _finite(tried.gradients(*given))]
    return not broken, f"not finite: {', '.join(broken)}" if broken else ", ".join(batches)


def check_order(build: Build, device: torch.device) -> tuple[bool, str]:
    """Check in float64 that a batch and the shuffled batch have the same loss and gradients, or the same mean loss if
    the loss draws at random."""
    tried = Tried(build)
    embeddings, labels = batch(8, 3, CLASSES, DIMENSION, device)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).to(device)
    if tried.value(embeddings, labels) != tried.criterion(embeddings, labels):
        tried.rewind()
        drawn = [
            torch.stack([tried.criterion(embeddings[rows], labels[rows]).detach() for _ in range(DRAWS)])
            for rows in (torch.arange(len(labels), device=device), order)
        ]
        error = ((drawn[0].var() + drawn[1].var()) / DRAWS).sqrt().item()
        off = abs(drawn[0].mean() - drawn[1].mean()).item() / error
        return off <= STANDARD_ERRORS, f"draws at random; its mean changes by {off:.1f} standard errors"
    straight, shuffled = tried.gradients(embeddings, labels), tried.gradients(embeddings[order], labels[order])
    straight["embeddings"] = straight["embeddings"][order]
    off, name = max((_difference(straight[name], shuffled[name]), name) for name in straight)
    return off <= TOLERANCE, f"changes by {off:.0e}" + (f", in {name}" if off > TOLERANCE else "")


def check_repeats(build: Build, device: torch.device) -> tuple[bool, str]:
    """Check that two steps in float32 give the same bits again from the same seed, and that the second step does so
    from the saved state after the first."""

    def second(resumed: bool) -> dict[str, Tensor]:
        tried = Tried(build, torch.float32)
        tried.criterion(embeddings, labels)
        if resumed:
            state = copy.deepcopy(tried.criterion.state_dict())
            tried = Tried(build, torch.float32)
            torch.manual_seed(1)  # as if other work had drawn in the meantime
            tried.criterion.load_state_dict(state)
        leaf = embeddings.clone().requires_grad_()
        value = tried.criterion(leaf, labels)
        value.backward()
        return {"value": value.detach(), "embeddings": leaf.grad if leaf.grad is not None else torch.zeros(())}

    embeddings, labels = batch(8, 3, CLASSES, DIMENSION, device)
    embeddings = embeddings.float()
    first, *others = [second(resumed) for resumed in (False, False, True)]
    same = [all(torch.equal(first[name], other[name]) for name in first) for other in others]
    wrong = [name for name, equal in zip(("again from its seed", "resumed"), same, strict=True) if not equal]
    return not wrong, f"other bits {' and '.join(wrong)}" if wrong else "the same bits again, and when resumed"


def step(criterion: nn.Module, embeddings: Tensor, labels: Tensor) -> float:
    """Take one step, forward and backward, and return its seconds: by the clock on a GPU, otherwise processor time."""
    clock = time.perf_counter if embeddings.is_cuda else time.process_time
    leaf = embeddings.clone().requires_grad_()
    criterion.zero_grad()
    start = clock()
    criterion(leaf, labels).backward()
    if embeddings.is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def memory(criterion: nn.Module, embeddings: Tensor, labels: Tensor) -> int:
    """The most bytes that one step holds at the same time."""
    criterion.zero_grad()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if embeddings.is_cuda else [])]
    with profile(activities=activities, profile_memory=True) as profiled:
        step(criterion, embeddings, labels)
    changes = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())), default=0)


def check_cost(build_for: Callable[[int, int], nn.Module], size: str, device: torch.device) -> tuple[bool, str]:
    """Compare the time (median) and the memory of a step in float32 with those of Proxy-Anchor. The two losses take
    turns."""
    of, classes, samples = SIZES[size]
    embeddings, labels = batch(classes, samples, of, 512, device)
    given = embeddings.float(), labels
    pair = [build_for(of, 512).to(device), proxy_anchor.Loss(of, 512, alpha=32.0, margin=0.1).to(device)]
    turns: list[list[float]] = []
    start = time.monotonic()
    while len(turns) < 2 or (len(turns) < TURNS and time.monotonic() - start < PATIENCE):
        turns.append([step(criterion, *given) for criterion in pair])
    seconds, anchors = (statistics.median(times) for times in zip(*turns[1:], strict=True))
    held, anchors_held = (memory(criterion, *given) for criterion in pair)
    times, sizes = seconds / anchors, held / anchors_held
    said = f"{1e3 * seconds:.1f} ms, {held / 2**20:.1f} MiB, {times:.2f} and {sizes:.2f} times Proxy-Anchor's"
    return max(times, sizes) <= COST_LIMIT, said


def _finite(found: dict[str, Tensor]) -> bool:
    return all(bool(of.isfinite().all()) for of in found.values())


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors, as a share of the largest entry of `one`."""
    return (one - other).abs().max().item() / (one.abs().max().item() or 1.0)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.check_loss", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("loss", metavar="NAME", help="an entry of losses")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the params file that has the loss")
    arguments = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler prints when it starts and stops
    params = read_params(arguments.params, loss=arguments.loss)
    device = torch.device("cuda" if params.machine.device != "cpu" and torch.cuda.is_available() else "cpu")
    torch.set_deterministic_debug_mode("error")  # as in training
    torch.set_num_threads(1)

    def build_for(classes: int, dimension: int) -> nn.Module:
        module, settings = params.loss(arguments.loss)
        return build_loss(module, settings, classes, dimension, f"{arguments.params}: losses.{arguments.loss}")

    def build() -> nn.Module:
        return build_for(CLASSES, DIMENSION).to(device)

    checks: dict[str, Callable[[], tuple[bool, str]]] = {
        "gradients": lambda: check_gradients(build, device),
        "bfloat16": lambda: check_bfloat16(build, device),
        "extremes": lambda: check_extremes(build, device),
        "order of a batch": lambda: check_order(build, device),
        "the same again": lambda: check_repeats(build, device),
        "cost at CUB's size": lambda: check_cost(build_for, "CUB", device),
        "cost at SOP's size": lambda: check_cost(build_for, "SOP", device),
    }
    # So that settings that the loss refuses, and what is no loss at all, are bad input, not failed checks.
    ordinary = Tried(build).gradients(*batch(8, 3, CLASSES, DIMENSION, device))
    if not _finite(ordinary):
        broken = ", ".join(name for name, of in ordinary.items() if not _finite({name: of}))
        print(f"fail  an ordinary batch: not finite: {broken}; nothing else was checked")
        sys.exit(1)
    failed = False
    for name, check in checks.items():
        try:
            well, said = check()
        except Exception as error:
            well, said = False, f"{type(error).__name__}: {str(error).splitlines()[0]}"
        failed |= not well
        print(f"{'ok  ' if well else 'fail'}  {name}: {said}", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    exit_with(main)
