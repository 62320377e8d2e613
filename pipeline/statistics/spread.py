"""The spread of runs that differ in their seed alone, pooled over the rows of a table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import fdtrc

GROSS = 0.01
"""The level of the test whether a row's spread is grossly above that of the others."""


@dataclass(frozen=True)
class Spread:
    """A standard deviation between runs, and how well it is known.

    `df` are its degrees of freedom, `rows` the number of rows that share it. `source` says where it comes from:
    `pooled` over rows, a row's `own`, or `stated` in `published.yaml`. A stated spread was measured elsewhere, so
    it counts as if it had one degree of freedom."""

    value: float
    df: float
    rows: int
    source: Literal["pooled", "own", "stated"]

    def with_seeds(self, n: int) -> "Spread":
        """The same spread as it would be known if its rows had n runs each, at least 2; never worse than it is."""
        return Spread(self.value, max(self.df, self.rows * (n - 1)), self.rows, self.source)


def variance(values: Sequence[float]) -> float:
    """The variance of at least two values, with n - 1 in the denominator. Equal values have exactly 0."""
    return float(np.var(np.asarray(values, float) - values[0], ddof=1))


def standing_out(rows: Sequence[Sequence[float]]) -> list[bool]:
    """For each row of values, one value a run: whether its spread is grossly above that of all other rows together.

    This is Cochran's test of an outlying variance, one-sided: the F-test of the row's variance against the pooled
    variance of the others, with the p-value multiplied by the number of rows (ISO 5725-2, 7.3.3, in the form for rows
    of unequal length). A row of fewer than two runs has no spread and cannot stand out.
    """
    df = [max(0, len(row) - 1) for row in rows]
    squares = [variance(row) * own if own else 0.0 for row, own in zip(rows, df, strict=True)]
    tested = sum(own > 0 for own in df)
    found = []
    for own, square in zip(df, squares, strict=True):
        others_df, others = sum(df) - own, sum(squares) - square
        if not own or others_df <= 0 or not square:
            found.append(False)
        elif others <= 1e-12 * square:
            # The others have no spread at all. Rows whose runs give equal numbers are no evidence on this row's spread.
            found.append(True)
        else:
            found.append(bool(tested * fdtrc(own, others_df, square / own / (others / others_df)) < GROSS))
    return found


def spreads(rows: Sequence[Sequence[float]], stated: float | None = None) -> list[Spread | None]:
    """The spread of each row of values, one value a run.

    Rows that do not stand out share one variance, also rows with a single run. A row that stands out has its own. If no
    row has two runs, every row has the `stated` spread; None if there is none.
    """
    out = standing_out(rows)
    shared = [row for row, alone in zip(rows, out, strict=True) if not alone]
    df = sum(len(row) - 1 for row in shared if row)
    common = None
    if df:
        mean = sum(variance(row) * (len(row) - 1) for row in shared if len(row) > 1) / df
        common = Spread(math.sqrt(mean), df, len(shared), "pooled" if len(rows) > 1 else "own")
    elif stated is not None:
        common = Spread(stated, 1, len(rows), "stated")
    return [
        Spread(math.sqrt(variance(row)), len(row) - 1, 1, "own") if alone else common
        for row, alone in zip(rows, out, strict=True)
    ]
