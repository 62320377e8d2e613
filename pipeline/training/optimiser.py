"""The optimiser of a run and its learning rates: what the recipe chooses among the files of `optimisers` and
`schedules`."""

import torch
from torch import nn

from pipeline.base.choices import chosen
from pipeline.base.config import Recipe
from pipeline.training.schedules import Factor


def build_optimiser(recipe: Recipe, network: nn.Module, criterion: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimiser for a network with a `backbone` and for a loss, with backbone, head and loss as its
    groups. Raises `ValueError` for parameters that the optimiser does not take."""
    backbone = list(network.get_submodule("backbone").parameters())
    known = set(map(id, backbone))
    head = [parameter for parameter in network.parameters() if id(parameter) not in known]
    groups = [{"params": backbone}, {"params": head}, {"params": list(criterion.parameters())}]
    settings = dict(recipe.optimiser)
    optimiser: torch.optim.Optimizer = chosen("optimiser", settings.pop("name"))(groups, **settings)
    return optimiser


def build_schedule(recipe: Recipe, steps: int) -> Factor:
    """What multiplies the learning rates of a step: a function of (epoch, step), both counted from 1. `steps` is the
    number of steps in an epoch. Raises `ValueError` if the schedule does not fit this number."""
    settings = dict(recipe.schedule)
    schedule: Factor = chosen("schedule", settings.pop("name"))(recipe.epochs, steps, **settings)
    return schedule


def learning_rates(recipe: Recipe, factor: float) -> dict[str, float]:
    """The learning rates of network, head and proxies when the schedule gives `factor`."""
    rates = recipe.learning_rates
    head = rates.network if rates.head is None else rates.head
    return {"network": rates.network * factor, "head": head * factor, "proxies": rates.proxies * factor}


def set_learning_rates(optimiser: torch.optim.Optimizer, recipe: Recipe, factor: float) -> None:
    """Set the learning rates in the optimiser's groups."""
    for group, rate in zip(optimiser.param_groups, learning_rates(recipe, factor).values(), strict=True):
        group["lr"] = rate
