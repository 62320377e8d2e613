"""What the sections of `bench.gpu` share: sizes, lines, look-alike photographs, and a paper's step."""

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.loading import photograph
from pipeline.base.config import Recipe, read_params
from pipeline.data.packed import PackedImages, SourceImage, pack
from pipeline.losses import proxy_an, proxy_anchor, proxy_gml, proxy_nca
from pipeline.networks.freezing import set_trainable
from pipeline.networks.network import EmbeddingNetwork, prepare
from pipeline.training.graphs import GraphedNetwork
from pipeline.training.loop import build_loss, kept, weights_hash
from pipeline.training.optimiser import build_optimiser
from pipeline.training.step import training_step

PAPERS = {"proxygml": "proxy_gml_cub", "proxy_an": "proxy_an"}
"""Whose CUB recipes are measured, and their losses: BN-Inception with batches of 32, and ResNet-50 with 81."""

PRECISIONS = ("float32", "tf32", "bfloat16")
CLASSES = 100
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    pictures: int
    """Files of a look-alike dataset."""
    photographs: int
    """How many of them differ."""
    size: int
    """Height and width that the networks take."""
    batch: int | None
    """Images a batch; None is the recipe's."""
    seconds: float
    """Of steps behind one figure, at least."""
    retrieved: dict[str, int]
    """Images that an evaluation ranks, by whose size it is."""


FULL = Scale(648, 64, 224, None, 0.6, {"CUB": 5924, "SOP": 60502})
TINY = Scale(12, 2, 64, 6, 0.0, {"CUB": 60, "SOP": 90})


class Line(NamedTuple):
    """One figure. `expected` is what the model says, from and to; `good` whether it is as it must be, where it must."""

    name: str
    value: float | str
    unit: str = ""
    expected: tuple[float, float] | None = None
    good: bool | None = None


def paper_recipe(paper: str, scale: Scale, **changes: Any) -> Recipe:
    """The paper's CUB recipe from random weights, at this scale."""
    recipe = read_params(ROOT / "papers" / paper / "params.yaml").recipes["cub"]
    scaled = {"pretrained": False, "input_size": scale.size, "test_resize": scale.size * 8 // 7}
    scaled |= {"batch_size": scale.batch or recipe.batch_size, "cpu_threads": torch.get_num_threads()}
    return recipe.model_copy(update=scaled | changes)


class Steps:
    """A paper's step on one batch that stays on the device."""

    def __init__(self, paper: str, scale: Scale, device: str = "auto", graphs: bool = False, **changes: Any):
        self.recipe = paper_recipe(paper, scale, **changes)
        self.device = prepare(self.recipe, device)
        torch.manual_seed(0)
        self.network = EmbeddingNetwork(self.recipe).to(self.device)
        params = read_params(ROOT / "papers" / paper / "params.yaml")
        module, settings = params.loss(PAPERS[paper])
        self.criterion = build_loss(module, settings, CLASSES, self.recipe.dimension, paper).to(self.device)
        self.optimiser = build_optimiser(self.recipe, self.network, self.criterion)
        set_trainable(self.network, self.recipe, self.recipe.epochs)
        generator = torch.Generator().manual_seed(1)
        shape = (self.recipe.batch_size, 3, scale.size, scale.size)
        pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        self.batch = pixels.to(self.device), (torch.arange(len(pixels)) // 3 % CLASSES).to(self.device)
        trained = (self.network, self.criterion, self.optimiser)
        self.graphed = GraphedNetwork(self.recipe, *trained, self.device, graphs and self.device.type == "cuda")
        self.graphed.begin(self.recipe.epochs, *self.batch)

    def step(self, batch: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Take a step; gives the loss."""
        pixels, labels = batch or self.batch
        return training_step(
            self.recipe, self.graphed, self.criterion, self.optimiser, pixels, labels, self.device
        )  # fmt: skip

    def hash_after(self, steps: int) -> str:
        """Of weights, running statistics and proxies after some steps."""
        for _ in range(steps):
            self.step()
        return weights_hash(kept(self.network)) + weights_hash(kept(self.criterion))


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_a_call(call: Callable[[], object], device: torch.device, least: float, calls: int = 10) -> float:
    """Median, over three turns of at least `least` seconds, of the seconds of a call; a turn before does not count.
    The device is waited for after so many `calls`. Where `least` is 0, one call is all."""
    found = []
    for _ in range(4 if least else 1):
        wait(device)
        start, done = time.perf_counter(), 0
        while not done or time.perf_counter() - start < least:
            for _ in range(calls if least else 1):
                call()
                done += 1
            wait(device)
        found.append((time.perf_counter() - start) / done)
    return statistics.median(found[1:] or found)


@contextlib.contextmanager
def undetermined() -> Any:
    """Let algorithms that do not repeat their bits be chosen."""
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode("error")


def packed_pictures(folder: Path, scale: Scale) -> PackedImages:
    """A look-alike dataset of CUB's kind in `folder`, made where it is not there: JPEG files of 500 x 375."""
    if not (folder / "packed").is_dir():
        encoded = [photograph(seed) for seed in range(scale.photographs)]
        classes = min(CLASSES, scale.pictures // 3)
        sources = (
            SourceImage(f"{i}.jpg", i % classes, str(i % classes), "", encoded[i % len(encoded)], (i % classes, i))
            for i in range(scale.pictures)
        )
        pack(sources, folder / "packed")
    return PackedImages(folder / "packed")


def precisions() -> tuple[str, ...]:
    """Those that are measured: on a processor without bfloat16's instructions a step in it takes minutes."""
    return PRECISIONS if torch.cuda.is_available() else PRECISIONS[:1]


LOSSES: dict[str, Callable[[], torch.nn.Module]] = {
    "proxy_gml": lambda: proxy_gml.Loss(CLASSES, 512, proxies_per_class=12, ratio=0.05, regulariser_weight=0.3),
    "proxy_an": lambda: proxy_an.Loss(CLASSES, 512, alpha=32.0, margin=0.1),
    "proxy_anchor": lambda: proxy_anchor.Loss(CLASSES, 512, alpha=32.0, margin=0.1),
    "proxy_nca": lambda: proxy_nca.Loss(CLASSES, 512),
}
