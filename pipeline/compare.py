"""Stage: rank a dataset's losses and test each against the best, by the paired runs of their seeds.

Takes the last epoch, which no look at the test set has chosen. Runs of one seed share initial weights and order of
images, so differences are taken seed by seed: a paired t-test of Recall@1, two-sided, its p-values corrected for the
number of comparisons by Holm's method. Rows that lack a run are named and not compared. Writes NAME.md and NAME.json,
and prints the table.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import ttest_rel

from pipeline.base.config import folder_name, read_table
from pipeline.base.files import BadInputError, exit_with, read_json, write_json, write_text
from pipeline.tables.published import read_published
from pipeline.tables.rows import Cell, grid
from pipeline.tabulate import heading, padded, references

SELECTION, RANKED_BY = "last_epoch", "recall@1"
METRICS = [RANKED_BY, "map@r", "nmi_arithmetic"]


def holm(p_values: list[float]) -> list[float]:
    """Holm's p-values (Scandinavian Journal of Statistics 6, 1979), which hold for all comparisons at once."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, row in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[row]))
        corrected[row] = largest
    return corrected


def paired(best: list[float], other: list[float]) -> float:
    """The two-sided p-value of a paired t-test; 1 where all pairs are equal, or there is one, which says nothing."""
    return 1.0 if best == other or len(best) == 1 else float(ttest_rel(best, other).pvalue)


@dataclass(frozen=True)
class Row:
    """A row's cells by metric and its test against the best row: `difference` is its Recall@1 less the best's, by
    seed, empty in the best row itself; `p_holm` is corrected for the number of rows tested."""

    cells: dict[str, Cell]
    difference: Cell
    p: float
    p_holm: float


def ranked(rows: dict[str, dict[str, Cell]]) -> dict[str, Row]:
    """Rows, name -> metric -> cell of the same seeds in all, from the best down, each tested against the best."""
    order = sorted(rows, key=lambda row: -rows[row][RANKED_BY].mean)
    values = {row: rows[row][RANKED_BY].values for row in order}
    best = values.pop(order[0])
    p = [paired(best, other) for other in values.values()]
    found = {order[0]: Row(rows[order[0]], Cell([], []), 1.0, 1.0)}
    for (name, other), uncorrected, corrected in zip(values.items(), p, holm(p), strict=True):
        difference = Cell([one - of_best for one, of_best in zip(other, best, strict=True)], [])
        found[name] = Row(rows[name], difference, uncorrected, corrected)
    return found


def numbers(cell: Cell) -> dict[str, float | int]:
    """What `dvc metrics diff` compares of a cell."""
    half = {} if cell.half_width is None else {"half_width": round(cell.half_width, 6)}
    return {"mean": round(cell.mean, 6), **half, "n": len(cell.values)}


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the file of the tables' grids")
    parser.add_argument("--table", required=True, help="an entry of tables there")
    parser.add_argument("--dataset", required=True, help="whose runs are compared")
    parser.add_argument("--runs", type=Path, required=True, help="folder of metrics: <dataset>/<row>/<seed>.json")
    parser.add_argument("--out", type=Path, required=True, help="the table, less its ending")
    parser.add_argument("--published", nargs=2, metavar=("FILE", "NETWORK"), help="others' numbers, to show below")
    arguments = parser.parse_args()

    runs, out, dataset = arguments.runs, arguments.out, arguments.dataset
    table = read_table(arguments.params, arguments.table, dataset)
    seeds = table.seeds
    rows, lacking = {}, []
    for values in (values for of, values in grid(table) if of == dataset):
        name = folder_name(values)
        files = [runs / dataset / name / f"{seed}.json" for seed in seeds]
        lacking += [f"{name}/{file.stem}" for file in files if not file.is_file()]
        if all(file.is_file() for file in files):
            metrics = [read_json(file)["metrics"][SELECTION] for file in files]
            rows[name] = {metric: Cell([of[metric] for of in metrics], files) for metric in METRICS}
    if not rows:
        raise BadInputError(f"{runs} holds no row of {arguments.params} with all its seeds: run them (`dvc repro`)")
    found = ranked(rows)

    lines = [["", *map(heading, METRICS), "Recall@1 less the best's", "p", "p, Holm"]]
    for name, row in found.items():
        test = [row.difference.text("±"), *("<0.001" if p < 0.001 else f"{p:.3f}" for p in (row.p, row.p_holm))]
        cells = [cell.text("±") for cell in row.cells.values()]
        lines.append([name, *cells, *(test if row.difference.values else ["best", "", ""])])
    told = [
        f"# {dataset}: losses compared",
        "",
        "**Last epoch, in percent.**",
        "",
        *padded(lines),
        f"Mean ± half-width of the 95 % t-interval over {len(seeds)} seeds. p: paired t-test against the best row by "
        f"seed; p, Holm: corrected for {len(found) - 1} comparisons.",
        "",
    ]
    if len(seeds) == 1:
        told += ["**One seed tells no loss from another: nothing is known of chance here, and no test was made.**", ""]
    if lacking:
        told += [f"Not run, and not compared: {', '.join(lacking)}.", ""]
    if arguments.published:
        file, network = arguments.published
        for of in read_published(Path(file)).tables.values():
            same = of.model_copy(update={"references": [row for row in of.references if row.network == network]})
            if shown := references(same, [dataset]):
                told += [*shown, f"Theirs: {of.title}; {of.source} ({of.kind}).", "", *(f"- {n}" for n in of.notes), ""]
    page = "\n".join(told)
    print(page)
    write_text(out.with_suffix(".md"), page)
    aggregate = {
        name: {metric: numbers(cell) for metric, cell in row.cells.items()}
        | ({"difference": numbers(row.difference), "p": row.p, "p_holm": row.p_holm} if row.difference.values else {})
        for name, row in found.items()
    }
    write_json(out.with_suffix(".json"), aggregate)


if __name__ == "__main__":
    exit_with(main)
