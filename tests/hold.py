"""A loss whose runs wait in a step until a test lets them go, and the test's side of it.

    hold = Hold(folder); hold.start()     # runs that are started now will wait
    wait until hold.caught(), stop them, wait until hold.asked(), hold.let_go()

A run takes the folder from NODE_FOLDER in its environment; without that it is the folder that it runs in.
"""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

LOSS = '''
import os
import signal
import time

def hold(loss):
    """Count the steps of a loss, and wait while `wait` holds a smaller number."""
    loss.steps = getattr(loss, "steps", 0) + 1
    place = os.environ.get("NODE_FOLDER", ".")
    while True:
        # Training gives a signal its default handler back when it has come.
        asked = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        try:
            with open(f"{place}/wait") as file:
                steps, _, others = file.read().partition(" ")
                if loss.steps <= int(steps) or (asked and others):
                    return
        except FileNotFoundError:  # it has been let go
            return
        with open(f"{place}/partial.{os.getpid()}", "w") as file:
            file.write(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        os.replace(file.name, f"{place}/{'asked' if asked else 'waiting'}-{os.getpid()}")
        time.sleep(0.05)
'''
"""What a loss's file begins with, whose `forward` calls `hold(self)`."""


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen in part."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


class Hold:
    """The files by which a test holds the runs of these folders."""

    def __init__(self, *folders: Path):
        self.folders = folders

    def start(self, steps: int = 0) -> None:
        """Hold runs after so many steps. No run may be in a step now, as it could say once more that it waits."""
        for folder in self.folders:
            for path in (*folder.glob("waiting-*"), *folder.glob("asked-*")):
                path.unlink()
            write_whole(folder / "wait", str(steps))

    def caught(self, runs: int = 1) -> list[Path]:
        """The folders with at least so many runs that wait."""
        return [folder for folder in self.folders if len(list(folder.glob("waiting-*"))) >= runs]

    def asked(self) -> list[Path]:
        """The folders with a run that waits, has been asked to stop, and knows it."""
        return [folder for folder in self.folders if any(folder.glob("asked-*"))]

    def let_go_asked(self) -> None:
        """Let runs go on that have been asked to stop, now and later; the others wait."""
        for folder in self.folders:
            write_whole(folder / "wait", "0 asked")

    def let_go(self) -> None:
        """Let the runs go on."""
        for folder in self.folders:
            (folder / "wait").unlink()


def until(true: Callable[[], object], seconds: float, what: str, process: subprocess.Popen | None = None) -> None:
    """Wait until a function gives something true. Fails with `what` after so many seconds, or if the process ends."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline and (process is None or process.poll() is None), what
        time.sleep(0.05)
