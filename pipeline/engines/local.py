"""The local engine: runs in processes of this machine, one at a time in each place.

Runs are forked from the server of engines/server.py. If a run's driver or the server ends, the run is asked to stop: it
saves, and resumes when it is started again.
"""

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from pipeline.base.command import exit_with
from pipeline.base.machine import MOST_WORKERS, Machine
from pipeline.engines.places import Place, mps_is_on, places
from pipeline.engines.progress import Progress
from pipeline.engines.server import STOPPING, in_server, server
from pipeline.runs import store
from pipeline.runs.cost import costs_of, longest_first
from pipeline.runs.grid import GridRun
from pipeline.runs.key import device_kind
from pipeline.runs.states import Keys, keys_of

HELD, GRAPHS_FAILED, TERMINATED = 75, 76, 143
"""As in work/job.py, which imports torch."""

PR_SET_PDEATHSIG = 1
KILLED_AT_MOST = 3
"""A run that is killed from outside fails after this number of kills in one call."""

LOOK_AGAIN = 1.0
"""Seconds between two checks for runs to start, as long as no run ends."""


def _stop_once() -> None:
    """Pass only the first SIGTERM or Ctrl-C to this process's handlers.

    Several signals come: SLURM signals every process of a task, and a terminal every process of a command; the driver
    passes on its own signal; and the end of the driver, or of the server that forked this process, counts as a signal.
    For the handlers, a second signal means not to save. Whoever wants that has to send SIGKILL. Processes that load
    images do not get these signals, and end with this process.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    driver = multiprocessing.parent_process()
    assert driver is not None

    def watch() -> None:
        multiprocessing.connection.wait([driver.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    def pass_on() -> None:
        signal.sigwait(STOPPING)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        # Sent to this thread, the only one that does not block it. Python calls the handler in the main thread.
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)

    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    for task in (watch, pass_on):
        threading.Thread(target=task, daemon=True).start()


def _child(run: GridRun, machine: Machine, place: Place, mps: bool, log: Path) -> None:
    """The main function of a run's process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.pop("DVC_STAGE", None)  # DVC records what the whole stage has made, not what each run has made
    _stop_once()
    place.enter()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from pipeline.work.job import Job, perform

    code = 0

    def main() -> None:
        nonlocal code
        chosen = (machine.device, machine.workers, place.shared_by, mps, machine.checkpoints, machine.cuda_graphs)
        code = perform(Job(run.run, str(run.place), *chosen))

    exit_with(main)
    sys.exit(code)


@dataclass
class Slot:
    """A place, and the run that is made there now."""

    number: int
    place: Place
    run: GridRun | None = None
    process: ForkServerProcess | None = None
    log: Path = Path()
    read: int = 0
    """The bytes of the log that have been shown."""

    def new_lines(self, to_the_end: bool = False) -> list[str]:
        """The new lines of the log. An incomplete last line is included only with `to_the_end`."""
        with self.log.open("rb") as file:
            file.seek(self.read)
            text = file.read()
        if not to_the_end:
            text = text[: text.rfind(b"\n") + 1]
        self.read += len(text)
        return text.decode(errors="replace").splitlines()


@dataclass
class Outcome:
    """The runs that were done and those that failed, and whether the work was stopped."""

    done: list[GridRun] = field(default_factory=list)
    failed: list[GridRun] = field(default_factory=list)
    stopped: bool = False


@dataclass(frozen=True)
class Worker:
    """The settings of one worker, for an engine that starts several."""

    since: float
    """When the workers were started, in seconds since 1970. A run that has failed since then is not tried again."""
    number: int = 0
    """The number of this worker, from 0. It first tries the run with this number, so that workers do not all try the
    same run."""
    shared_by: int = 1
    """The number of workers that share its GPU."""


def work(machine: Machine, machines: dict[str, Machine], words: list[str], runs: list[GridRun]) -> Outcome:
    """Make all runs that are not done on this machine."""
    return Pool(machine, machines, runs).work()


class Pool:
    """Takes runs that are neither done nor held, starts each in a free place, and repeats until no run is left.

    `machines` has the machine settings of each grid's params file; `machine` decides the places. If the pool is one
    `worker` of several, it ends when there is no more run to take, even if other workers are still busy.
    """

    def __init__(
        self, machine: Machine, machines: dict[str, Machine], runs: list[GridRun], worker: Worker | None = None
    ):
        self.machines, self.runs, self.worker = machines, runs, worker
        # Without a GPU, one worker of several has a single place, because their engine decides how many a machine gets.
        threads = MOST_WORKERS if worker else max((run.run.recipe.cpu_threads for run in runs), default=1)
        sharing = worker.shared_by if worker else 1
        own = [replace(place, shared_by=place.shared_by * sharing) for place in places(machine, threads, len(runs))]
        self.slots = [Slot(number, place) for number, place in enumerate(own)]
        self.since = worker.since if worker else time.time()
        self.mps = device_kind(machine.device) == "cuda" and mps_is_on()
        self.stop_requests = 0
        self.kills: dict[Path, int] = {}
        self.keys: dict[Path, Keys] = {}
        self.outcome = Outcome()

    def _stop(self, number: int, frame: object) -> None:
        self.stop_requests += 1
        if self.stop_requests == 1:
            # Not by print, because this handler may have interrupted a print.
            os.write(2, b"asked to stop: running runs save; a second request ends them at once\n")
        for slot in self.slots:
            if slot.process is not None and slot.process.is_alive():
                # The first request lets the run save, the second kills it. A worker may get the same request several
                # times, so it never kills; its engine does.
                (slot.process.terminate if self.stop_requests == 1 or self.worker else slot.process.kill)()

    def work(self) -> Outcome:
        """Make all runs that are not done. Return when each is done or has failed, or after a SIGTERM or Ctrl-C."""
        costs = in_server(costs_of, self.runs)
        pending = longest_first(self.runs, costs)
        self.keys = {run.place: keys_of(run, self.machines[run.grid].device) for run in self.runs}
        self.progress = Progress(self.runs, len(self.slots), costs)
        self._announce()
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        looked = 0.0
        try:
            while pending or any(slot.process for slot in self.slots):
                if any(slot.process is None for slot in self.slots) and time.monotonic() > looked + LOOK_AGAIN:
                    pending, looked = self._start(pending), time.monotonic()
                    if self.worker and not any(slot.process for slot in self.slots):
                        break
                time.sleep(0.05)
                for slot in self.slots:
                    ended = slot.run
                    pending = self._look(slot) + pending
                    if ended and slot.run is None:
                        looked = 0.0
                if self.stop_requests:
                    pending = []
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.progress.close()
        self.outcome.stopped = self.stop_requests > 0
        return self.outcome

    def _announce(self) -> None:
        if len(self.slots) > 1:
            print(f"{len(self.slots)} runs at a time", file=sys.stderr)
        shared = max(slot.place.shared_by for slot in self.slots)
        if shared > 1 and self.slots[0].place.gpu is not None:
            fix = "" if self.mps else ": start it (nvidia-cuda-mps-control -d), sharing gains almost nothing without it"
            print(f"{shared} runs share a GPU, MPS is {'on' if self.mps else 'off'}{fix}", file=sys.stderr)

    def _start(self, pending: list[GridRun]) -> list[GridRun]:
        """Start the runs that can be started. Return the runs that are left for later."""
        later: list[GridRun] = []
        ready: list[GridRun] = []
        for run in pending:
            keys = self.keys[run.place]
            now, note = keys.state(), keys.failure()
            waits_in_vain = now == "waits" and any(failed.run in run.run.waits_for for failed in self.outcome.failed)
            if now == "done":
                self.outcome.done.append(run)
                self.progress.ends(run, "done")
            elif waits_in_vain or (note and note["time"] >= self.since):
                self._fails(run)  # another process failed with it, or the run that it waits for has failed
            else:
                (later if now in ("running", "waits") else ready).append(run)
        if self.worker and ready:
            number = self.worker.number % len(ready)
            ready, self.worker = ready[number:] + ready[:number], replace(self.worker, number=0)
        free = [] if self.stop_requests else [slot for slot in self.slots if slot.process is None]
        for slot, run in zip(free, ready, strict=False):
            self._fork(slot, run)
        return ready[len(free) :] + later

    def _fails(self, run: GridRun) -> None:
        self.outcome.failed.append(run)
        self.progress.ends(run, "failed")

    def _fork(self, slot: Slot, run: GridRun) -> None:
        slot.run, slot.log = run, store.beside(self.keys[run.place].own[0], "log")
        slot.log.parent.mkdir(parents=True, exist_ok=True)
        slot.log.touch()
        slot.read = slot.log.stat().st_size
        self.progress.starts(slot.number, run)
        words = (run, self.machines[run.grid], slot.place, self.mps, slot.log)
        slot.process = server().Process(target=_child, args=words)
        slot.process.start()

    def _look(self, slot: Slot) -> list[GridRun]:
        """Show what a slot's run has printed, and free the slot if the run has ended. Return the run if its state must
        be checked again."""
        if slot.process is None or slot.run is None:
            return []
        code = slot.process.exitcode
        for line in slot.new_lines(to_the_end=code is not None):
            self.progress.say(slot.number, slot.run, line)
        if code is None:
            return []
        slot.process.join()
        run, slot.run, slot.process = slot.run, None, None
        self.progress.frees(slot.number, run)
        if code in (0, HELD, GRAPHS_FAILED, TERMINATED, -signal.SIGTERM):
            return [run]
        if code < 0:
            self.kills[run.place] = self.kills.get(run.place, 0) + 1
            if self.kills[run.place] < KILLED_AT_MOST:
                print(f"{run.place}: killed by {signal.Signals(-code).name}, started again", file=sys.stderr)
                return [run]
            store.note_error(
                self.keys[run.place].own[0], f"killed by {signal.Signals(-code).name} {KILLED_AT_MOST} times"
            )
        self._fails(run)
        return []
