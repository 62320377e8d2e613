"""Checkpoints of runs in progress: whole or absent, of one configuration, held by one process.

A run's checkpoint lies in data/checkpoints, named after the run's output folder. That is no output of DVC, for DVC
removes outputs before a run. It goes when the run has finished.
"""

import fcntl
import hashlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from pipeline.base.files import BadInputError, whole

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a run that was told to stop (SIGTERM), saved, and will go on when it is started again."""


def place(out: Path) -> Path:
    """Where the checkpoint of the run with this output folder lies."""
    return Path("data/checkpoints") / (str(out).strip("/").replace("/", "-") + ".pt")


def fingerprint(configuration: Any) -> str:
    """SHA-256 of a configuration that is JSON: what a run computes depends on nothing else."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()


def save(path: Path, configuration: str, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, texts, lists and dicts of those) with the fingerprint of its configuration."""
    with whole(path) as temporary:
        torch.save({"configuration": configuration, **state}, temporary)


def load(path: Path, configuration: str) -> dict[str, Any] | None:
    """The state that was saved under this configuration, tensors on the CPU; None where there is none."""
    if not path.is_file():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state if state.pop("configuration") == configuration else None


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the checkpoint at `path` while the block runs; `BadInputError` says which process holds it already.

    The lock is the system's, so it goes with the process however that ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise BadInputError(f"{lock}: this run is being trained by {holder}: wait for it, or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        # The file stays: were it removed, one process could lock the old one and another the new.
        yield


class Termination:
    """Whether SIGTERM has come, for a loop to look at between steps."""

    def __init__(self) -> None:
        self.came = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True
