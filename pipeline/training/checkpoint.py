"""Checkpoints of runs in progress, which are either whole or absent. A run's checkpoint is beside the run's folder in
the store and has the run's key in its name, so no other run uses it."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from pipeline.base.files import whole

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a run that was asked to stop (SIGTERM or Ctrl-C) and has saved. It resumes when it is started again."""


class StoppedError(Exception):
    """A run was asked to stop, and has saved its checkpoint."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state`, which holds tensors, numbers, texts, and lists and dicts of these."""
    with whole(path) as temporary:
        torch.save(state, temporary)


def load(path: Path) -> dict[str, Any] | None:
    """The saved state, with tensors on the CPU; None if there is no checkpoint."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None


class Termination:
    """Whether SIGTERM or Ctrl-C has come inside the `with` block (`came`). A loop checks it between steps. A second
    signal of the same kind ends the process. After the block signals do what they did before."""

    def __init__(self) -> None:
        self.came = False

    def __enter__(self) -> None:
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        signal.signal(number, signal.SIG_DFL)
