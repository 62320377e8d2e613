"""Optimisers of torch.optim by their names, as in {name: torch/RMSprop, alpha: 0.9}.

Settings that are not given keep PyTorch's defaults. Left out are those that cannot be a run's: LBFGS calls the network
again within a step, SparseAdam takes sparse gradients, Muon takes matrices only, Adafactor and ASGD wait for the GPU in
each step, and so does NAdam after it was resumed.
"""

import inspect
from typing import Any

import torch

from pipeline.base.choices import check_library_settings, library_name

NAMES = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "RAdam", "RMSprop", "Rprop", "SGD")

FUSED = ("Adam", "AdamW", "SGD")
"""Those with one kernel for a whole step, on CPUs and on GPUs."""

NOT_SETTINGS = ("params", "lr", "foreach", "fused", "capturable", "differentiable", "maximize")
"""Arguments that the recipe's learning rates give, or that only choose among implementations."""


def optimiser(groups: list[dict[str, Any]], /, *, variant: str, **settings: Any) -> torch.optim.Optimizer:
    """The optimiser `variant` of torch.optim. Raises `ValueError` for a name or a setting that does not exist, and for
    values that PyTorch refuses."""
    kind = getattr(torch.optim, library_name(variant, NAMES))
    arguments = inspect.signature(kind).parameters
    known = {name: of.default for name, of in arguments.items() if name not in NOT_SETTINGS}
    check_library_settings(known, settings)
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    made: torch.optim.Optimizer = kind(groups, lr=1.0, **given, **({"fused": True} if variant in FUSED else {}))
    return made
