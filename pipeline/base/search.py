"""`search` of a table: the settings that its tries have. A try is a point of a quasi-random sequence, and a function of
the search's seed, the row and the number of the try, so more tries are later ones of the same sequence."""

import functools
import hashlib
import math
from typing import Annotated, Any

from annotated_types import Ge, Le, Len
from pydantic import AfterValidator, BaseModel, model_validator

from pipeline.base.names import Name, each_once
from pipeline.base.recipe import STRICT

PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
"""The bases of the sequence, one for each setting of a row."""
DIGITS = 3.0**-20
"""Digits of a point that are worth less than this are left out."""


@functools.cache
def _order(base: int, purpose: str) -> list[int]:
    """The digits 0 ... base - 1 in an order that follows from `purpose`."""
    return sorted(range(base), key=lambda digit: hashlib.sha256(f"{purpose}/{digit}".encode()).digest())


def halton(index: int, base: int, purpose: str) -> float:
    """One coordinate, in [0, 1), of point `index` (from 0) of a Halton sequence whose digits are permuted at random,
    each place on its own: the randomised Halton sequence of Owen (2017, arXiv 1706.02808). `purpose` decides the
    orders."""
    value, worth, place = 0.0, 1.0 / base, 0
    while worth > DIGITS:
        index, digit = divmod(index, base)
        value += worth * _order(base, f"{purpose}/{place}")[digit]
        worth, place = worth / base, place + 1
    return value


Range = Annotated[list[int | float], Len(2, 2)]


class Space(BaseModel):
    """The values of one setting: one of these. Of a range whose ends are both whole numbers the values are whole, too;
    other values have four significant digits."""

    model_config = STRICT

    uniform: Range | None = None
    """From the first number to the second."""
    log_uniform: Range | None = None
    """The same, with a uniform logarithm."""
    choice: Annotated[list[str | int | float | bool], Len(2), AfterValidator(each_once)] | None = None

    @model_validator(mode="after")
    def _one(self) -> "Space":
        given = [of for of in (self.uniform, self.log_uniform, self.choice) if of is not None]
        ends = self.uniform or self.log_uniform
        if len(given) != 1:
            raise ValueError("give one of uniform, log_uniform and choice")
        if ends and not ends[0] < ends[1]:
            raise ValueError("the first end of the range must be less than the second")
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError("a logarithm needs a range above 0")
        return self

    def ends(self) -> list[Any]:
        """The values that a check has to try: all of a choice, or both ends of a range."""
        return [*(self.choice or self.uniform or self.log_uniform or ())]

    def at(self, share: float) -> Any:
        """The value at a share of the space, from 0 to below 1."""
        if self.choice:
            return self.choice[int(share * len(self.choice))]
        low, high = self.ends()
        whole = type(low) is type(high) is int
        end = high + 1 if whole else high
        value = math.exp(math.log(low) + share * math.log(end / low)) if self.log_uniform else low + share * (end - low)
        rounded = math.floor(value) if whole else float(f"{value:.4g}")
        return min(max(rounded, low if whole else float(low)), high if whole else float(high))


Spaces = dict[str, Space]


class Search(BaseModel):
    """A search of settings for each row of a table. The first try has the settings as they are."""

    model_config = STRICT

    tries: Annotated[int, Ge(2), Le(1000)]
    """Of each row."""
    folds: Annotated[int, Ge(1), Le(100)] = 1
    """A try trains once for each fold of the training classes that is held out. 1: once, on the first half of them."""
    seed: Annotated[int, Ge(0)] = 0
    """Of the search. The tries of a row depend on it, and not on the seeds of the table, of which each try has the
    first."""
    recipe: Spaces = {}
    """Keys of the recipe, or paths such as learning_rates.network -> their values, for every row."""
    losses: dict[Name, Spaces] = {}
    """An entry of losses -> keys of its settings, or paths such as settings.margin -> their values."""

    def of_loss(self, entry: str) -> Spaces:
        """The spaces of the settings of an entry of losses."""
        return self.losses.get(entry, {})

    def point(self, row: str, entry: str, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a try of a row with a loss's entry changes: keys of the recipe, and keys of the loss -> values. `number`
        is counted from 1; the first try changes nothing."""
        parts: tuple[dict[str, Any], dict[str, Any]] = {}, {}
        named = [
            *((parts[0], *of) for of in self.recipe.items()),
            *((parts[1], *of) for of in self.of_loss(entry).items()),
        ]
        for base, (part, key, space) in zip(PRIMES, named if number > 1 else (), strict=False):
            part[key] = space.at(halton(number - 2, base, f"{self.seed}/{row}/{key}"))
        return parts
