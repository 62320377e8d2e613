"""Show what the planned seeds of a grid can show and cannot show, before anything is run.

For each claim (claims.yaml) this prints the size that the paper prints, the smallest effect that the planned seeds find
with 80 % probability, and the seeds, runs and hours that it takes to find the printed size. For printed numbers
(published.yaml) it prints the limit, the half-width of the prediction interval, the smallest shortfall that a verdict
would see, and the seeds from which it can say "consistent".

The spread over seeds is that of the grid's runs that are done, by dataset and metric. Where none is done, it is the one
that claims.yaml or published.yaml states. Hours are those of one machine that makes one run after another: as fast as
the grid's runs that were made here, otherwise as a model of an H100 (`pipeline.runs.cost`).
"""

import argparse
from collections import defaultdict

from pipeline.base.command import exit_with
from pipeline.runs.cost import cost, modelled_seconds
from pipeline.runs.grid import GridRun
from pipeline.runs.made import training
from pipeline.statistics.verdicts import prediction, seeds_needed, sees
from pipeline.tables.claims import Finding
from pipeline.tables.columns import heading
from pipeline.tables.formats import padded
from pipeline.tables.grid import read_content
from pipeline.tables.model import TableModel
from pipeline.tables.rows import is_extra
from pipeline.tables.spreads import Pools
from pipeline.tables.verdicts import RULE


class Speed:
    """Operations per second: of the runs that were made here, by dataset and backbone, or modelled."""

    def __init__(self, tables: list[TableModel]):
        done: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for run in (run for table in tables for row in table.every for run in row.runs):
            if run.run.trained:
                seconds = sum(training(run).get("epoch_seconds", []))
                if seconds:
                    done[_kind(run)].append((cost(run), seconds))
        self.measured = {kind: sum(c for c, _ in runs) / sum(s for _, s in runs) for kind, runs in done.items()}

    def hours(self, runs: list[GridRun], times: float = 1.0) -> str:
        """The hours that some runs take, each so many times, one after another."""
        speeds = {run.place: self.measured.get(_kind(run)) for run in runs}
        each = (cost(run) / speed if (speed := speeds[run.place]) else modelled_seconds(run) for run in runs)
        seconds = times * sum(each)
        return f"{seconds / 3600:.1f}" if seconds >= 3600 else f"{seconds / 3600:.2f}"


def _kind(run: GridRun) -> str:
    return f"{run.run.dataset} {run.run.recipe.backbone}"


def claim_line(finding: Finding, speed: Speed) -> list[str]:
    """The line of a claim that runs can test."""
    spread = finding.planned
    assert spread is not None
    rows = [row for _, row in finding.rows]
    one_seed = [run for row in rows for run in row.runs if run.run.seed == row.runs[0].run.seed]
    needed = finding.needed
    if finding.printed is None:
        cost_of = ["size not printed", "", ""]
    elif finding.printed + finding.claim.margin <= 0:
        cost_of = ["the print contradicts it", "", ""]
    elif needed is None:
        cost_of = ["no number", "", ""]
    else:
        cost_of = [str(needed), str(needed * len(rows)), speed.hours(one_seed, needed)]
    return [
        f"{finding.claim.claim} ({finding.dataset})",
        "–" if finding.printed is None else f"{finding.printed:+.1f}",
        f"{spread.value:.2f} {spread.source}",
        str(finding.seeds_planned),
        "–" if finding.sees is None else f"{finding.sees:.2f}",
        *cost_of,
    ]


def verdict_lines(tables: list[TableModel], pools: Pools) -> list[list[str]]:
    """A line for each table, dataset and metric of which numbers are printed."""
    lines, stated = [], pools.stated
    for table in (table for table in tables if table.published):
        assert table.published is not None and stated is not None
        for dataset, limits in table.published.limits.items():
            rows = [row for row in table.rows if row.dataset == dataset and not is_extra(row)]
            for metric, limit in limits.items():
                judged = [row for row in rows if table.published.printed(row.key).get(metric) is not None]
                if not judged:
                    continue
                widest = max((pools.planned(row, RULE, metric) for row in judged), key=lambda one: one.value)
                n, error = judged[0].planned, table.published.error
                needed = seeds_needed(widest, stated, limit, error)
                lines.append(
                    [
                        f"{table.name}, {dataset}",
                        heading(metric),
                        str(len(judged)),
                        f"{widest.value:.2f} {widest.source}",
                        str(n),
                        f"{prediction(widest, stated, n) + error:.2f}",
                        f"{limit:.1f}",
                        f"{sees(widest, stated, n) + error:.2f}",
                        "no number" if needed is None else str(needed),
                    ]
                )
    return lines


def page(grid: str) -> list[str]:
    """The lines that are printed for a grid."""
    content = read_content(grid)
    tables, speed = content.tables, Speed(content.tables)
    runs = list({run.place: run for table in tables for row in table.every for run in row.runs}.values())
    source = "as fast as the runs made here" if speed.measured else "by a model of an H100 in float32"
    lines = [f"# Plan of {grid}", "", f"{len(runs)} runs, {speed.hours(runs)} hours, {source}.", ""]
    if any(table.searches and not all(one.best for one in table.searches) for table in tables):
        lines += [
            "Not counted: the runs of the settings that a search chooses when its tries are done.",
            "",
        ]
    tested = [finding for finding in content.findings if finding.state != "untestable"]
    if tested:
        head = [
            "claim",
            "printed",
            "spread",
            "planned seeds",
            "they find",
            "seeds for the printed size",
            "runs",
            "hours",
        ]
        lines += ["**Claims.** In points of the claim's metric; 80 % power at 5 %, corrected for "]
        lines[-1] += f"{len(tested)} claims."
        lines += ["", *padded([head, *(claim_line(finding, speed) for finding in tested)])]
    verdicts = verdict_lines(tables, content.pools)
    if verdicts:
        head = [
            "table",
            "metric",
            "rows",
            "spread",
            "planned seeds",
            "interval ±",
            "limit",
            "it sees",
            "seeds to be consistent",
        ]
        lines += ["**Verdicts on printed numbers.** In points. `it sees`: the smallest shortfall that would be called "]
        lines[-1] += "different with 80 % probability."
        lines += ["", *padded([head, *verdicts])]
    if not tested and not verdicts:
        lines += ["The grid has no claims (claims.yaml) and no printed numbers (published.yaml)."]
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", help="default, or a folder of papers/, such as proxygml")
    print("\n".join(page(parser.parse_args().grid)))


if __name__ == "__main__":
    exit_with(main)
