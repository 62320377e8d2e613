"""The progress of the runs of all workers. A terminal shows one line for each run and one for all; otherwise lines are
printed that begin with the name of their run."""

import os
import re
import sys
import time
from pathlib import Path

from tqdm import tqdm

from pipeline.runs.grid import GridRun

EPOCH = re.compile(r"^.* epoch (\d+)/(\d+): ", re.MULTILINE)


class Progress:
    """The progress of the runs of one call, by their costs (`costs_of`). Up to `lines` of them are made at a time."""

    def __init__(self, runs: list[GridRun], lines: int, costs: dict[Path, float]):
        self.costs = dict(costs)
        self.shares: dict[Path, float] = {}
        """Run in progress -> the share of it that is done."""
        self.began: dict[Path, float] = {}
        """Run in progress -> the share that was already done when it was started here."""
        self.ended = {"done": 0, "failed": 0}
        self.left, self.paid = len(runs), 0.0
        self.started = time.monotonic()
        # A terminal may have too few lines, or not know its size.
        self.live = sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).lines > lines + 1
        self.bars = [
            tqdm(total=0, position=line, bar_format="{desc}", leave=False, disable=not self.live)
            for line in range(lines + 1)
        ]

    def hear(self, run: GridRun, text: str) -> bool:
        """Note the progress of a run by the last epoch in a text of its log. Return whether the text has an epoch."""
        epochs = EPOCH.findall(text)
        if epochs:
            epoch, last = map(int, epochs[-1])
            self.began.setdefault(run.place, (epoch - 1) / last)
            self.shares[run.place] = epoch / last
        return bool(epochs)

    def say(self, line: int, run: GridRun, text: str) -> None:
        """Show a line that a run has printed."""
        if self.hear(run, text) and self.live:
            self.bars[line].set_description_str(text.strip(), refresh=True)
            self.total()
        else:
            tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()

    def starts(self, line: int, run: GridRun) -> None:
        """Show that a run is started."""
        if self.live:
            self.bars[line].set_description_str(f"{run.place}: started", refresh=True)
        else:
            print(f"{run.place}: started", file=sys.stderr, flush=True)

    def frees(self, line: int, run: GridRun) -> None:
        """Clear the line of a run whose process has ended."""
        self.bars[line].set_description_str("", refresh=True)

    def ends(self, run: GridRun, how: str) -> None:
        """Count a run that is "done" or has "failed", here or elsewhere, and show the total."""
        began = self.began.pop(run.place, None)
        self.shares.pop(run.place, None)
        if began is not None and how == "done":
            self.paid += (1 - began) * self.costs[run.place]
        self.ended[how] += 1
        self.left -= 1
        self.costs[run.place] = 0.0
        self.total()

    def total(self) -> None:
        """Show how many runs are done, and the expected time for the rest."""
        running = [(self.shares[place], self.began[place], self.costs[place]) for place in self.shares]
        paid = self.paid + sum((share - began) * of for share, began, of in running)
        rest = sum(self.costs.values()) - sum(share * of for share, _, of in running)
        failed = f", {self.ended['failed']} failed" if self.ended["failed"] else ""
        left = ""
        if self.left and paid:
            left = f", about {tqdm.format_interval(rest / paid * (time.monotonic() - self.started))} for them"
        text = f"{self.ended['done']} runs done{failed}, {self.left} left{left}"
        if self.live:
            self.bars[-1].set_description_str(text, refresh=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the lines from the terminal, and print the last total."""
        for bar in self.bars:
            bar.close()
        if self.live:
            self.live = False
            self.total()
