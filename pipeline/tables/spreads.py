"""The spread over seeds that the rows of a grid share, by training images and metric."""

import json
from dataclasses import replace

from pipeline.statistics.spread import Spread, spreads
from pipeline.tables.rows import Row, is_extra


def points(row: Row, rule: str, metric: str) -> list[float]:
    """A metric of a row under a selection rule, in percent, one value a run."""
    return [100 * metrics[metric] for _, metrics in row.found[rule].values() if metric in metrics]


class Pool:
    """The spread of each row that is trained on the same images, for one metric under one selection rule.

    `every` has these rows of all tables of a grid. They share one spread, except those that stand out
    (`pipeline.statistics.spread`). A row whose runs are also in another table counts once.
    """

    def __init__(self, every: list[Row], rule: str, metric: str, stated: float | None):
        self.first: dict[str, Row] = {}
        """What tells a run from others -> the first row that has it."""
        self.rows: list[Row] = []
        # Rows that have been run come first, so that none is taken for another table's row that has not.
        for row in sorted(every, key=lambda row: not points(row, rule, metric)):
            runs = _runs(row)
            if not runs <= self.first.keys():
                self.rows.append(row)
            self.first = dict.fromkeys(runs, row) | self.first
        found = spreads([points(row, rule, metric) for row in self.rows], stated)
        self.spreads = {id(row): spread for row, spread in zip(self.rows, found, strict=True) if spread is not None}

    def planned(self, row: Row) -> Spread:
        """The spread of a row as it will be known with the planned seeds; as it is, where it is measured."""
        spread = self.of(row)
        df = sum(row.planned - 1 for row in self.rows)
        return replace(spread, df=max(1, df)) if spread.source == "stated" else spread

    def of(self, row: Row) -> Spread:
        """The spread of a row, which may be one that has not been run."""
        return self.spreads[id(row) if id(row) in self.spreads else id(self.first[min(_runs(row))])]

    def stands_out(self, row: Row) -> bool:
        """Whether a row's spread is grossly larger than that of the others, so that it has its own."""
        if is_extra(row) or len(self.rows) < 2:
            return False
        place = id(row) if id(row) in self.spreads else id(self.first[min(_runs(row))])
        return place in self.spreads and self.spreads[place].source == "own"


def _runs(row: Row) -> set[str]:
    """What tells a row's runs from those of other rows, in any table; how they choose an epoch does not matter."""
    return {json.dumps(run.run.settings() | {"protocol": ""}, sort_keys=True) for run in row.runs}


def _images(row: Row) -> str:
    """What a row is trained on: a dataset, or a subset of it, which has as many images with every seed."""
    return json.dumps([row.dataset, row.runs[0].run.subset])


class Pools:
    """The spreads of a grid's rows for any metric and selection rule, each computed once."""

    def __init__(self, tables: dict[str, list[Row]], stated: float | None):
        self.tables, self.stated = tables, stated
        self.rows: dict[str, list[Row]] = {}
        """Training images -> the rows of all tables that are trained on them."""
        for row in (row for rows in tables.values() for row in rows if not is_extra(row)):
            self.rows.setdefault(_images(row), []).append(row)
        self.pools: dict[tuple[str, str, str], Pool] = {}

    def pool(self, row: Row, rule: str, metric: str) -> Pool:
        """The spreads of a row and of those that are trained on the same images. Fewer images give a larger spread: on
        glyphs 1.8 points with a fifth of them, and 0.6 with all."""
        where = _images(row), rule, metric
        if where not in self.pools:
            self.pools[where] = Pool(self.rows.get(where[0], []), rule, metric, self.stated)
        return self.pools[where]

    def of(self, row: Row, rule: str, metric: str) -> Spread:
        """The spread of a row."""
        return self.pool(row, rule, metric).of(row)

    def planned(self, row: Row, rule: str, metric: str) -> Spread:
        """The spread of a row as it will be known with the planned seeds."""
        return self.pool(row, rule, metric).planned(row)

    def stands_out(self, row: Row, rule: str, metric: str) -> bool:
        """Whether a row's spread is grossly larger than that of the others, so that it has its own."""
        return self.pool(row, rule, metric).stands_out(row)
