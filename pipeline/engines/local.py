"""The local engine: runs in processes of this machine, one at a time in each slot.

Runs are forked from a server that has imported torch once and never used a GPU. A run whose driver or server is gone is
told to stop: it saves, and goes on when it is started again.
"""

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from pipeline.base.files import exit_with
from pipeline.runs import store
from pipeline.runs.grid import GridRun
from pipeline.runs.key import evaluation_key, training_key

HELD, TERMINATED = 75, 143
"""As in engines/work.py, which imports torch."""

PR_SET_PDEATHSIG = 1
KILLED_AT_MOST = 3
"""How often a run that something outside has killed is started in one call."""


def final_key(run: GridRun, device: str) -> str:
    """The key that is done when all of a run is: its evaluation's."""
    return evaluation_key(run.run, device).digest


def keys_of(run: GridRun, device: str) -> list[str]:
    """The keys of a run's training, where there is one, and of its evaluation."""
    return [*([training_key(run.run, device).digest] if run.run.trained else []), final_key(run, device)]


def state(run: GridRun, device: str) -> str:
    """One of "done", "running", "failed", "not evaluated", "waits" (for the run that chooses its epoch), "not run"."""
    keys = keys_of(run, device)
    if all(map(store.is_done, keys)):
        return "done"
    if any(map(store.holder, keys)):
        return "running"
    if any(map(store.failure, keys)):
        return "failed"
    if store.is_done(keys[0]):
        return "not evaluated"
    chooser = run.run.chosen_by
    if chooser is not None and not store.is_done(training_key(chooser, device).digest):
        return "waits"
    return "not run"


def failure_of(run: GridRun, device: str) -> dict[str, Any] | None:
    """The note of a run's last try, where it failed and the run is not done."""
    return next((note for key in keys_of(run, device) if (note := store.failure(key))), None)


def _end_with_parent() -> None:
    """Tell this process to stop (SIGTERM) when the process that asked for it, or the server that forked it, is gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    driver = multiprocessing.parent_process()
    assert driver is not None

    def watch() -> None:
        multiprocessing.connection.wait([driver.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _child(run: GridRun, device: str, workers: int, log: Path) -> None:
    """A run's process."""
    _end_with_parent()
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from pipeline.engines.work import Job, perform

    code = 0

    def main() -> None:
        nonlocal code
        code = perform(Job(run.run, str(run.place), device, workers))

    exit_with(main)
    sys.exit(code)


@dataclass
class Slot:
    """A place for one run at a time."""

    run: GridRun | None = None
    process: ForkServerProcess | None = None
    log: Path = Path()
    read: int = 0
    """How much of the log has been shown."""

    def echo(self) -> None:
        """Print what has come to the log."""
        with self.log.open(encoding="utf-8", errors="replace") as file:
            file.seek(self.read)
            text = file.read()
            self.read = file.tell()
        sys.stderr.write(text)
        sys.stderr.flush()


@dataclass
class Outcome:
    """What became of the runs that were asked for."""

    done: list[GridRun] = field(default_factory=list)
    failed: list[GridRun] = field(default_factory=list)
    stopped: bool = False


class Pool:
    """Takes runs that are neither done nor held, starts each in a free slot, and looks again until none is left."""

    def __init__(self, device: str, workers: int, slots: int = 1):
        self.device, self.workers = device, workers
        self.slots = [Slot() for _ in range(slots)]
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["pipeline.engines.work"])
        self.told_to_stop = 0
        self.kills: dict[Path, int] = {}
        self.started = time.time()

    def _stop(self, number: int, frame: object) -> None:
        self.told_to_stop += 1
        for slot in self.slots:
            if slot.process is not None and slot.process.is_alive():
                # The first saves; the second ends it.
                (slot.process.terminate if self.told_to_stop == 1 else slot.process.kill)()

    def work(self, runs: list[GridRun]) -> Outcome:
        """Do all runs that are not done; returns when each is done or has failed, or after a SIGTERM or Ctrl-C."""
        outcome, pending = Outcome(), list(runs)
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while pending or any(slot.process for slot in self.slots):
                pending = self._start(pending, outcome)
                time.sleep(0.05)
                for slot in self.slots:
                    pending += self._look(slot, outcome)
                if self.told_to_stop:
                    pending = []
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        outcome.stopped = self.told_to_stop > 0
        return outcome

    def _start(self, pending: list[GridRun], outcome: Outcome) -> list[GridRun]:
        """Start what can be started; gives what is left for later."""
        later: list[GridRun] = []
        free = [slot for slot in self.slots if slot.process is None]
        for run in pending:
            now = state(run, self.device)
            note = failure_of(run, self.device)
            waits_in_vain = now == "waits" and any(run.run.chosen_by == failed.run for failed in outcome.failed)
            if now == "done":
                outcome.done.append(run)
            elif waits_in_vain or (note and note["time"] >= self.started):
                outcome.failed.append(run)  # another process's try, or the run that it waits for
            elif now in ("running", "waits") or not free or self.told_to_stop:
                later.append(run)
            else:
                self._fork(free.pop(), run)
        return later

    def _fork(self, slot: Slot, run: GridRun) -> None:
        slot.run, slot.log = run, store.beside(keys_of(run, self.device)[0], "log")
        slot.log.parent.mkdir(parents=True, exist_ok=True)
        slot.log.touch()
        slot.read = slot.log.stat().st_size
        print(f"{run.place}: started", file=sys.stderr, flush=True)
        slot.process = self.context.Process(target=_child, args=(run, self.device, self.workers, slot.log))
        slot.process.start()

    def _look(self, slot: Slot, outcome: Outcome) -> list[GridRun]:
        """Show what a slot's run has printed, and free the slot if it has ended; gives the run if it is to be looked at
        again."""
        if slot.process is None or slot.run is None:
            return []
        slot.echo()
        code = slot.process.exitcode
        if code is None:
            return []
        slot.process.join()
        slot.echo()
        run, slot.run, slot.process = slot.run, None, None
        if code in (0, HELD, TERMINATED, -signal.SIGTERM):
            return [run]
        if code < 0:
            self.kills[run.place] = self.kills.get(run.place, 0) + 1
            if self.kills[run.place] < KILLED_AT_MOST:
                print(f"{run.place}: killed by {signal.Signals(-code).name}, started again", file=sys.stderr)
                return [run]
            store.note_error(
                keys_of(run, self.device)[0], f"killed by {signal.Signals(-code).name} {KILLED_AT_MOST} times"
            )
        outcome.failed.append(run)
        return []
