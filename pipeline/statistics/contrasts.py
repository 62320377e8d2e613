"""Contrasts of rows, with one variance for all rows that do not differ grossly: claims, rankings, and their power."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import nctdtr, stdtr

from pipeline.statistics.spread import Spread, spreads
from pipeline.statistics.verdicts import KNOWN, LEVEL, MOST_SEEDS, POWER, noncentral, quantile


@dataclass(frozen=True)
class Estimate:
    """An estimate with its interval and the two-sided p-value of a test against a bound. Interval and p-value hold for
    `tests` tests together, by Bonferroni's correction, so they agree: the interval leaves the bound out if and only if
    p is below 5 %. `error` is the standard error and `sees` the smallest distance from the bound that the test would
    find with 80 % probability."""

    value: float
    low: float
    high: float
    p: float
    error: float
    df: float
    tests: int
    sees: float
    own: bool = False
    """Whether a row in it has a spread of its own, because it is grossly larger than that of the others."""

    def says(self, bound: float) -> Literal["above", "below", "open"]:
        """Whether the whole interval is above the bound, below it, or neither."""
        return "above" if self.low > bound else "below" if self.high < bound else "open"


def student(value: float, error: float, df: float, bound: float = 0.0, tests: int = 1) -> Estimate:
    """An estimate whose error follows Student's t with `df` degrees of freedom. Without any spread (an error of 0) any
    difference is certain."""
    critical = quantile(df, LEVEL / tests)
    if error:
        p = min(1.0, tests * 2 * float(stdtr(min(df, KNOWN), -abs(value - bound) / error)))
    else:
        p = 1.0 if value == bound else 0.0
    return Estimate(
        value, value - critical * error, value + critical * error, p, error, df, tests, noncentral(df, critical) * error
    )


def contrast(
    rows: Sequence[tuple[float, float, int, Spread]], printed: Sequence[tuple[float, float]] = ()
) -> tuple[float, float, float]:
    """The value of a contrast, its standard error and its degrees of freedom.

    `rows` has for each row its weight, its mean, its number of runs and its spread. `printed` has single runs of
    others, each with its weight and its value: they have the spread of the first row. Rows with the shared spread form
    one part of the variance, each other row forms a part of its own, and the degrees of freedom are Satterthwaite's.
    """
    value = sum(weight * mean for weight, mean, _, _ in rows) + sum(weight * number for weight, number in printed)
    parts: dict[Spread, float] = {}
    for weight, _, n, spread in rows:
        parts[spread] = parts.get(spread, 0.0) + weight**2 / n * spread.value**2
    for weight, _ in printed:
        first = rows[0][3]
        parts[first] += weight**2 * first.value**2
    variance = sum(parts.values())
    df = variance**2 / lost if (lost := sum(part**2 / spread.df for spread, part in parts.items())) else math.inf
    if len(parts) == 1 or not variance:
        df = min(spread.df for spread in parts)
    return value, math.sqrt(variance), df


def seeds_for(size: float, factor: float, spread: Spread, tests: int = 1, fixed: float = 0.0) -> int | None:
    """The smallest number of seeds, at least 2, with which a test finds an effect of `size` with 80 % probability; None
    if 1000 seeds do not suffice. With n seeds, the variance of the effect is `factor` / n + `fixed` times a run's."""
    for n in range(2, MOST_SEEDS + 1):
        known = spread.with_seeds(n)
        error = known.value * math.sqrt(factor / n + fixed)
        critical = quantile(known.df, LEVEL / tests)
        if error == 0 or 1 - nctdtr(min(known.df, KNOWN), abs(size) / error, critical) >= POWER:
            return n
    return None


def against_best(rows: Sequence[Sequence[float]]) -> list[Estimate | None]:
    """Each row's mean less that of the best row, with Dunnett's intervals and p-values, which agree and hold for all
    rows together; None for the best row, the first one. Rows are sorted, best first, and have equal numbers of runs.
    None for all rows if they have a single run.

    Dunnett's test has one variance for all rows. A row whose spread stands out is tested apart, with the variances of
    the two rows (Welch), corrected for the number of rows; so is every row if the best row stands out.
    """
    n = len(rows[0])
    if n < 2:
        return [None] * len(rows)
    known = [spread for spread in spreads(rows) if spread is not None]
    shared = [place for place in range(1, len(rows)) if known[place] == known[0] and known[0].value > 0]
    found: list[Estimate | None] = [None]
    for place in range(1, len(rows)):
        both = [(-1.0, float(np.mean(rows[0])), n, known[0]), (1.0, float(np.mean(rows[place])), n, known[place])]
        found.append(replace(student(*contrast(both), tests=len(rows) - 1), own=known[place] != known[0]))
    if len(shared) > 1:
        from scipy.stats import dunnett  # here, because its import takes a second and most tables have no ranking

        # The integral is computed from random points, which are always the same ones.
        done = dunnett(*(rows[place] for place in shared), control=rows[0], rng=np.random.default_rng(0))
        interval = done.confidence_interval(1 - LEVEL)
        for number, place in enumerate(shared):
            value, error, df = contrast(
                [(-1.0, float(np.mean(rows[0])), n, known[0]), (1.0, float(np.mean(rows[place])), n, known[place])]
            )
            low, high = float(interval.low[number]), float(interval.high[number])
            critical = (high - value) / error
            found[place] = Estimate(
                value, low, high, float(done.pvalue[number]), error, df, len(shared), noncentral(df, critical) * error
            )
    return found
