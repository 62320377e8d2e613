"""TensorBoard for runs in progress: the values of their live histories, epoch by epoch.

While a run trains, `data/store/<key>.history.csv` gets a line for each epoch. The process that started the runs reads
this file. The run itself does nothing for TensorBoard, so no result can depend on it.
"""

import csv
import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.base.files import BadInputError, remove
from pipeline.base.machine import Machine
from pipeline.runs import store
from pipeline.runs.grid import GridRun
from pipeline.runs.states import keys_of

EVENTS = Path("data/tensorboard")
SECONDS = 2.0
"""The time between two readings of the histories."""


def check_package() -> None:
    """Raise `BadInputError` if the package tensorboard is not installed."""
    try:
        importlib.import_module("tensorboard")
    except ImportError:
        raise BadInputError(
            "machine.tensorboard is true, but the package tensorboard is not installed: `pip install tensorboard`, or "
            "set it to false"
        ) from None


class Follower:
    """Writes the histories of some runs, as far as they exist, to folders below `EVENTS` with the runs' names."""

    def __init__(self, runs: list[GridRun], machines: dict[str, Machine]):
        trained = [run for run in runs if run.run.trained]
        self.keys = {run.place: keys_of(run, machines[run.grid].device).own[0] for run in trained}
        self.writers: dict[Path, Any] = {}
        self.epochs = dict.fromkeys(self.keys, 0)

    def look(self) -> None:
        """Write the lines that are new since the last call."""
        from torch.utils.tensorboard import SummaryWriter

        for place, key in self.keys.items():
            lines = read_lines(store.beside(key, "history.csv")) or read_lines(store.folder(key) / "history.csv")
            new = lines[self.epochs[place] :]
            if new and place not in self.writers:
                remove(EVENTS / place)  # events of an earlier try: all lines are written again
                self.writers[place] = SummaryWriter(str(EVENTS / place))
            for line in new:
                for name, value in line.items():
                    if value and name not in ("epoch", "weights"):
                        self.writers[place].add_scalar(name, float(value), int(line["epoch"]))
            if new:
                self.writers[place].flush()
                self.epochs[place] = len(lines)


def read_lines(history: Path) -> list[dict[str, str]]:
    """The lines of a history; none if the file does not exist."""
    try:
        with history.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


@contextmanager
def followed(runs: list[GridRun], machines: dict[str, Machine]) -> Iterator[None]:
    """Follow runs while the block makes them. `machines` is grid -> its `Machine`."""
    follower, ended = Follower(runs, machines), threading.Event()

    def follow() -> None:
        while not ended.wait(SECONDS):
            follower.look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        follower.look()
        for writer in follower.writers.values():
            writer.close()
