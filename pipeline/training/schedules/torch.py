"""Schedules of torch.optim.lr_scheduler by their names, as in {name: torch/CosineAnnealingLR, T_max: 50}.

They count epochs, or steps with `each_step: true`. They schedule a learning rate of 1, so a setting that is a learning
rate, such as eta_min or max_lr, is a share of the recipe's rates. Left out are those that take functions or other
schedulers, or a metric (ReduceLROnPlateau). Settings that are not given keep PyTorch's defaults.
"""

import inspect
from typing import Any

import torch
from torch.optim import lr_scheduler

from pipeline.base.choices import check_library_settings, library_name
from pipeline.training.schedules import Factor

NAMES = (
    *("ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "ExponentialLR", "LinearLR"),
    *("MultiStepLR", "OneCycleLR", "PolynomialLR", "StepLR"),
)


def schedule(epochs: int, steps: int, /, *, variant: str, each_step: bool = False, **settings: Any) -> Factor:
    """The factors of the scheduler `variant`, computed for the whole recipe beforehand. OneCycleLR gets the recipe's
    length as total_steps. Raises `ValueError` for a name or a setting that does not exist, and for values that PyTorch
    refuses."""
    kind: Any = getattr(lr_scheduler, library_name(variant, NAMES))
    arguments = inspect.signature(kind).parameters
    # Two of them would also move the momentum, which is the optimiser's own setting.
    left_out = {"optimizer", "last_epoch", "verbose", "cycle_momentum", "base_momentum", "max_momentum"}
    known = {name: of.default for name, of in arguments.items() if name not in left_out}
    if type(each_step) is not bool:
        raise ValueError(f"each_step: give true or false, found {each_step!r}")
    check_library_settings(known, settings)
    length = epochs * (steps if each_step else 1)
    if "cycle_momentum" in arguments:
        settings = settings | {"cycle_momentum": False}
    if variant == "OneCycleLR" and "epochs" not in settings:
        settings = {"total_steps": length} | settings
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = kind(optimiser, **settings)
    optimiser.step()  # PyTorch warns about a scheduler that moves before its optimiser
    factors = [float(optimiser.param_groups[0]["lr"])]
    while len(factors) < length:
        scheduler.step()
        factors.append(float(optimiser.param_groups[0]["lr"]))
    if min(factors) < 0:
        raise ValueError(f"{variant} gives a negative learning rate with these settings")
    return lambda epoch, step: factors[(epoch - 1) * steps + step - 1 if each_step else epoch - 1]
