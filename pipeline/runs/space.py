"""What the runs of a params file take on disk: by its tables, and by the networks of its recipes."""

import functools
import itertools
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.base.config import read_params
from pipeline.base.files import submodule

KEPT = 2
"""Files of weights that a run keeps: at the best test epoch and at the last. One that ends at a held-out choice keeps
one more, and the run that chose none."""


class Space(NamedTuple):
    """Of a grid: its datasets, the number of its runs, and the bytes that their weights take."""

    datasets: set[str]
    runs: int
    bytes: int


@functools.cache
def _trunk(backbone: str) -> tuple[int, int]:
    """The bytes of a backbone's weights and buffers, and the number of its features."""
    with torch.device("meta"):
        made = submodule("networks.backbones", backbone).Backbone()
    return sum(value.numel() * value.element_size() for value in made.state_dict().values()), made.features


def space(path: Path) -> Space:
    """What the grid of the params file at `path` takes. Raises `BadInputError` as `read_params` does."""
    params = read_params(path)
    datasets: set[str] = set()
    runs, size = 0, 0
    for table in params.tables.values():
        datasets.update(table.datasets)
        for dataset, values in itertools.product(table.datasets, itertools.product(*table.rows.values())):
            row = dict(zip(table.rows, values, strict=True))
            recipe = params.recipes[f"{row['recipe']}_{dataset}" if "recipe" in row else dataset]
            trunk, features = _trunk(str(row.get("backbone", recipe.backbone)))
            head = 4 * (features + 1) * int(row.get("dimension", recipe.dimension))
            runs += len(table.seeds) * (3 if table.held_out else 1)
            size += len(table.seeds) * (KEPT + table.held_out) * (trunk + head)
    return Space(datasets, runs, size)
