"""Half a cosine from 1 down to a last factor (Loshchilov and Hutter, SGDR, ICLR 2017, without restarts), step by step,
after a linear warm-up (Goyal et al., arXiv 1706.02677)."""

import math
from typing import Annotated

from annotated_types import Ge, Le

from pipeline.training.schedules import Factor


def schedule(
    epochs: int,
    steps: int,
    *,
    warm_up: Annotated[float, Ge(0)] = 0.0,
    last: Annotated[float, Ge(0), Le(1)] = 0.0,
) -> Factor:
    """For the first `warm_up` epochs, which may be a part of one, the factor grows to 1, by equal amounts from step to
    step. Then it falls along a cosine, and it would be `last` in the step after the recipe's last step."""
    if warm_up >= epochs:
        raise ValueError(f"warm_up: {warm_up} epochs leave none of the recipe's {epochs}")
    rising = round(warm_up * steps)
    falling = epochs * steps - rising

    def factor(epoch: int, step: int) -> float:
        done = (epoch - 1) * steps + step - 1
        if done < rising:
            return (done + 1) / (rising + 1)
        return last + (1 - last) * (1 + math.cos(math.pi * (done - rising) / falling)) / 2

    return factor
