"""A paper's printed numbers: its published.yaml, the one place where they are written down, checked whole when read.

A table of it belongs to the table of the same name in the params.yaml beside it. Its rows are named like the folders of
runs, <dataset>/<value>-<value>; its values are in percent, null where the number is not known to us.
"""

from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le, Len
from pydantic import BaseModel, ValidationError, model_validator

from pipeline.base.config import STRICT, Positive, problem_lines, read_yaml
from pipeline.base.files import BadInputError

Percent = Annotated[float, Ge(0), Le(100)]
Points = Annotated[float, Ge(0)]
Numbers = Annotated[dict[str, Percent | None], Len(1)]
"""Metric, as the metrics files name it -> percent."""


class Retrieved(BaseModel):
    """How many images of how many classes the printed numbers were measured on, queries and gallery together."""

    model_config = STRICT

    images: Positive
    classes: Positive


class Reference(BaseModel):
    """Another method's row of a printed table, which is not run here."""

    model_config = STRICT

    method: str
    network: str
    numbers: dict[str, Numbers]
    """By dataset."""


class PublishedTable(BaseModel):
    """One printed table or chart; all its numbers have one source."""

    model_config = STRICT

    title: str
    source: str
    """Where its numbers are from: page, table, slide."""
    kind: Literal["primary", "secondary", "chart", "unknown"]
    """From the authors; from somebody else's table; read off a chart; not had."""
    error: Points
    """Of reading off a chart, in points; otherwise 0."""
    tolerance: Points
    """In points: how far our mean may be from a printed number that lies outside of our interval."""
    tolerance_reason: str
    unknown: str | None
    """Why the numbers that are null are not known."""
    chart: str | None
    """For a sweep: the axis of the rows that the paper's chart has on its x axis."""
    rows: dict[str, Numbers]
    """By <dataset>/<value>-<value>."""
    references: list[Reference]
    notes: list[str]
    """What is known about reproducing it, in sentences."""

    @model_validator(mode="after")
    def _coherent(self) -> "PublishedTable":
        values = [value for numbers in self.rows.values() for value in numbers.values()]
        values += [value for row in self.references for of in row.numbers.values() for value in of.values()]
        if None in values and not self.unknown:
            raise ValueError("some numbers are null: say why in `unknown`")
        if (self.kind == "unknown") != (values.count(None) == len(values)):
            raise ValueError("the kind unknown is for tables of which no number is known, give the numbers' own kind")
        if (self.error > 0) != (self.kind == "chart"):
            raise ValueError("an error above 0 goes with the kind chart, and with no other")
        return self


class Published(BaseModel):
    """A published.yaml."""

    model_config = STRICT

    paper: str
    retrieved: dict[str, Retrieved]
    """By dataset."""
    tables: dict[str, PublishedTable]

    @model_validator(mode="after")
    def _datasets(self) -> "Published":
        for name, table in self.tables.items():
            named = {key.split("/")[0] for key in table.rows} | {of for row in table.references for of in row.numbers}
            if named - self.retrieved.keys():
                raise ValueError(f"tables.{name}: retrieved lacks {', '.join(sorted(named - self.retrieved.keys()))}")
        return self


def read_published(path: Path) -> Published:
    """Read and check a published.yaml."""
    try:
        return Published.model_validate(read_yaml(path))
    except ValidationError as error:
        raise BadInputError("\n  ".join([f"{path}:", *problem_lines(error, "", Published)])) from None
