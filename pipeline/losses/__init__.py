"""One file for each loss: a class `Loss(classes, dimension, *, ...)` whose `forward(embeddings, labels)` gives a
scalar.

A loss's proxies are its parameters. Its keyword arguments, with their annotated ranges, are its keys in params.yaml. It
raises `ValueError` for values that are impossible together. Embeddings are (batch, dimension) of unit length; labels
are (batch,) int64 from 0 to classes - 1.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EXCLUDED = -1e30
"""A logit that adds nothing to a log-sum-exp. It is finite, because a row of minus infinities would have the gradient
NaN."""


def exact(values: Tensor) -> Tensor:
    """`values` in at least float32, so that sums of exponentials keep their digits; bfloat16 has only two to three."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


class _Unit(torch.autograd.Function):
    """vectors / length, with the gradient (g - u (u . g)) / length, where u is the unit vector and g its gradient.

    torch.nn.functional.normalize gives the same values, but its gradient moves twice as much memory. For 11,318 proxies
    that takes longer than their product with the batch.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min(1e-12)
        units: Tensor = vectors / lengths
        ctx.save_for_backward(units, lengths)
        return units

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        units, lengths = ctx.saved_tensors
        along = (gradient * units).sum(-1, keepdim=True)
        return gradient.addcmul(units, along, value=-1).div_(lengths)


def unit(vectors: Tensor) -> Tensor:
    """Rows scaled to unit length; a row of zeros stays zero. Differentiable once."""
    units: Tensor = _Unit.apply(exact(vectors))
    return units


def cosines(embeddings: Tensor, proxies: Tensor) -> Tensor:
    """The cosine of every embedding (batch, dimension) with every proxy (proxies, dimension): (batch, proxies)."""
    return unit(embeddings) @ unit(proxies).T


def other_classes(scores: Tensor, labels: Tensor) -> Tensor:
    """A copy of `scores` (batch, classes) in which each row's own class adds nothing to a log-sum-exp."""
    return scores.scatter(1, labels[:, None], EXCLUDED)


def log_one_plus_sum_exp(scores: Tensor, dim: int) -> Tensor:
    """log(1 + sum of exp(scores)) along `dim`, for scores of any size."""
    return -torch.nn.functional.logsigmoid(-torch.logsumexp(scores, dim))


def register_tensors(loss: nn.Module) -> None:
    """Make every tensor that a loss or one of its parts holds as a plain attribute a buffer, so that `.to(device)`
    moves it. It is not saved with the loss's state. (pytorch-metric-learning's MarginLoss holds its `beta` so, and
    fails on a GPU.) Raises `ValueError` for a tensor inside another attribute, such as a list, because PyTorch cannot
    move it."""
    for part, module in loss.named_modules():
        own = {name: value for name, value in vars(module).items() if name not in _PYTORCHS}
        for name, value in own.items():
            if isinstance(value, Tensor):
                delattr(module, name)
                module.register_buffer(name, value, persistent=False)
            elif _holds_tensor(value, set()):
                where = f"{part}.{name}" if part else name
                raise ValueError(f"{where} holds a tensor that .to(device) does not move: make it a buffer of its own")


_PYTORCHS = frozenset(vars(nn.Module()))
"""The attributes that PyTorch itself keeps in a module: parameters, buffers, modules, hooks."""


def _holds_tensor(value: Any, seen: set[int]) -> bool:
    """Whether a tensor is inside a list, tuple, dict or set, or inside an attribute of an object that is no module."""
    if isinstance(value, Tensor):
        return True
    if id(value) in seen or isinstance(value, nn.Module | type):
        return False
    seen.add(id(value))
    parts: Any = ()
    if isinstance(value, dict):
        parts = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    elif hasattr(value, "__dict__") and not callable(value):
        parts = vars(value).values()
    return any(_holds_tensor(part, seen) for part in parts)


def own_class_term(own: Tensor, labels: Tensor) -> Tensor:
    """The mean over the classes in the batch of log(1 + sum of exp(own) over the class's samples). `own` and `labels`
    are (batch,).

    Each sample computes the value of its class from a batch x batch comparison, weighted by one over the class's count.
    This avoids a scatter, whose backward pass would not be deterministic on CUDA.
    """
    same = labels[:, None] == labels
    weights = 1 / same.sum(1, dtype=own.dtype)
    # Infinity is safe because no row has only infinities. The exponential of EXCLUDED takes several times as long on a
    # CPU.
    values = log_one_plus_sum_exp(torch.where(same, own, -torch.inf), 1)
    return (values * weights).sum() / weights.sum()
