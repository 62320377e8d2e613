"""Spread, verdicts, contrasts and the bootstrap: against other formulas and programs, and what noise must not buy."""

import math
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from bench import verdicts
from pipeline.statistics.classes import bootstrap
from pipeline.statistics.contrasts import against_best, contrast, seeds_for, student
from pipeline.statistics.spread import Spread, spreads, standing_out
from pipeline.statistics.verdicts import compare, decide, judge, prediction, seeds_needed, sees

POINTS = st.floats(-3, 3).map(lambda value: round(value, 3))
ROWS = st.lists(st.lists(POINTS, min_size=1, max_size=5), min_size=1, max_size=6)


def scaled(row, factor):
    """The row with all distances to its mean times a factor; its mean stays."""
    mean = statistics.fmean(row)
    return [mean + factor * (value - mean) for value in row]


def words(rows, printed, stated, limit, error):
    """The verdict on each row that has a printed number."""
    known = spreads(rows, stated)
    return [
        decide(statistics.fmean(row) - number, len(row), spread, stated, limit, error)
        for row, number, spread in zip(rows, printed, known, strict=True)
    ]


@settings(max_examples=300)
@given(ROWS, st.data(), st.floats(1, 50), st.floats(0.05, 2), st.floats(0.05, 6), st.sampled_from([0.0, 0.1, 0.5]))
def test_more_spread_never_turns_another_verdict_into_consistent(rows, data, factor, stated, limit, error):
    printed = data.draw(st.lists(POINTS, min_size=len(rows), max_size=len(rows)))
    noisy = data.draw(st.integers(0, len(rows) - 1))
    before = words(rows, printed, stated, limit, error)
    # All rows get noisier.
    after = words([scaled(row, factor) for row in rows], printed, stated, limit, error)
    assert not [1 for old, new in zip(before, after, strict=True) if old != "consistent" == new]
    # One row gets noisier: its own verdict.
    after = words(
        [scaled(row, factor) if i == noisy else row for i, row in enumerate(rows)], printed, stated, limit, error
    )
    assert not (before[noisy] != "consistent" == after[noisy])


@given(
    st.floats(-20, 20), st.integers(1, 10), st.floats(0, 20), st.integers(1, 40), st.floats(0.05, 2), st.floats(0, 9)
)
def test_consistent_is_within_the_prediction_interval_and_the_limit(apart, n, value, df, stated, limit):
    spread = Spread(value, df, 3, "pooled")
    half, word = prediction(spread, stated, n), decide(apart, n, spread, stated, limit)
    assert half >= stats.t.ppf(0.975, df) * value * math.sqrt(1 + 1 / n) - 1e-9
    assert (word == "differs") == (abs(apart) > half + 1e-9)
    assert word != "consistent" or (abs(apart) <= half + 1e-9 and half <= limit + 1e-9)
    # Noise of any size makes no number consistent that is further away than the limit.
    assert word != "consistent" or abs(apart) <= limit + 1e-9


def test_the_examples_that_noise_used_to_buy():
    for seeds in ([85.45, 85.55, 20.0], [74, 82, 90]):
        (spread,) = spreads([seeds], 0.36)
        assert decide(statistics.fmean(seeds) - 85.5, 3, spread, 0.36, 1.0) == "cannot say"
    # The same among quiet rows: the noisy row does not hide behind them.
    rows = [[85.45, 85.55, 20.0], *([80, 80.25, 80.45],) * 8]
    assert standing_out(rows) == [True, *[False] * 8]
    known = spreads(rows)
    assert known[0].source == "own" and known[0].df == 2 and known[1].df == 16
    assert decide(63.67 - 85.5, 3, known[0], 0.36, 1.0) == "cannot say"


def test_three_verdicts_by_hand():
    # t(0.975, 24) = 2.0639: 2.0639 x 0.36 x sqrt(4/3) = 0.8579; z = 1.96: 0.8147.
    spread = Spread(0.36, 24, 12, "pooled")
    verdict = judge(-0.7, 3, spread, 0.36, 1.0)
    assert verdict.word == "consistent" and verdict.half_width == pytest.approx(0.8579, abs=1e-4)
    assert (
        judge(-0.9, 3, spread, 0.36, 1.0).word == "differs" and judge(0.84, 3, spread, 0.36, 1.0).word == "cannot say"
    )
    assert judge(-0.9, 3, spread, 0.36, 1.0, error=0.1).word == "consistent"
    assert judge(-0.7, 3, spread, 0.36, 0.8).word == "cannot say"
    # 12 rows of n seeds: sqrt(1 + 1/n) t(12 n - 12) 0.36 <= 0.8: 1.0801 x 1.9944 x 0.36 = 0.7755 with n = 6;
    # 1.0954 x 2.0106 x 0.36 = 0.7929 with n = 5; 1.1180 x 2.0281 x 0.36 = 0.8163 with n = 4.
    assert seeds_needed(spread, 0.36, 0.8) == 5
    # 1.96 x 0.36 = 0.7056: no number of seeds brings one more run below it.
    assert seeds_needed(spread, 0.36, 0.70) is None
    # A stated spread decides little before a spread is measured: t(0.975, 1) = 12.706.
    assert prediction(spreads([[80.0]], 0.36)[0], 0.36, 1) == pytest.approx(12.706 * 0.36 * math.sqrt(2), rel=1e-4)
    assert judge(-6.0, 1, spreads([[80.0]], 0.36)[0], 0.36, 1.0).word == "cannot say"
    assert judge(-7.0, 1, spreads([[80.0]], 0.36)[0], 0.36, 1.0).word == "differs"


@pytest.mark.parametrize(("value", "df", "n"), [(0.36, 6, 3), (0.5, 30, 5), (0.1, 6, 3)])
def test_what_a_check_sees_is_what_simulation_finds(value, df, n):
    spread, stated = Spread(value, df, 3, "pooled"), 0.36
    shortfall = sees(spread, stated, n)
    draws = np.random.default_rng(0)
    own = prediction(spread, stated, n) > 1.96 * stated * math.sqrt(1 + 1 / n) + 1e-3
    sigma = value if own else stated
    difference = draws.normal(shortfall, sigma * math.sqrt(1 + 1 / n), 20000)
    s = value * np.sqrt(draws.chisquare(df, 20000) / df)
    half = np.maximum(stats.t.ppf(0.975, df) * s, 1.959964 * stated) * math.sqrt(1 + 1 / n)
    assert np.mean(np.abs(difference) > half) == pytest.approx(0.8, abs=0.04 if own else 0.02)


def test_two_one_sided_tests_agree_with_scipys():
    ours, theirs = [5.0, 5.4, 5.3, 4.9], [5.3, 4.8, 5.5, 5.1, 5.2]
    (spread,) = spreads([ours])
    printed = SimpleNamespace(mean=statistics.fmean(theirs), spread=statistics.stdev(theirs), runs=5)
    for limit in (0.1, 0.3, 0.5, 0.8):
        low = stats.ttest_ind([value + limit for value in ours], theirs, alternative="greater").pvalue
        high = stats.ttest_ind([value - limit for value in ours], theirs, alternative="less").pvalue
        verdict = compare(statistics.fmean(ours), 4, spread, printed, limit)
        assert (verdict.word == "consistent") == (max(low, high) < 0.05)
    assert compare(0.0, 4, spread, printed, 0.5).word == "differs"
    assert compare(4.8, 4, spread, printed, 0.1).word == "cannot say"


@given(st.floats(-3, 3), st.floats(0.01, 3), st.floats(1, 9), st.floats(0.1, 3))
def test_more_spread_never_makes_a_repeated_number_consistent(apart, value, factor, limit):
    printed = SimpleNamespace(mean=80.0, spread=0.3, runs=5)
    quiet, noisy = (Spread(of, 6, 3, "pooled") for of in (value, value * factor))
    after = compare(80.0 + apart, 3, noisy, printed, limit).word
    assert after != "consistent" or compare(80.0 + apart, 3, quiet, printed, limit).word == "consistent"


def test_a_contrast_is_a_t_test_where_it_has_one():
    one, other = [50.0, 51.0, 50.4], [48.0, 48.5, 49.1]
    known = spreads([one, other])
    rows = [(1.0, statistics.fmean(one), 3, known[0]), (-1.0, statistics.fmean(other), 3, known[1])]
    found, by_scipy = student(*contrast(rows)), stats.ttest_ind(one, other)
    interval = by_scipy.confidence_interval()
    assert found.p == pytest.approx(by_scipy.pvalue) and found.df == 4
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    # Where a row stands out: Welch's.
    wide = [[10.0, 60.0, 90.0], *([value, value + 0.1, value + 0.3] for value in (50.0, 51.0, 52.0, 53.0))]
    known = spreads(wide)
    assert known[0].source == "own" and known[1].source == "pooled"
    _, error, df = contrast([(1.0, 53.33, 3, known[0]), (-1.0, 50.13, 3, known[1])])
    assert error == pytest.approx(math.sqrt(known[0].value ** 2 / 3 + known[1].value ** 2 / 3)) and 2 <= df < 2.01


@given(st.floats(-5, 5), st.floats(0.01, 5), st.integers(1, 60), st.floats(-2, 2), st.integers(1, 20))
def test_an_interval_and_its_p_value_agree(value, error, df, bound, tests):
    found = student(value, error, df, bound, tests)
    assume(abs(found.p - 0.05) > 1e-6)
    assert (found.says(bound) != "open") == (found.p < 0.05)


def test_the_best_is_compared_by_dunnetts_test():
    draws = np.random.default_rng(3)
    rows = [list(draws.normal(mean, 1.0, 4)) for mean in (60, 59, 57, 52)]
    rows.sort(key=lambda row: -statistics.fmean(row))
    found = against_best(rows)
    by_scipy = stats.dunnett(*rows[1:], control=rows[0], rng=np.random.default_rng(7))
    interval = by_scipy.confidence_interval()
    assert found[0] is None
    for place, estimate in enumerate(found[1:]):
        assert estimate.value == pytest.approx(statistics.fmean(rows[place + 1]) - statistics.fmean(rows[0]))
        assert estimate.p == pytest.approx(by_scipy.pvalue[place], abs=2e-3)
        assert (estimate.low, estimate.high) == pytest.approx((interval.low[place], interval.high[place]), abs=0.02)
        assert (estimate.says(0) != "open") == (estimate.p < 0.05)
    assert found == against_best(rows), "the same draws each time"
    assert against_best([[1.0], [0.5]]) == [None, None]
    # One row against the best: no correction. Equal rows do not differ; without any spread every difference counts.
    assert against_best(rows[:2])[1].p == pytest.approx(stats.ttest_ind(*rows[:2]).pvalue)
    assert [of.p for of in against_best([[1.0, 1.0], [1.0, 1.0], [0.5, 0.5]])[1:]] == [1.0, 0.0]


def test_a_row_that_stands_out_is_tested_apart():
    quiet = [[6.0, 6.1, 6.2], [5.0, 5.2, 5.1], [4.0, 4.2, 4.1]]
    found = against_best([*quiet, [-34, 6, 26]])
    # By one variance for all, 20 points of noise would hide the differences of the quiet rows.
    assert found[1].p < 0.05 and found[2].p < 0.05 and found[3].p > 0.05
    assert found[3].df < 2.1 and found[1].df == 6


def test_seeds_that_a_claim_needs_by_simulation():
    spread = Spread(0.36, 14, 8, "pooled")
    n = seeds_for(0.7, 2, spread, tests=3)
    draws = np.random.default_rng(0)

    def power(seeds):
        difference = draws.normal(0.7, 0.36 * math.sqrt(2 / seeds), 20000)
        s = 0.36 * np.sqrt(draws.chisquare(8 * (seeds - 1), 20000) / (8 * (seeds - 1)))
        return np.mean(np.abs(difference) / (s * math.sqrt(2 / seeds)) > stats.t.ppf(1 - 0.05 / 6, 8 * (seeds - 1)))

    assert power(n) > 0.79 and power(n - 1) < 0.81
    assert seeds_for(0.001, 2, spread) is None
    # Against one printed run, whose own chance no seeds of ours remove.
    assert seeds_for(0.7, 1, spread, fixed=1.0) is None and seeds_for(3.0, 1, spread, fixed=1.0) == 2


def test_classes_by_a_plain_bootstrap():
    draws = np.random.default_rng(0)
    queries = draws.integers(50, 150, 31)
    hits = np.round(queries * draws.uniform(0.2, 0.8, 31))
    found = bootstrap(hits, queries)
    chosen = draws.integers(0, 31, (20000, 31))
    values = hits[chosen].sum(1) / queries[chosen].sum(1)
    assert found.value == hits.sum() / queries.sum() and found.classes == 31
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=0.004)
    assert found.error == pytest.approx(values.std(), rel=0.05)
    assert bootstrap(hits, queries) == found


def test_the_page_of_verdicts_is_what_its_command_makes():
    page = verdicts.PAGE.read_text()
    for alone in (False, True):
        found = verdicts.simulate(2.0, 1.0, 3, alone, 1000)
        cell = " / ".join(f"{found.get(word, 0.0):.0f}" for word in ("consistent", "differs", "cannot say"))
        assert f"{cell} ({found['before']:.0f})" in page


def test_nothing_2_points_short_is_consistent_at_any_spread():
    page = verdicts.PAGE.read_text()
    lines = [line for line in page.splitlines() if line.startswith(("| 2.0 |", "| 3.0 |"))]
    cells = [cell for line in lines for cell in line.split("|")[2:-1]]
    assert len(cells) == 2 * 2 * len(verdicts.SEEDS) * len(verdicts.SPREADS)
    assert all(float(cell.split("/")[0]) <= 5 for cell in cells)
    assert any(float(cell.split("(")[1].rstrip(") ")) > 50 for cell in cells), "which the rule before did not hold"
