"""A paper's printed numbers: its published.yaml. They are written only there, and all are checked when it is read.

A table in it belongs to the table of the same name in the params.yaml beside it. Its rows are named like the folders of
runs, <dataset>/<value>-<value>. Its values are in percent, or null if we do not know the number.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le, Len
from pydantic import AfterValidator, BaseModel, ValidationError, model_validator

from pipeline.base.config import STRICT, Name, Positive, Table, problem_lines, read_yaml
from pipeline.base.files import BadInputError


def _line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("give one line of text")
    return text


def _metric(name: str) -> str:
    if not re.fullmatch(r"recall@[1-9][0-9]{0,5}|map@r|r_precision|nmi_arithmetic|nmi_geometric|f1", name):
        raise ValueError("a metric is recall@K, map@r, r_precision, nmi_arithmetic, nmi_geometric or f1")
    return name


def _row(key: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+/[A-Za-z0-9_.+-]+", key):
        raise ValueError("a row is named <dataset>/<value>-<value>, as the folder of its runs")
    return key


def _epoch(name: str) -> str:
    if not re.fullmatch("[1-9][0-9]{0,5}", name):
        raise ValueError("an epoch is a whole number from 1")
    return name


Text = Annotated[str, AfterValidator(_line)]
Percent = Annotated[float, Ge(0), Le(100)]
Points = Annotated[float, Ge(0), Le(100)]
Numbers = Annotated[dict[Annotated[str, AfterValidator(_metric)], Percent | None], Len(1)]
"""Metric, with its name in the metrics files -> percent."""


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
    tolerance: Points
    """The largest allowed distance, in points, of our mean from a printed number outside of our interval."""
    tolerance_reason: Text
    unknown: Text | None
    """Why the numbers that are null are not known."""
    chart: str | None
    """For a sweep: the axis of the rows that is the x axis of the paper's chart."""
    rows: dict[Annotated[str, AfterValidator(_row)], Numbers]
    """<dataset>/<value>-<value> -> printed numbers."""
    curves: dict[Annotated[str, AfterValidator(_row)], dict[Annotated[str, AfterValidator(_epoch)], Percent]] = {}
    """Row -> epoch of training -> Recall@1, if the paper shows it."""
    references: list[Reference]
    notes: list[Text]
    """Sentences on what is known about reproducing the table."""

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
        return self


class Published(BaseModel):
    """A published.yaml."""

    model_config = STRICT

    paper: Text
    retrieved: dict[Name, Retrieved]
    """Dataset -> images and classes."""
    tables: dict[Name, PublishedTable]

    @model_validator(mode="after")
    def _datasets(self) -> "Published":
        for name, table in self.tables.items():
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
    file: it must have a table of this name, `retrieved` must have all datasets of `table`, and a chart's axis must be
    one of `table`."""
    if name not in published.tables:
        raise BadInputError(
            f"{path}: tables.{name}: there is no such table, choose one of {', '.join(published.tables)}"
        )
    lacking = [dataset for dataset in table.datasets if dataset not in published.retrieved]
    if lacking:
        raise BadInputError(f"{path}: retrieved: {lacking[0]} is missing, which the table {name} searches, add it")
    chart = published.tables[name].chart
    if chart is not None and chart not in table.rows:
        axes = ", ".join(table.rows)
        raise BadInputError(f"{path}: tables.{name}.chart: {chart} is no axis of the table, choose one of {axes}")
