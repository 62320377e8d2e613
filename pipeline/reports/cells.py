"""What stands behind a number on a page: one line for each run."""

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.reports.runs import ShownGrid
from pipeline.tables.model import Number


@dataclass(frozen=True)
class SeedLine:
    """The line on one run that is shown when a cell is opened."""

    seed: str
    value: str
    epoch: str
    revision: str
    data: str
    machine: str
    seconds: str
    made_here: str
    link: str


def seed_lines(grid: ShownGrid, number: Number, folder: Path) -> list[SeedLine]:
    """The runs behind a number, with links from a page in `folder`."""
    lines = []
    for seed, (path, metrics) in sorted(number.row.found[number.rule].items()):
        if number.metric not in metrics:
            continue
        run = grid.runs[path]
        of = run.record.metrics.get(number.rule) or run.record.metrics.get("no_training") or {}
        data = "".join(value[:8] for name, value in run.record.data.items() if name.endswith("index.csv"))
        lines.append(
            SeedLine(
                seed=str(seed),
                value=f"{100 * metrics[number.metric]:.2f}",
                epoch=str(of.get("epoch", "–")),
                revision=run.revision,
                data=data or "not noted",
                machine=run.machine,
                seconds="time not noted" if run.seconds is None else f"{run.seconds:,.0f} s",
                made_here=run.made_here,
                link=os.path.relpath(path, folder),
            )
        )
    return lines
