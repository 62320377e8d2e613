"""Steps down: at the start of some epochs the learning rates are multiplied by a factor. Both papers do this."""

from typing import Annotated

from annotated_types import Ge, Gt, Le, Len

from pipeline.base.names import each_once
from pipeline.training.schedules import Factor


def schedule(
    epochs: int,
    steps: int,
    *,
    factor: Annotated[float, Gt(0), Le(1)],
    at: Annotated[list[Annotated[int, Ge(1)]], Len(1)] | None = None,
    every: Annotated[int, Ge(1)] | None = None,
) -> Factor:
    """Multiplied by `factor` at the start of each of the epochs `at`, counted from 1; or after `every` so many epochs,
    which is at the start of the epochs every + 1, 2 every + 1 and so on."""
    if (at is None) == (every is None):
        raise ValueError("give one of at, a list of epochs, and every, a number of epochs")
    late = [epoch for epoch in each_once(at or []) if epoch > epochs]
    if late:
        raise ValueError(f"at: there is no epoch {late[0]}, the recipe has {epochs}")

    def decayed(epoch: int, step: int) -> float:
        times = sum(epoch >= start for start in at) if at else (epoch - 1) // (every or 1)
        return float(factor**times)

    return decayed
