"""Names that become folders, words of a command line and keys of DVC: which characters they may have, and that they
differ."""

import itertools
import math
import re
import reprlib
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator

from pipeline.base.files import BadInputError

Value = TypeVar("Value")

LONGEST = 64
"""The most characters of an entry's name."""

LONGEST_ROW = 180
"""The most characters of a row's name. A file name has at most 255, and a temporary file's name is longer than its
final name."""

MOST_ROWS = 10_000
"""The most rows of a table. All rows are listed before anything is run."""

RESERVED = {
    "raw_pixels": "the name of the row for the images themselves",
    "untrained": "the beginning of the name of a row for an untrained network",
    "ensemble_of_": "the beginning of the name of a row for several seeds together",
}
"""The names, or beginnings of names, of rows that tables add."""


_shortening = reprlib.Repr()
_shortening.maxstring = 80


def shortened(value: Any) -> str:
    """A value as Python writes it, with long and deeply nested parts left out."""
    return _shortening.repr(value)


def name_problem(name: str) -> str:
    """Why `name` cannot be the name of a grid, table, dataset, recipe, loss or network; empty if it can.

    A dot would split it in DVC's `params`, and a leading hyphen would make it an option.
    """
    if len(name) > LONGEST:
        return f"a name has at most {LONGEST} characters, this one has {len(name):,}"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
        return "a name has only the letters a-z and A-Z, digits, _ and -, and does not begin with -"
    return ""


def checked_name(kind: str, name: str) -> str:
    """`name`, the name of a grid, dataset or the like from a command line, unchanged. Raises `BadInputError` if nothing
    can have this name."""
    if problem := name_problem(name):
        raise BadInputError(f"{shortened(name)} cannot be the name of a {kind}: {problem}")
    return name


def folder_name(values: Sequence[Any]) -> str:
    """The name of the folder of a row's runs: the row's values, one for each axis of the table."""
    return "-".join(map(str, values))


def _row_problem(values: Sequence[Any]) -> str:
    """Why a row's folder cannot be named by `values`; empty if it can."""
    name = folder_name(values)
    if "" in values:
        return "a value is empty, give it a name"
    for reserved, what in RESERVED.items():
        alike = name.casefold() == reserved if reserved == "raw_pixels" else name.casefold().startswith(reserved)
        if alike:
            return f"{reserved} is {what}, take another"
    if len(name) > LONGEST_ROW:
        return f"the values give a folder name of {len(name):,} characters, the limit is {LONGEST_ROW}"
    if name[0] in "-.":
        return (
            "its first value begins with - or .: name an entry of losses or recipes for it, or put another axis first"
        )
    if not re.fullmatch(r"[A-Za-z0-9_.+-]+", name):
        return "values become folder names: use only the letters a-z and A-Z, digits, _ . + and -"
    return ""


def distinct_rows(axes: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """`axes`, the values of a table's rows, unchanged. Raises `ValueError` if there are too many rows to list, if a
    row's values cannot name its folder, or if two rows would share a folder."""
    rows = math.prod(len(values) for values in axes.values())
    if rows > MOST_ROWS:
        raise ValueError(f"{rows:,} rows are too many, the limit is {MOST_ROWS:,}")
    seen: dict[str, tuple[Any, ...]] = {}
    for values in itertools.product(*axes.values()):
        row = ", ".join(f"{key} {shortened(value)}" for key, value in zip(axes, values, strict=True))
        if problem := _row_problem(values):
            raise ValueError(f"{row}: {problem}")
        other = seen.setdefault(folder_name(values).casefold(), values)
        if other is not values:
            raise ValueError(f"{other} and {values} both name the folder {folder_name(values)}, rename one of them")
    return axes


def each_once(values: list[Value]) -> list[Value]:
    """`values`, unchanged. Raises `ValueError` if two values are equal (1 and 1.0), are written the same (1 and "1"),
    or are the same name to some file systems (A and a)."""
    seen: dict[Any, Value] = {}
    for value in values:
        for form in (value, str(value).casefold()):
            if form in seen:
                one, other = shortened(seen[form]), shortened(value)
                raise ValueError(
                    f"{one} comes twice, keep one" if one == other else f"{one} and {other} mean the same, keep one"
                )
        seen |= {value: value, str(value).casefold(): value}
    return values


def _plain(name: str) -> str:
    if problem := name_problem(name):
        raise ValueError(problem)
    return name


Name = Annotated[str, AfterValidator(_plain)]


def _line(text: str) -> str:
    # Not printable are also the signs that turn the direction of the text after them.
    if not text.strip() or not text.isprintable():
        raise ValueError("give one line of text, without signs that cannot be printed")
    return text


Text = Annotated[str, AfterValidator(_line)]
"""One line that a page shows: a title, a source or a note."""
