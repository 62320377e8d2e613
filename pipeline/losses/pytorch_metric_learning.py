"""The losses and miners of the library pytorch-metric-learning (Musgrave et al., arXiv 2008.09164), by class name.

Settings that `settings` and `miner_settings` do not give keep the library's defaults. Its distances, its reducers and
the initial draw of its proxies cannot be changed here. The library does not check texts: a `type_of_triplets` that it
does not know means "all".
"""

import inspect
from typing import Annotated, Any

import torch
from annotated_types import Ge
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn

from pipeline.base.choices import check_library_settings, library_name
from pipeline.losses import exact

Settings = dict[str, bool | int | float | str]


def _arguments(kind: type) -> dict[str, Any]:
    """The arguments of a class and of its base classes, with their defaults."""
    found: dict[str, Any] = {}
    for ancestor in kind.__mro__:
        if "__init__" in vars(ancestor) and ancestor is not nn.Module:
            for argument in inspect.signature(ancestor).parameters.values():
                if argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY):
                    found.setdefault(argument.name, argument.default)
    return found


def _build(base: type, name: str, settings: Settings, given: dict[str, int], keys: tuple[str, str]) -> nn.Module:
    """An instance of the library's class `name`, a subclass of `base`, made with `settings` and with those of the
    `given` arguments that it takes.

    Raises `ValueError` for a class or a setting that does not exist. The message names it by `keys`: the keys in
    params.yaml of the class and of its settings.
    """
    kinds = {kind.__name__: kind for module in (losses, miners) for kind in vars(module).values() if _is(kind, base)}
    kind = kinds[library_name(name, [*kinds], f"{keys[0]}: ")]
    arguments, own = _arguments(kind), inspect.signature(kind).parameters
    # Arguments that take objects are left out: distances, reducers, and regularisers with their weights.
    known = {
        argument: default
        for argument, default in arguments.items()
        if (isinstance(default, bool | int | float | str) and not argument.endswith("_reg_weight"))
        or (default is inspect.Parameter.empty and argument in own and argument not in given)
    }
    check_library_settings(known, settings, f"{keys[1]}.")
    try:
        made: nn.Module = kind(**{name: value for name, value in given.items() if name in arguments}, **settings)
    except TypeError as error:
        raise ValueError(f"{keys[1]}: {error}") from None
    return made


def _is(kind: Any, base: type) -> bool:
    return inspect.isclass(kind) and issubclass(kind, base) and kind is not base


class Loss(nn.Module):
    """The library's loss `name`, computed on what the library's class `miner` picks from a batch, or on the whole batch
    without a miner.

    Random draws of the library in a step use torch's generators, which are seeded for that step from a number that is
    saved with the state. A resumed run therefore draws the same as an undisturbed one. Embeddings reach the library in
    at least float32. Raises `ValueError` for classes and settings that the library does not have.
    """

    def __init__(
        self,
        classes: Annotated[int, Ge(2)],
        dimension: int,
        *,
        name: str,
        settings: Settings | None = None,
        miner: str | None = None,
        miner_settings: Settings | None = None,
    ):
        super().__init__()
        if miner is None and miner_settings:
            raise ValueError("miner_settings: no miner is chosen: name one with the key miner, or remove this key")
        given = {"num_classes": classes, "embedding_size": dimension}
        self.loss = _build(losses.BaseMetricLossFunction, name, settings or {}, given, ("name", "settings"))
        self.miner = (
            _build(miners.BaseMiner, miner, miner_settings or {}, {}, ("miner", "miner_settings")) if miner else None
        )
        # Drawn last, so that for one seed the proxies start as in our own losses.
        self.next_draws = int(torch.randint(2**62, ()))

    def get_extra_state(self) -> int:
        """The seed of the next step's draws. It is a number on the host, so reading it does not wait for a GPU."""
        return self.next_draws

    def set_extra_state(self, state: int) -> None:
        """Make the next draws equal to those of the loss whose state was saved."""
        self.next_draws = state

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar."""
        embeddings = exact(embeddings)
        with torch.random.fork_rng([embeddings.device] if embeddings.is_cuda else []):
            torch.manual_seed(self.next_draws)
            self.next_draws += 1
            picked = self.miner(embeddings, labels) if self.miner else None
            loss: Tensor = self.loss(embeddings, labels, picked)
            return loss
