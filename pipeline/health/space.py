"""The disk space that the weights of a grid's runs take, computed from the networks of their recipes."""

import functools
from typing import NamedTuple

from pipeline.runs.grid import grid_runs
from pipeline.runs.protocols import PROTOCOLS


class Space(NamedTuple):
    """A grid's datasets, the number of its runs, and the bytes that their weights take."""

    datasets: set[str]
    runs: int
    bytes: int


@functools.cache
def _trunk(backbone: str, pooling: str, size: int) -> tuple[int, int]:
    """The bytes of a backbone's weights and buffers, and the number of its features."""
    import torch  # here, so that doctor can report that torch is missing

    from pipeline.networks.network import make_backbone

    with torch.device("meta"):
        made = make_backbone(backbone, pooling, size)
    return sum(value.numel() * value.element_size() for value in made.state_dict().values()), made.features


def space(grid: str) -> Space:
    """The space that a grid takes. Raises `BadInputError` as `grid_runs` does."""
    runs, size = grid_runs(grid), 0
    for run in runs:
        if kept := len(PROTOCOLS[run.run.protocol].weights):
            recipe = run.run.recipe
            trunk, features = _trunk(recipe.backbone, recipe.pooling, recipe.input_size)
            size += kept * (trunk + 4 * (features + 1) * recipe.dimension)
    return Space({run.run.dataset for run in runs}, len(runs), size)
