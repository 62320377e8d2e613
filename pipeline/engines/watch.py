"""Waiting for runs that are made elsewhere, for engines such as SLURM and Ray: by the state of the store. A stop is
passed on."""

import signal
import sys
from collections.abc import Callable

from pipeline.base.machine import Machine
from pipeline.engines.local import Outcome
from pipeline.engines.progress import Progress
from pipeline.engines.server import in_server
from pipeline.runs import store
from pipeline.runs.cost import costs_of, longest_first
from pipeline.runs.grid import GridRun
from pipeline.runs.states import keys_of


class Stop:
    """Counts SIGTERM and Ctrl-C while a block runs, and passes them on."""

    def __init__(self) -> None:
        self.came = 0
        self.passed_on: Callable[[int], None] = lambda number: None

    def __enter__(self) -> "Stop":
        self.handlers = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, frame: object) -> None:
        self.came += 1
        self.passed_on(self.came)

    def __exit__(self, *error: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


class Watch:
    """The state of the runs in the store, which is read again and again."""

    def __init__(self, runs: list[GridRun], machines: dict[str, Machine], since: float):
        costs = in_server(costs_of, runs)
        self.since, self.outcome, self.left = since, Outcome(), longest_first(runs, costs)
        self.keys = {run.place: keys_of(run, machines[run.grid].device) for run in runs}
        self.progress = Progress(runs, 0, costs)

    def look(self) -> None:
        """Move the runs that are done or have failed since the last call from `left` to `outcome`."""
        left = []
        for run in self.left:
            note = self.keys[run.place].failure()
            in_vain = any(failed.run in run.run.waits_for for failed in self.outcome.failed)
            log = store.beside(self.keys[run.place].own[0], "log")
            if self.keys[run.place].done():
                self.outcome.done.append(run)
                self.progress.ends(run, "done")
            elif in_vain or (note and note["time"] >= self.since):
                error = note["error"] if note else "the run that it waits for has failed"
                print(f"{run.place}: failed: {error}", file=sys.stderr)
                self.outcome.failed.append(run)
                self.progress.ends(run, "failed")
            else:
                left.append(run)
                if log.is_file() and log.stat().st_mtime > self.since:
                    self.progress.hear(run, log.read_bytes()[-4096:].decode(errors="replace"))
        self.left = left

    def footprint(self) -> object:
        """A value that changes when any run makes progress: the runs that are left, and the times of their
        checkpoints."""
        found = []
        for run in self.left:
            for key in self.keys[run.place].own:
                path = store.beside(key, "checkpoint")
                found.append((key, store.is_done(key), path.stat().st_mtime_ns if path.is_file() else 0))
        return found
