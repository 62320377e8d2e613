"""A loss whose runs wait in a step until a test lets them go, and the test's side of it.

    hold = Hold(folder); hold.start()     # runs that are started now will wait
    wait until hold.caught(), stop them, wait until hold.asked(), hold.let_go()

A run takes the folder from NODE_FOLDER in its environment; without that it is the folder that it runs in.
"""

from pathlib import Path

LOSS = '''
import os
import signal
import time

def hold(step):
    """Wait while `wait` holds a number of steps below this one."""
    place = os.environ.get("NODE_FOLDER", ".")
    while True:
        try:
            with open(f"{place}/wait") as file:
                if step <= int(file.read()):
                    return
        except (FileNotFoundError, ValueError):  # it has been let go, or the file is not whole yet
            return
        # Training gives a signal its default handler back when it has come.
        asked = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        with open(f"{place}/{'asked' if asked else 'waiting'}", "w") as file:
            file.write(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        time.sleep(0.05)
'''
"""What a loss's file begins with, whose `forward` calls `hold` with the number of the step."""


class Hold:
    """The files by which a test holds the runs of one folder."""

    def __init__(self, folder: Path):
        self.wait, self.waiting, self.was_asked = (folder / name for name in ("wait", "waiting", "asked"))

    def start(self, steps: int = 0) -> None:
        """Hold runs after so many steps. No run may be in a step now, as it could say once more that it waits."""
        self.waiting.unlink(missing_ok=True)
        self.was_asked.unlink(missing_ok=True)
        self.wait.write_text(str(steps))

    def caught(self) -> bool:
        """Whether a run waits."""
        return self.waiting.exists()

    def asked(self) -> bool:
        """Whether the run that waits has been asked to stop, and knows it."""
        return self.was_asked.exists()

    def let_go(self) -> None:
        """Let the run go on."""
        self.wait.unlink()
