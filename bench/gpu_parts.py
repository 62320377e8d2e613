"""Shared parts of the sections of `bench.gpu`: sizes, lines, look-alike photographs, and a paper's training step."""

import contextlib
import re
import statistics
import threading
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
from pipeline.training.graphs import GraphedNetwork, GraphsFailedError
from pipeline.training.optimiser import build_optimiser
from pipeline.training.outputs import kept, weights_hash
from pipeline.training.parts import build_loss
from pipeline.training.step import training_step

PAPERS = {"proxygml": "proxy_gml_cub", "proxy_an": "proxy_an"}
"""The papers whose CUB recipes are measured -> their losses. The recipes have BN-Inception with batches of 32, and
ResNet-50 with batches of 81."""

PRECISIONS = ("float32", "tf32", "bfloat16")
CLASSES = 100
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    pictures: int
    """The number of files of a look-alike dataset."""
    photographs: int
    """The number of different files among them."""
    epoch: int
    """The number of images of a whole epoch."""
    size: int
    """Height and width of the networks' input, in pixels."""
    batch: int | None
    """The number of images in a batch; None means the recipe's."""
    seconds: float
    """The least seconds of steps behind one figure."""
    retrieved: dict[str, int]
    """Dataset whose size is used -> the number of images that an evaluation ranks."""


FULL = Scale(648, 64, 5864, 224, None, 0.6, {"CUB": 5924, "SOP": 60502})
TINY = Scale(12, 2, 12, 64, 6, 0.0, {"CUB": 60, "SOP": 90})


class Line(NamedTuple):
    """One figure. `expected` is the range that the model predicts. `good` says whether a figure that must have a
    certain value has it; None for other figures."""

    name: str
    value: float | str
    unit: str = ""
    expected: tuple[float, float] | None = None
    good: bool | None = None


def paper_recipe(paper: str, scale: Scale, **changes: Any) -> Recipe:
    """The paper's CUB recipe at this scale, with random initial weights."""
    recipe = read_params(ROOT / "papers" / paper / "params.yaml").recipes["cub"]
    scaled = {"pretrained": False, "input_size": scale.size, "test_resize": scale.size * 8 // 7}
    scaled |= {"batch_size": scale.batch or recipe.batch_size, "cpu_threads": torch.get_num_threads()}
    return recipe.model_copy(update=scaled | changes)


class Steps:
    """A paper's training step on one batch that stays on the device."""

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
        try:
            self.graphed.begin(self.recipe.epochs, *self.batch)
        except GraphsFailedError as error:  # a run would go on in a new process
            self.graphed = GraphedNetwork(self.recipe, *trained, self.device, wanted=False)
            self.graphed.found["never"] = f"not used: {error}"

    def step(self, batch: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Take a step and return the loss."""
        pixels, labels = batch or self.batch
        return training_step(
            self.recipe, self.graphed, self.criterion, self.optimiser, pixels, labels, self.device
        )  # fmt: skip

    def hash_after(self, steps: int) -> str:
        """The hash of weights, running statistics and proxies after some steps."""
        for _ in range(steps):
            self.step()
        return weights_hash(kept(self.network)) + weights_hash(kept(self.criterion))


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_a_call(call: Callable[[], object], device: torch.device, least: float, calls: int = 10) -> float:
    """The seconds of a call: the median of three turns of at least `least` seconds each, after one turn that does not
    count. After every `calls` calls it waits for the device. If `least` is 0, there is only one call."""
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
    """Allow algorithms that do not give the same bits each time, while the block runs."""
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode("error")


def packed_pictures(folder: Path, scale: Scale) -> PackedImages:
    """A look-alike of CUB in `folder`, made if it does not exist yet: JPEG files of 500 x 375."""
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
    """The precisions that are measured. Without a GPU it is only float32, because on a processor without bfloat16
    instructions a step in bfloat16 takes minutes."""
    return PRECISIONS if torch.cuda.is_available() else PRECISIONS[:1]


MODEL = {
    # Counted for an H100: docs/gpu.md.
    ("proxygml", "float32", False): (2300, 3100),
    ("proxygml", "tf32", False): (4000, 5500),
    ("proxygml", "bfloat16", False): (3500, 5000),
    ("proxygml", "float32", True): (2300, 3400),
    ("proxygml", "tf32", True): (4800, 6300),
    ("proxygml", "bfloat16", True): (7000, 12500),
    ("proxy_an", "float32", False): (1250, 1500),
    ("proxy_an", "tf32", False): (2100, 2900),
    ("proxy_an", "bfloat16", False): (4500, 5900),
    ("proxy_an", "float32", True): (1250, 1500),
    ("proxy_an", "tf32", True): (2100, 2900),
    ("proxy_an", "bfloat16", True): (4500, 5900),
}
"""(paper, precision, whether the step is a CUDA graph) -> lowest and highest images/s of the paper's step."""


def expected(*case: Any) -> tuple[float, float] | None:
    """The range that the model predicts on this GPU; None if it is not an H100, or an H200 or GH200, which compute at
    the same rate. The model knows no other GPU."""
    known = torch.cuda.is_available() and re.search("H[12]00", torch.cuda.get_device_name())
    return MODEL.get(case) if known else None


class Busy:
    """The share of the time in which a GPU computed, by NVML's counter, while the block ran. `percent` is None if it is
    not known."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.seen: list[int] = []
        self.percent: float | None = None

    def __enter__(self) -> "Busy":
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def _look(self) -> None:
        while torch.cuda.is_available() and not self.ended.wait(0.05):
            with contextlib.suppress(Exception):  # no NVML: the share stays unknown
                self.seen.append(torch.cuda.utilization())

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()
        self.percent = sum(self.seen) / len(self.seen) if self.seen else None


LOSSES: dict[str, Callable[[], torch.nn.Module]] = {
    "proxy_gml": lambda: proxy_gml.Loss(CLASSES, 512, proxies_per_class=12, ratio=0.05, regulariser_weight=0.3),
    "proxy_an": lambda: proxy_an.Loss(CLASSES, 512, alpha=32.0, margin=0.1),
    "proxy_anchor": lambda: proxy_anchor.Loss(CLASSES, 512, alpha=32.0, margin=0.1),
    "proxy_nca": lambda: proxy_nca.Loss(CLASSES, 512),
}
