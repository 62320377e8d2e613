"""The columns of tables: the numbers that a table shows, and their headings. Both follow from the files of the metrics
(`pipeline/metrics/by_name`) that its recipes name."""

import functools
import re

from pipeline.base.choices import files, metric_names
from pipeline.base.config import Params, Table
from pipeline.base.recipe import Recipe

RANKED_BY = "recall@1"
"""The number that chooses epochs and ranks rows."""


@functools.cache
def headings() -> dict[str, str]:
    """The names of all numbers that metrics give -> their headings. K in a name stands for a whole number from 1."""
    return {name: said for file in files("metric") for name, said in metric_names(file).items()}


def _pattern(number: str) -> str:
    """The name of a number in its metric's file: with K in place of a whole number after @, if it is not there so."""
    k = re.fullmatch(r"(.+@)[1-9][0-9]{0,5}", number)
    return f"{k[1]}K" if k and number not in headings() else number


def heading(number: str) -> str:
    """A number's heading in tables; the name itself if no metric gives such a number."""
    pattern = _pattern(number)
    said = headings().get(pattern, number)
    known = pattern != number and pattern in headings()
    return re.sub(r"(?<=@)K\b", number.partition("@")[2], said) if known else said


def is_number(name: str) -> bool:
    """Whether some metric gives a number of this name, which is also its name in published.yaml."""
    return _pattern(name) in headings() and not name.endswith("@K")


def _together(recipes: list[Recipe], all_names: bool) -> list[str]:
    """The numbers that any of the recipes gives, those of one metric side by side."""
    by_metric: dict[str, list[str]] = {}
    for recipe in recipes:
        for file, _ in recipe.metrics_by_name():
            by_metric.setdefault(file, []).extend(recipe.numbers(file, all_names))
    return list(dict.fromkeys(number for numbers in by_metric.values() for number in numbers))


def numbers_of(params: Params, table: Table, dataset: str | None = None) -> list[str]:
    """All numbers that the runs of a table give, or those on one of its datasets."""
    numbers = _together(params.recipes_of(table, dataset), all_names=True)
    # A run that chooses an epoch has only what its training evaluated.
    return [name for name in numbers if table.protocols != ["choose_epoch"] or name.startswith("recall@")]


def columns_of(params: Params, table: Table) -> list[str]:
    """The numbers that a table shows: those that it chooses, otherwise the first one of each metric."""
    if table.columns is not None:
        return table.columns
    first = _together(params.recipes_of(table), all_names=False)
    return [name for name in first if name in numbers_of(params, table)]


HEADLINE = {name: heading(name) for name in (RANKED_BY, "map@r")}
"""The numbers of a row that `dvc metrics show` and `dvc metrics diff` list -> their headings."""
