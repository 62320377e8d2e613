"""The chance over test classes: would other classes give this? From what the queries of a row's runs found."""

from pathlib import Path

import numpy as np

from pipeline.base.files import read_json
from pipeline.runs import store
from pipeline.runs.grid import GridRun
from pipeline.statistics.classes import ClassChance, bootstrap
from pipeline.tables.columns import RANKED_BY
from pipeline.tables.model import Block, Line, texts
from pipeline.tables.rows import Row, is_extra, ranking_rule


def _file(run: GridRun) -> Path | None:
    """The queries.npz of a run, if it is of the same evaluation as its metrics file."""
    path = run.cached_queries / "queries.npz"
    if not path.is_file() or not run.metrics.is_file():
        return None
    return path if store.key_of(run.cached_queries) == read_json(run.metrics).get("key") else None


def hits_by_class(row: Row) -> tuple[np.ndarray, np.ndarray] | None:
    """For each test class, in the order of labels, the queries that Recall@1 counts as found, as a mean over the row's
    runs, and all its queries; float64 (classes,) each. None if a run has not kept what its queries found. A run that
    keeps two epochs keeps this for the last one."""
    found = []
    for run in row.runs:
        path = _file(run) if run.run.protocol in ("test", "held_out") else None
        if path is None:
            if run.run.protocol == "choose_epoch":
                continue
            return None
        with np.load(path, allow_pickle=False) as kept:
            if "queries" not in kept:
                return None
            found.append((kept["recall"] * kept["queries"], kept["queries"]))
    if not found or len({len(queries) for _, queries in found}) > 1:
        return None
    return np.mean([hits for hits, _ in found], axis=0), found[0][1].astype(float)


def of_difference(rows: list[tuple[float, Row]]) -> ClassChance | None:
    """The chance over test classes of a weighted sum of rows' Recall@1, in points, such as a difference of two rows.
    All rows are seen on the same drawn classes. None if a row's runs have not kept what their queries found."""
    parts = [(weight, hits_by_class(row)) for weight, row in rows]
    known = [(weight, part) for weight, part in parts if part is not None]
    if not known or len(known) < len(parts) or len({len(part[1]) for _, part in known}) > 1:
        return None
    hits = sum(weight * part[0] for weight, part in known)
    return bootstrap(100 * np.asarray(hits), known[0][1][1])


def both_kinds(rows: list[Row]) -> list[Block]:
    """For each dataset of a table, the two kinds of chance in Recall@1 beside each other: over seeds, and over test
    classes, also of the difference to the best row. Only of rows whose runs have kept what their queries found."""
    rule, blocks = ranking_rule(rows), []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        known = [
            (row, chance)
            for row in rows
            if row.dataset == dataset and not is_extra(row) and row.cell(rule, RANKED_BY).values
            if (chance := of_difference([(1.0, row)])) is not None
        ]
        known.sort(key=lambda pair: -pair[1].value)
        lines = []
        for row, chance in known:
            less = of_difference([(1.0, row), (-1.0, known[0][0])]) if row is not known[0][0] else None
            shown = f"{less.value:+.2f} ({less.low:+.2f} to {less.high:+.2f})" if less else "best"
            texts_of = [row.name, row.cell(rule, RANKED_BY).text(), f"{chance.low:.2f} to {chance.high:.2f}", shown]
            interval = {"low": round(chance.low / 100, 6), "high": round(chance.high / 100, 6), "n": chance.classes}
            tests = {"over_test_classes": {RANKED_BY: interval}}
            if less:
                tests["over_test_classes"]["less_the_best"] = {
                    "mean": round(less.value / 100, 6),
                    "low": round(less.low / 100, 6),
                    "high": round(less.high / 100, 6),
                }
            lines.append(Line(texts(texts_of)[0].entries, row, tests))
        if lines:
            head = ["", "Recall@1, over seeds", "over test classes", "less the best's, over test classes"]
            note = (
                f"95 % intervals at the last epoch. Over seeds: would another training give this? Over the "
                f"{known[0][1].classes} test classes: would other classes? (A bootstrap; rows are seen on the same "
                "drawn classes.)"
            )
            blocks.append(Block(f"Two kinds of chance, {dataset}", head, lines, notes=[note]))
    return blocks
