"""How often each verdict on a printed number is given, by simulation: `python -m bench.verdicts` writes
docs/verdicts.md.

A table has `ROWS` rows of n seeds each. One of them is held against a printed number: one run of a method that is
better by a true difference. All runs, the printed one too, have the same spread; or, in a second table, the judged row
and the printed run alone have it, and the other rows have the spread that the ledger states. "Before" is the rule that
this project had: a number was reproduced within a tolerance of 0.8 points, or within the interval of our mean.
"""

import argparse
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from pipeline.base.command import exit_with
from pipeline.base.files import write_text
from pipeline.statistics.spread import spreads
from pipeline.statistics.verdicts import decide

ROWS = 3
STATED = 0.36
LIMIT = 1.0
TOLERANCE = 0.8
DIFFERENCES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
SPREADS = (0.3, 0.36, 0.6, 1.0, 1.5)
SEEDS = (1, 2, 3, 5, 10)
PAGE = Path("docs/verdicts.md")


def before(apart: float, own: list[float]) -> bool:
    """Whether the earlier rule called a printed number reproduced."""
    half = stdtrit(len(own) - 1, 0.975) * statistics.stdev(own) / len(own) ** 0.5 if len(own) > 1 else 0.0
    return abs(apart) <= max(TOLERANCE, half)


def simulate(difference: float, spread: float, n: int, alone: bool, times: int) -> dict[str, float]:
    """The shares of the verdicts, in percent, and that of the earlier rule's "reproduced". `alone`: only the judged
    row and the printed run have the spread."""
    draws = np.random.default_rng([round(100 * difference), round(100 * spread), n, alone])
    said: Counter[str] = Counter()
    sizes = [spread, *[STATED if alone else spread] * (ROWS - 1)]
    for _ in range(times):
        rows = [[float(value) for value in draws.normal(80, size, n)] for size in sizes]
        apart = statistics.fmean(rows[0]) - draws.normal(80 + difference, spread)
        known = spreads(rows, STATED)[0]
        assert known is not None
        said[decide(apart, n, known, STATED, LIMIT)] += 1
        said["before"] += before(apart, rows[0])
    return {word: 100 * count / times for word, count in said.items()}


def blocks(alone: bool, times: int) -> Iterator[str]:
    """The lines of a table of shares for each number of seeds."""
    for n in SEEDS:
        yield f"**{n} seed{'s' if n > 1 else ''}**"
        yield ""
        yield "| points short | " + " | ".join(f"spread {spread}" for spread in SPREADS) + " |"
        yield "|---" * (1 + len(SPREADS)) + "|"
        for difference in DIFFERENCES:
            cells = []
            for spread in SPREADS:
                found = simulate(difference, spread, n, alone, times)
                words = (found.get(word, 0.0) for word in ("consistent", "differs", "cannot say"))
                cells.append(f"{' / '.join(f'{share:.0f}' for share in words)} ({found.get('before', 0.0):.0f})")
            yield f"| {difference} | {' | '.join(cells)} |"
        yield ""


def page(times: int) -> str:
    """The text of docs/verdicts.md."""
    return "\n".join(
        [
            HEAD.format(rows=ROWS, stated=STATED, limit=LIMIT, tolerance=TOLERANCE, times=f"{times:,}"),
            "## The same spread in all rows",
            "",
            *blocks(False, times),
            f"## The judged row and the printed run alone have this spread, the other rows {STATED}",
            "",
            *blocks(True, times),
        ]
    )


HEAD = """\
# What a verdict is worth

`python -m bench.verdicts` made this page, by simulation.

A printed number is one run, unless its paper says otherwise. So the question is: could it be one more run of ours? A
table answers *consistent*, *differs* or *cannot say*:

- The **prediction interval** for one more run is our mean ± t·s·sqrt(1 + 1/n), with n seeds and a spread s that all
  rows with the same training images share, unless a row's spread is grossly larger (Cochran's test at 1 %). It is never
  narrower than with the spread that `published.yaml` states, and it includes the error of reading a chart.
- **consistent**: the printed number is no further from our mean than chance explains at the *stated* spread, and the
  interval is no wider than the table's limit. The limit is the size of the effects that the table is read for.
- **differs by x**: the printed number is outside the interval.
- **cannot say**: anything else. The table says how many seeds would narrow the interval, or that no number of seeds
  can.

More noise in our runs can turn *consistent* and *differs* into *cannot say*. It never makes a number *consistent*,
because what counts as near enough depends on the stated spread alone. A test with random rows checks this.

Beside each verdict stands the shortfall that this check would have called different with 80 % probability.

If a paper prints mean and spread over several runs, the two means are compared by two one-sided tests against the limit
instead. Without a measured spread (one seed everywhere), the stated spread counts as if it had one degree of freedom.
Then only a difference of several points can be called different, and nothing is called consistent.

## How to read the simulation
A cell is the share, in percent, of *consistent* / *differs* / *cannot say*, and in brackets the share of "reproduced"
by the rule that this project had before: within {tolerance} points, or within the interval of our own mean. The method
behind the printed number is truly better by so many points. The table has {rows} rows; `published.yaml` states a spread
of {stated}; the limit is {limit} point. Each cell has {times} tables, so a share is known to about 1.5 points.

A sound check rarely says *consistent* where the method is 2 or 3 points short, at any spread. The rule before said
"reproduced" the more often the noisier the runs were.
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.verdicts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=1000, help="simulated tables of each cell")
    parser.add_argument("--out", type=Path, default=PAGE, help="where to write the page")
    words = parser.parse_args()
    write_text(words.out, page(words.times))
    print(f"look at {words.out}")


if __name__ == "__main__":
    exit_with(main)
