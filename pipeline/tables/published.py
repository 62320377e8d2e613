"""A paper's printed numbers: its published.yaml. They are written only there, and all are checked when it is read.

A table in it belongs to the table of the same name in the params.yaml beside it. Its rows are named like the folders of
runs, <dataset>/<value>-<value>. Its values are in percent, or null if we do not know the number.
"""

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len
from pydantic import (
    AfterValidator,
    BaseModel,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from pipeline.base.config import STRICT, Name, Positive, Table, folder_name, problem_lines, read_yaml
from pipeline.base.files import BadInputError
from pipeline.base.names import Text
from pipeline.runs.grid import rows_of
from pipeline.tables.columns import headings, is_number


def _metric(name: str) -> str:
    if not is_number(name):
        raise ValueError(f"a metric is {', '.join(sorted(headings(), key=lambda name: ('@K' not in name, name)))}")
    return name


def _row(key: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+/[A-Za-z0-9_.+-]+", key):
        raise ValueError("a row is named <dataset>/<value>-<value>, as the folder of its runs")
    return key


def _epoch(name: str) -> str:
    if not re.fullmatch("[1-9][0-9]{0,5}", name):
        raise ValueError("an epoch is a whole number from 1")
    return name


Percent = Annotated[float, Ge(0), Le(100)]
Points = Annotated[float, Ge(0), Le(100)]
Metric = Annotated[str, AfterValidator(_metric)]
"""A metric's name in the metrics files."""
Curve = dict[Annotated[str, AfterValidator(_epoch)], Percent]
"""Epoch of training -> Recall@1."""


class Repeated(BaseModel):
    """A printed number that is a mean over several runs, with their standard deviation `spread`, in points."""

    model_config = STRICT

    mean: Percent
    spread: Annotated[float, Gt(0), Le(100)]
    runs: Annotated[int, Ge(2)]


def _printed(value: Any, one: ValidatorFunctionWrapHandler) -> Any:
    """A number, or a mapping with the fields of `Repeated`. A union of both would name neither in its messages."""
    return Repeated.model_validate(value) if isinstance(value, dict) else one(value)


if TYPE_CHECKING:
    Printed = float | Repeated | None
else:
    Printed = Annotated[Percent | None, WrapValidator(_printed)]
Numbers = Annotated[dict[Metric, Printed], Len(1)]
"""Metric -> percent, of one run if nothing else is said."""


class StatedSpread(BaseModel):
    """The spread over seeds that is used where too few runs are there to measure it."""

    model_config = STRICT

    points: Annotated[float, Gt(0), Le(100)]
    """The standard deviation between runs that differ in their seed alone."""
    reason: Text


class Retrieved(BaseModel):
    """The number of images, and of their classes, on which the printed numbers were measured, queries and gallery
    together."""

    model_config = STRICT

    images: Positive
    classes: Positive


class Reference(BaseModel):
    """Another method's row of a printed table. The method is not run here."""

    model_config = STRICT

    method: Text
    network: Text
    numbers: Annotated[dict[Name, Numbers], Len(1)]
    """Dataset -> printed numbers."""
    curves: dict[Name, Curve] = {}
    """Dataset -> Recall@1 by epoch, if the paper shows it."""


class PublishedTable(BaseModel):
    """One printed table or chart. All its numbers have the same source."""

    model_config = STRICT

    title: Text
    source: Text
    """Where its numbers come from: page, table, slide."""
    kind: Literal["primary", "secondary", "chart", "unknown"]
    """primary: from the authors. secondary: from somebody else's table. chart: read off a chart. unknown: we do not
    have the numbers."""
    error: Points
    """The error of reading numbers off a chart, in points; 0 for other kinds."""
    limits: dict[Name, dict[Metric, Annotated[float, Gt(0), Le(100)]]]
    """Dataset -> metric -> the widest interval, in points, with which a printed number can be called consistent: the
    size of the effects that the table is read for."""
    limits_reason: Text
    unknown: Text | None
    """Why the numbers that are null are not known."""
    chart: str | None
    """For a sweep: the axis of the rows that is the x axis of the paper's chart."""
    rows: dict[Annotated[str, AfterValidator(_row)], Numbers]
    """<dataset>/<value>-<value> -> printed numbers."""
    curves: dict[Annotated[str, AfterValidator(_row)], Curve] = {}
    """Row -> Recall@1 by epoch, if the paper shows it."""
    references: list[Reference]
    notes: list[Text]
    """Sentences on what is known about reproducing the table."""

    def printed(self, row: str) -> dict[str, float | None]:
        """The printed numbers of a row, by metric; means of several runs as one number."""
        return {
            metric: value.mean if isinstance(value, Repeated) else value
            for metric, value in self.rows.get(row, {}).items()
        }

    def repeated(self, row: str, metric: str) -> Repeated | None:
        """What is printed for a metric of a row, if it is a mean over several runs."""
        value = self.rows.get(row, {}).get(metric)
        return value if isinstance(value, Repeated) else None

    @model_validator(mode="after")
    def _coherent(self) -> "PublishedTable":
        values = [value for numbers in self.rows.values() for value in numbers.values()]
        values += [value for row in self.references for of in row.numbers.values() for value in of.values()]
        if None in values and not self.unknown:
            raise ValueError("some numbers are null: say why in `unknown`")
        if (self.kind == "unknown") != (values.count(None) == len(values)):
            raise ValueError("use the kind unknown if no number of the table is known, and only then")
        if (self.error > 0) != (self.kind == "chart"):
            raise ValueError("give an error above 0 for the kind chart, and 0 for other kinds")
        for row, numbers in self.rows.items():
            for metric, value in numbers.items():
                if value is not None and metric not in self.limits.get(row.split("/")[0], {}):
                    raise ValueError(f"limits.{row.split('/')[0]} lacks {metric}, which is printed for {row}")
        return self


class Published(BaseModel):
    """A published.yaml."""

    model_config = STRICT

    paper: Text
    retrieved: dict[Name, Retrieved]
    """Dataset -> images and classes."""
    spread: StatedSpread | None = None
    tables: dict[Name, PublishedTable]

    @model_validator(mode="after")
    def _datasets(self) -> "Published":
        for name, table in self.tables.items():
            if self.spread is None and any(value is not None for of in table.rows.values() for value in of.values()):
                raise ValueError("give the spread over seeds, with which printed numbers are judged")
            named = {key.split("/")[0] for key in table.rows} | {of for row in table.references for of in row.numbers}
            if named - self.retrieved.keys():
                raise ValueError(f"tables.{name}: retrieved lacks {', '.join(sorted(named - self.retrieved.keys()))}")
        return self


def read_published(path: Path) -> Published:
    """Read and check a published.yaml. Raises `BadInputError` with all problems found."""
    try:
        return Published.model_validate(read_yaml(path))
    except ValidationError as error:
        raise BadInputError("\n  ".join([f"{path}:", *problem_lines(error, "", Published)])) from None


def check_table(path: Path, published: Published, name: str, table: Table) -> None:
    """Raise `BadInputError` unless the published.yaml at `path` fits `table`, the table called `name` in the params
    file: it must have a table of this name, `retrieved` must have all datasets of `table`, a chart's axis must be one
    of `table`, and a printed row that `table` does not have is a mistake if `table` has a row without printed numbers.
    (If it has none, its rows are a selection of the printed ones.)"""
    if name not in published.tables:
        raise BadInputError(
            f"{path}: tables.{name} is missing, which is a table of the params file. There are "
            f"{', '.join(published.tables)}: rename one of them, or add it"
        )
    lacking = [dataset for dataset in table.datasets if dataset not in published.retrieved]
    if lacking:
        raise BadInputError(f"{path}: retrieved: {lacking[0]} is missing, which the table {name} searches, add it")
    own = published.tables[name]
    if own.chart is not None and own.chart not in table.rows:
        axes = ", ".join(table.rows)
        raise BadInputError(f"{path}: tables.{name}.chart: {own.chart} is no axis of the table, choose one of {axes}")
    rows = [f"{dataset}/{folder_name(values)}" for dataset in table.datasets for values in rows_of(table)]
    for kind, printed in (("rows", own.rows), ("curves", own.curves)):
        strange = [row for row in printed if row not in rows]
        without = [row for row in rows if row not in own.rows]
        if strange and (without or (kind == "curves" and strange[0] not in own.rows)):
            close = difflib.get_close_matches(strange[0], without or rows, 1)
            meant = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(without or rows)}"
            raise BadInputError(f"{path}: tables.{name}.{kind}.{strange[0]}: the table has no such row, {meant}")
