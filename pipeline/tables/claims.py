"""Claims of a paper: its claims.yaml, and what the runs of its tables say to each of them."""

import fnmatch
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Len
from pydantic import BaseModel, ValidationError, model_validator

from pipeline.base.config import STRICT, Name, Params, Positive, folder_name, problem_lines, read_yaml
from pipeline.base.files import BadInputError
from pipeline.base.names import Text
from pipeline.runs.grid import rows_of
from pipeline.statistics.classes import ClassChance
from pipeline.statistics.contrasts import Estimate, contrast, seeds_for, student
from pipeline.statistics.spread import Spread, spreads
from pipeline.statistics.verdicts import LEVEL, noncentral, quantile
from pipeline.tables.class_chance import of_difference
from pipeline.tables.published import Metric, Points, Published, Repeated
from pipeline.tables.rows import Row, is_extra
from pipeline.tables.spreads import Pools, points

FILE = "claims.yaml"


class Claim(BaseModel):
    """One claim. Either runs can test it, or `untestable` says why not.

    With `lower` it says that the rows of `higher` have, on average, a higher metric than those of `lower`; with
    `against` that they are above what is printed for another method; with two `epochs` that Recall@1 rises from the
    first of them to the second. With one of `epochs` and `against` both are taken after that epoch. A row may be a
    pattern, such as proxy_an-*.
    """

    model_config = STRICT

    claim: Text
    """In our words."""
    source: Text
    """Where it is made: table, slide, page."""
    untestable: Text | None = None
    table: Name | None = None
    datasets: Annotated[list[Name], Len(1)] | None = None
    metric: Metric = "recall@1"
    higher: list[str] = []
    lower: list[str] = []
    against: Text | None = None
    epochs: Annotated[list[Positive], Len(1, 2)] | None = None
    margin: Points = 0.0
    """The claim holds if the difference is above minus this, in points."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Claim":
        tested = {"table": self.table, "datasets": self.datasets, "higher": self.higher}
        if self.untestable is not None:
            if any(tested.values()) or self.lower or self.against or self.epochs:
                raise ValueError("an untestable claim has only claim, source and untestable")
            return self
        lacking = [name for name, value in tested.items() if not value]
        if lacking:
            raise ValueError(f"give {' and '.join(lacking)}, or say in `untestable` why no run can test it")
        compared = [bool(self.lower), self.against is not None, self.epochs is not None and len(self.epochs) == 2]
        if sum(compared) != 1:
            raise ValueError("give one of lower, against, and epochs with two numbers")
        if self.epochs is not None and (self.lower or self.metric != "recall@1"):
            raise ValueError("epochs go with against, or stand alone, and with recall@1")
        return self


class Claims(BaseModel):
    """A claims.yaml."""

    model_config = STRICT

    selection: Literal["best_test_epoch", "last_epoch", "held_out"]
    """The rule that chose the weights whose metrics are compared."""
    spread: Annotated[float, Gt(0)] | None = None
    """The standard deviation over seeds, in points, to plan with; None takes that of published.yaml."""
    claims: Annotated[list[Claim], Len(1)]

    def tested(self) -> Iterator[tuple[Claim, str]]:
        """The claims that runs can test, each with each of its datasets."""
        for claim in self.claims:
            for dataset in claim.datasets or []:
                yield claim, dataset


def read_claims(path: Path, params: Params, published: Published | None) -> Claims:
    """Read and check a claims.yaml, also against the tables of the params file beside it and the printed numbers.
    Raises `BadInputError` with the problems."""
    try:
        claims = Claims.model_validate(read_yaml(path))
    except ValidationError as error:
        raise BadInputError("\n  ".join([f"{path}:", *problem_lines(error, "", Claims)])) from None
    if claims.spread is None and (published is None or published.spread is None):
        raise BadInputError(f"{path}: spread: give the standard deviation over seeds to plan with, in points")
    for number, claim in enumerate(claims.claims):
        where = f"{path}: claims.{number}"
        if claim.table is None:
            continue
        if claim.table not in params.tables:
            raise BadInputError(f"{where}.table: {claim.table} is no table, choose one of {', '.join(params.tables)}")
        for dataset in claim.datasets or []:
            known = known_rows(params, published, claim.table, dataset)
            for pattern in [*claim.higher, *claim.lower]:
                if not fnmatch.filter(known, pattern):
                    raise BadInputError(f"{where}: {dataset}/{pattern} is no row of the table {claim.table}")
            if claim.against is not None:
                other_method(claim, dataset, published, where)
    return claims


def known_rows(params: Params, published: Published | None, table: str, dataset: str) -> list[str]:
    """The names of a table's rows on a dataset, those that are only printed included."""
    names = [folder_name(values) for values in rows_of(params.tables[table])]
    if published and table in published.tables:
        keys = (key.split("/", 1) for key in published.tables[table].rows)
        names += [name for of, name in keys if of == dataset]
    return list(dict.fromkeys(names))


def other_method(claim: Claim, dataset: str, published: Published | None, where: str = "") -> float:
    """What is printed for the method that a claim is `against`. Raises `BadInputError` if nothing is."""
    table = published.tables.get(claim.table or "") if published else None
    for row in table.references if table else []:
        if row.method == claim.against and dataset in row.numbers:
            value = row.numbers[dataset].get(claim.metric)
            if claim.epochs:
                value = row.curves.get(dataset, {}).get(str(claim.epochs[0]))
            if isinstance(value, float):
                return value
    raise BadInputError(f"{where}.against: {claim.against} has no printed {claim.metric} on {dataset}")


def printed_size(claim: Claim, dataset: str, published: Published | None) -> float | None:
    """The difference that the paper prints, in points, computed from published.yaml; None if it is not known."""
    table = published.tables.get(claim.table or "") if published else None
    if table is None:
        return None

    def mean(patterns: list[str], epoch: int | None) -> float | None:
        keys = [key for key in table.rows if key.split("/", 1)[0] == dataset]
        names = {name for of in patterns for name in fnmatch.filter([key.split("/", 1)[1] for key in keys], of)}
        values = []
        for name in names:
            key = f"{dataset}/{name}"
            value = table.rows[key].get(claim.metric) if epoch is None else table.curves.get(key, {}).get(str(epoch))
            if value is None:
                return None
            values.append(value.mean if isinstance(value, Repeated) else value)
        return statistics.fmean(values) if values else None

    if claim.against is not None:
        ours, other = mean(claim.higher, claim.epochs[0] if claim.epochs else None), None
        other = other_method(claim, dataset, published)
    elif claim.epochs is not None:
        ours, other = mean(claim.higher, claim.epochs[1]), mean(claim.higher, claim.epochs[0])
    else:
        ours, other = mean(claim.higher, None), mean(claim.lower, None)
    return None if ours is None or other is None else ours - other


State = Literal["supported", "contradicted", "cannot say", "not run", "untestable", "REHEARSAL"]


@dataclass(frozen=True)
class Finding:
    """What the runs say to a claim on one dataset. Numbers are in points."""

    claim: Claim
    dataset: str | None
    state: State
    tests: int = 1
    """The number of claims that are tested together."""
    printed: float | None = None
    """The difference that the paper prints."""
    estimate: Estimate | None = None
    seeds: tuple[int, ...] = ()
    """The numbers of seeds of its rows."""
    rows: list[tuple[float, Row]] = field(default_factory=list)
    """Its rows with their weights in the difference."""
    planned: Spread | None = None
    """The largest spread of its rows, as it is known with the planned seeds."""
    classes: ClassChance | None = None
    """The chance over test classes, if the results of its rows' queries are there; in points."""

    @property
    def factor(self) -> float:
        """With n seeds the variance of the difference is this / n, plus `fixed`, times that of a run."""
        return sum(weight**2 for weight, _ in self.rows)

    @property
    def fixed(self) -> float:
        """The part of the variance that no seeds of ours change: that of a printed run."""
        return 1.0 if self.claim.against is not None else 0.0

    @property
    def needed(self) -> int | None:
        """The seeds with which a test finds the printed size with 80 % probability; None if the size is not known or
        not above the margin, or if no number of seeds suffices."""
        size = None if self.printed is None else self.printed + self.claim.margin
        if size is None or size <= 0 or self.planned is None:
            return None
        return seeds_for(size, self.factor, replace(self.planned, rows=len(self.rows)), self.tests, self.fixed)

    @property
    def sees(self) -> float | None:
        """The smallest effect that the planned seeds find with 80 % probability."""
        if self.planned is None:
            return None
        critical = quantile(self.planned.df, LEVEL / self.tests)
        error = self.planned.value * math.sqrt(self.factor / self.seeds_planned + self.fixed)
        return noncentral(self.planned.df, critical) * error

    @property
    def seeds_planned(self) -> int:
        """The planned seeds of its rows."""
        return min((row.planned for _, row in self.rows), default=0)

    @property
    def test(self) -> str:
        """The test that was made."""
        if self.estimate is None:
            return ""
        together = f", corrected for {self.tests} claims" if self.tests > 1 else ""
        return f"t-test, {self.estimate.df:.3g} degrees of freedom{together}"


def rows_by_weight(claim: Claim, rows: list[Row]) -> list[tuple[float, Row]]:
    """The rows of a claim's table on one dataset, with their weights in the claim's difference."""
    found = []
    for patterns, sign in ((claim.higher, 1.0), (claim.lower, -1.0)):
        of = [row for row in rows if any(fnmatch.fnmatchcase(row.name, pattern) for pattern in patterns)]
        found += [(sign / len(of), row) for row in of]
    return found


def values_of(claim: Claim, rule: str, row: Row) -> list[float]:
    """What a claim compares of a row, in points, one value a run: the metric, or Recall@1 after an epoch, or its rise
    between two epochs."""
    if claim.epochs is None:
        return points(row, rule, claim.metric)
    runs = [run for run in row.histories if all(epoch in run for epoch in claim.epochs)]
    if len(claim.epochs) == 1:
        return [100 * run[claim.epochs[0]] for run in runs]
    return [100 * (run[claim.epochs[1]] - run[claim.epochs[0]]) for run in runs]


def find(claim: Claim, dataset: str, claims: Claims, pools: Pools, published: Published | None) -> Finding:
    """What the runs of a grid say to a claim on a dataset. `pools` has the grid's tables."""
    tests = sum(1 for _ in claims.tested())
    assert pools.stated is not None, "a claims.yaml, or the published.yaml beside it, states a spread"
    table = [row for row in pools.tables.get(claim.table or "", []) if row.dataset == dataset and not is_extra(row)]
    weighted = rows_by_weight(claim, table)
    values = [values_of(claim, claims.selection, row) for _, row in weighted]
    if claim.epochs is None:
        known = [pools.of(row, claims.selection, claim.metric) for _, row in weighted]
        ahead = [pools.planned(row, claims.selection, claim.metric) for _, row in weighted]
    else:
        # What is taken after an epoch has a spread of its own, which the other rows of the table share.
        shared = spreads([values_of(claim, claims.selection, row) for row in table], pools.stated)
        of = {row.name: spread for row, spread in zip(table, shared, strict=True)}
        known = [spread for _, row in weighted if (spread := of[row.name]) is not None]
        df = max(1, sum(row.planned - 1 for row in table))
        ahead = [replace(spread, df=df) if spread.source == "stated" else spread for spread in known]
    widest = max(ahead, key=lambda spread: spread.value, default=None)
    size = printed_size(claim, dataset, published)
    found = Finding(claim, dataset, "not run", tests, size, rows=weighted, planned=widest)
    if not weighted or not all(values):
        return found
    numbers = [
        (weight, statistics.fmean(of), len(of), spread)
        for (weight, _), of, spread in zip(weighted, values, known, strict=True)
    ]
    others = [(-1.0, other_method(claim, dataset, published))] if claim.against is not None else []
    estimate = student(*contrast(numbers, others), bound=-claim.margin, tests=tests)
    states: dict[str, State] = {"above": "supported", "below": "contradicted", "open": "cannot say"}
    state = "REHEARSAL" if any(row.foreign for _, row in weighted) else states[estimate.says(-claim.margin)]
    seeds = tuple(sorted({len(of) for of in values}))
    by_class = claim.metric == "recall@1" and claim.epochs is None and claim.against is None
    classes = of_difference(weighted) if by_class and claims.selection != "best_test_epoch" else None
    return replace(found, state=state, estimate=estimate, seeds=seeds, classes=classes)


def findings(claims: Claims, pools: Pools, published: Published | None) -> list[Finding]:
    """What the runs of a grid say to each claim, in the order of claims.yaml; the untestable ones last."""
    found = [find(claim, dataset, claims, pools, published) for claim, dataset in claims.tested()]
    return found + [Finding(claim, None, "untestable") for claim in claims.claims if claim.untestable is not None]
