"""What a params.yaml holds: tables, the machine, recipes and losses. `config.py` reads it."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Len
from pydantic import AfterValidator, BaseModel, PlainValidator

from pipeline.base.machine import Machine
from pipeline.base.names import Name, Text, distinct_rows, each_once
from pipeline.base.recipe import STRICT, Recipe
from pipeline.base.search import Search

LARGEST_SEED = 2**31 - 1
"""The largest seed that every k-means accepts: scikit-learn's seeds have 32 bits, faiss's have 31 and a sign."""

Seed = Annotated[int, Ge(0), Le(LARGEST_SEED)]


def _axis_value(value: Any) -> str | int | float:
    if type(value) not in (str, int, float) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("a row's value is a text or a number")
    checked: str | int | float = value
    return checked


AxisValues = Annotated[
    list[Annotated[str | int | float, PlainValidator(_axis_value)]], Len(1), AfterValidator(each_once)
]


def _layout(name: str) -> str:
    folder = Path(__file__).parents[1] / "tables/layouts"
    known = sorted(path.stem for path in folder.glob("[!_]*.py"))
    if name not in known:
        raise ValueError(f"there is no file {name}.py in pipeline/tables/layouts, choose one of {', '.join(known)}")
    return name


class Table(BaseModel):
    """The grid of runs behind one table: every dataset with every combination of the rows' values and every seed."""

    model_config = STRICT

    datasets: Annotated[list[Name], Len(1), AfterValidator(each_once)]
    rows: Annotated[dict[str, AxisValues], Len(1), AfterValidator(distinct_rows)]
    """What the rows differ in, outermost first, such as {loss: [proxy_an, proxy_nca], rate: [0.1, 0.2]}. An axis is one
    of these:

    - `loss`: an entry of losses; the entry `<loss>_<dataset>` is used instead if there is one.
    - `recipe`: the entry of recipes is `<recipe>_<dataset>`.
    - `rate` of a partial training set, or `gamma` of an imbalanced one.
    - any other name: a key of the recipe or of the loss. A nested key has its path, such as `optimiser.epsilon`.

    The runs of a combination are in folders named <dataset>/<value>-<value>/<seed>."""
    seeds: Annotated[list[Seed], Len(1), AfterValidator(each_once)]
    loss: Name | None = None
    """The loss of all rows, if they do not differ in it."""
    protocols: Annotated[list[Literal["test", "choose_epoch", "held_out"]], Len(1)] = ["test"]
    """What is run for each row and seed: `test` does what the papers do; `choose_epoch` evaluates on held-out training
    classes only; `held_out` takes the epoch that `choose_epoch` chose and trains on all training classes."""
    raw_pixels: bool = False
    """Whether the first row uses the images themselves as embeddings. It shows what is reached without any training."""
    untrained: bool = False
    """Whether there is a row for the recipe's backbone before training, pooled; one row for each recipe of the rows."""
    ensembles: bool = False
    """Whether each row has an ensemble row beside it: the embeddings of all its seeds, concatenated, of unit length."""
    title: Text | None = None
    """The title of the table, if published.yaml has none for it."""
    columns: Annotated[list[str], Len(1), AfterValidator(each_once)] | None = None
    """The numbers to show, by their names in metrics files, such as [recall@1, f1, r_precision]; null means the first
    number of each metric of the recipes."""
    layout: Annotated[str, AfterValidator(_layout)] = "rows"
    """rows keeps the order of the rows; ranked sorts them, best first, and tests each against the best."""
    search: Search | None = None
    """A search of settings on held-out classes, for each row. The table then shows each row with its settings as they
    are, and with those that were chosen (docs/search.md)."""


class Params(BaseModel):
    """A params.yaml. The class of a loss defines which settings the loss takes."""

    model_config = STRICT

    tables: dict[Name, Table]
    machine: Machine
    recipes: dict[Name, Recipe]
    losses: dict[Name, dict[str, Any]]
    """Name -> settings. The loss is the file of pipeline/losses with that name, or the one that the key `loss`
    names."""

    def loss_entry(self, loss: str, dataset: str) -> str:
        """The entry of `losses` that a table means by a loss: the entry for this dataset, if there is one."""
        own = f"{loss}_{dataset}"
        return own if own in self.losses else loss

    def recipes_of(self, table: Table, dataset: str | None = None) -> list[Recipe]:
        """The recipes of a table's runs, or of those on one of its datasets."""
        stems = [f"{recipe}_" if recipe else "" for recipe in table.rows.get("recipe", [""])]
        datasets = table.datasets if dataset is None else [dataset]
        return [self.recipes[f"{stem}{of}"] for of in datasets for stem in stems]

    def loss(self, name: str) -> tuple[str, dict[str, Any]]:
        """The file of pipeline/losses that the entry `name` means, and the keyword arguments of its class."""
        settings = dict(self.losses[name])
        return settings.pop("loss", name), settings
