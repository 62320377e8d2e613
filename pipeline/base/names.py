"""Names that become folders, words of a command line and keys of DVC: what they may hold, and that they differ."""

import itertools
import math
import re
import reprlib
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator

Value = TypeVar("Value")

LONGEST = 64
"""Characters of a name of an entry."""

LONGEST_ROW = 180
"""Characters of a row's name. Names of files have 255 at most, and temporary ones are longer than what they become."""

MOST_ROWS = 10_000
"""Of a table: they are listed before anything is run."""

RESERVED = {
    "raw_pixels": "the name of the row of the images themselves",
    "untrained": "how the row of the network without training is named",
    "ensemble_of_": "how the rows of several seeds together are named",
}
"""How rows are named that tables add."""


_shortening = reprlib.Repr()
_shortening.maxstring = 80


def shortened(value: Any) -> str:
    """A value as Python writes it, what is long or deep in it left out."""
    return _shortening.repr(value)


def name_problem(name: str) -> str:
    """Why `name` cannot be that of a grid, table, dataset, recipe, loss or network; empty where it can.

    A dot would part it in DVC's `params`, a leading hyphen would make it an option.
    """
    if len(name) > LONGEST:
        return f"a name has {LONGEST} characters at most, this one {len(name):,}"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
        return "a name has the letters a-z and A-Z, digits, _ and - alone, and does not begin with -"
    return ""


def folder_name(values: Sequence[Any]) -> str:
    """The name of the folder of a row's runs: its values, one an axis of the table."""
    return "-".join(map(str, values))


def _row_problem(values: Sequence[Any]) -> str:
    """Why a row's folder cannot be called after `values`; empty where it can."""
    name = folder_name(values)
    if "" in values:
        return "a value is empty, give it a name"
    for reserved, what in RESERVED.items():
        alike = name.casefold() == reserved if reserved == "raw_pixels" else name.casefold().startswith(reserved)
        if alike:
            return f"{reserved} is {what}, take another"
    if len(name) > LONGEST_ROW:
        return f"the values name a folder of {len(name):,} characters, {LONGEST_ROW} are the most"
    if name[0] in "-.":
        return (
            "its first value begins with - or .: name an entry of losses or recipes for it, or put another axis first"
        )
    if not re.fullmatch(r"[A-Za-z0-9_.+-]+", name):
        return "values name folders: they have the letters a-z and A-Z, digits, _ . + and - alone"
    return ""


def distinct_rows(axes: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """`axes`, the values of a table's rows. Raises `ValueError` where rows are too many to list, where a row's values
    cannot name its folder, and where two rows would share one."""
    rows = math.prod(len(values) for values in axes.values())
    if rows > MOST_ROWS:
        raise ValueError(f"{rows:,} rows are too many, {MOST_ROWS:,} are the most")
    seen: dict[str, tuple[Any, ...]] = {}
    for values in itertools.product(*axes.values()):
        row = ", ".join(f"{key} {shortened(value)}" for key, value in zip(axes, values, strict=True))
        if problem := _row_problem(values):
            raise ValueError(f"{row}: {problem}")
        other = seen.setdefault(folder_name(values).casefold(), values)
        if other is not values:
            raise ValueError(f"{other} and {values} both name the folder {folder_name(values)}, name one otherwise")
    return axes


def each_once(values: list[Value]) -> list[Value]:
    """`values`. Raises `ValueError` where two are equal, such as 1 and 1.0, or are one name, such as 1 and "1", or as
    A and a are to some file systems."""
    seen: dict[Any, Value] = {}
    for value in values:
        for form in (value, str(value).casefold()):
            if form in seen:
                one, other = shortened(seen[form]), shortened(value)
                raise ValueError(
                    f"{one} comes twice, keep one" if one == other else f"{one} and {other} are one, keep one"
                )
        seen |= {value: value, str(value).casefold(): value}
    return values


def _plain(name: str) -> str:
    if problem := name_problem(name):
        raise ValueError(problem)
    return name


Name = Annotated[str, AfterValidator(_plain)]
