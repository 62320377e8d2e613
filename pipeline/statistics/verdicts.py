"""Verdicts on a printed number, which noise cannot buy.

A printed number is one run, unless its paper says otherwise. So the question is: could it be one more run of ours? The
answer is one of three:

- *consistent*: it is no further from our mean than chance explains at the spread that `published.yaml` states, and
  the prediction interval for one more run is no wider than the limit;
- *differs*: it is outside the prediction interval;
- *cannot say*: anything else.

The prediction interval is mean ± t·s·sqrt(1 + 1/n), and never narrower than with the stated spread. What counts as
consistent depends on the stated spread alone, so more spread in our runs can only turn *consistent* into *cannot say*
(and *differs* into *cannot say*), never another verdict into *consistent*.

Where a paper prints the mean and the spread of several runs, the difference of the two means is judged by two one-sided
tests against the limit.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from scipy.special import nctdtrinc, ndtri, stdtrit

from pipeline.statistics.spread import Spread

LEVEL = 0.05
POWER = 0.8
MOST_SEEDS = 1000
KNOWN = 1e6
"""Degrees of freedom that stand for a spread without error, where a function takes no infinity."""
TINY = 1e-9
"""What rounding may add to a number."""

Word = Literal["consistent", "differs", "cannot say"]


@dataclass(frozen=True)
class Verdict:
    """A verdict and what it is worth. `half_width` is that of the interval which decides, error of reading included;
    `sees` is the smallest shortfall that would have been called different with 80 % probability; `needed` is the number
    of seeds from which the interval is narrow enough, None if no number of seeds makes it so."""

    word: Word
    half_width: float
    sees: float
    needed: int | None


def quantile(df: float, level: float = LEVEL) -> float:
    """The two-sided critical value of Student's t, of the normal distribution for infinite `df`."""
    return float(ndtri(1 - level / 2) if math.isinf(df) else stdtrit(df, 1 - level / 2))


def noncentral(df: float, critical: float, power: float = POWER) -> float:
    """The noncentrality at which a t-statistic exceeds `critical` with the probability `power`."""
    return float(nctdtrinc(min(df, KNOWN), 1 - power, critical))


def prediction(spread: Spread, stated: float, n: int) -> float:
    """The half-width of the prediction interval for one more run, given n runs; at least that of the stated spread."""
    return max(quantile(spread.df) * spread.value, quantile(math.inf) * stated) * math.sqrt(1 + 1 / n)


def seeds_needed(spread: Spread, stated: float, limit: float, error: float = 0.0) -> int | None:
    """The smallest number of seeds, at least 2, with which the prediction interval is no wider than the limit; None if
    there is none. All rows that share the spread get as many."""
    certain = Spread(spread.value, math.inf, spread.rows, spread.source)
    if prediction(certain, stated, MOST_SEEDS) + error > limit + TINY:
        return None
    fits = (n for n in range(2, MOST_SEEDS + 1) if prediction(spread.with_seeds(n), stated, n) + error <= limit + TINY)
    return next(fits, None)


def decide(difference: float, n: int, spread: Spread, stated: float, limit: float, error: float = 0.0) -> Word:
    """The verdict on one printed run, in a word. The arguments are those of `judge`."""
    half = prediction(spread, stated, n) + error
    accepted = quantile(math.inf) * stated * math.sqrt(1 + 1 / n) + error
    if abs(difference) > half + TINY:
        return "differs"
    return "consistent" if half <= limit + TINY and abs(difference) <= accepted + TINY else "cannot say"


def judge(difference: float, n: int, spread: Spread, stated: float, limit: float, error: float = 0.0) -> Verdict:
    """The verdict on one printed run.

    `difference` is our mean over n runs less the printed number, `spread` that of our runs, `stated` the spread that
    `published.yaml` states for such runs, `limit` the widest interval that says anything, `error` the error of reading.
    """
    return Verdict(
        decide(difference, n, spread, stated, limit, error),
        prediction(spread, stated, n) + error,
        sees(spread, stated, n) + error,
        seeds_needed(spread, stated, limit, error),
    )


def sees(spread: Spread, stated: float, n: int) -> float:
    """The smallest shortfall that lies outside the prediction interval with 80 % probability."""
    own, floor = quantile(spread.df) * spread.value, quantile(math.inf) * stated
    noncentrality = noncentral(spread.df, own / spread.value) if own > floor else noncentral(KNOWN, floor / stated)
    return noncentrality * (spread.value if own > floor else stated) * math.sqrt(1 + 1 / n)


class Repeated(Protocol):
    """A printed mean over several runs, their standard deviation, and their number."""

    @property
    def mean(self) -> float: ...
    @property
    def spread(self) -> float: ...
    @property
    def runs(self) -> int: ...


def compare(ours: float, n: int, spread: Spread, printed: Repeated, limit: float) -> Verdict:
    """The verdict on a printed mean of several runs, by two one-sided tests at 5 % of the difference of the two means
    (TOST: Schuirmann, J. Pharmacokin. Biopharm. 15, 1987). One variance is pooled over our runs and theirs.

    consistent: both tests say that the means are less than the limit apart. differs: the two-sided test at 5 % says
    that they are apart, and they may be further apart than the limit.
    """
    difference = ours - printed.mean
    pooled = _pooled(spread, printed)
    error = pooled.value * math.sqrt(1 / n + 1 / printed.runs)
    ninety, ninety_five = (quantile(pooled.df, level) * error for level in (2 * LEVEL, LEVEL))
    if abs(difference) + ninety <= limit:
        word: Word = "consistent"
    elif abs(difference) > ninety_five:
        word = "differs"
    else:
        word = "cannot say"
    seen = noncentral(pooled.df, quantile(pooled.df)) * error
    enough = (
        more
        for more in range(max(2, n), MOST_SEEDS + 1)
        for known in [_pooled(spread.with_seeds(more), printed)]
        if quantile(known.df, 2 * LEVEL) * known.value * math.sqrt(1 / more + 1 / printed.runs) <= limit
    )
    return Verdict(word, ninety, seen, next(enough, None))


def _pooled(spread: Spread, printed: Repeated) -> Spread:
    """Our spread and that of a printed mean as one."""
    df = spread.df + printed.runs - 1
    return Spread(
        math.sqrt((spread.df * spread.value**2 + (printed.runs - 1) * printed.spread**2) / df),
        df,
        spread.rows,
        "pooled",
    )
