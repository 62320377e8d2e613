"""Checkpoints of runs in progress: whole or absent. A run's lies beside its folder in the store, under its key, so it
is never another run's."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from pipeline.base.files import whole

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a run that was asked to stop (SIGTERM or Ctrl-C), saved, and will go on when it is started again."""


class StoppedError(Exception):
    """A run was asked to stop, and has saved."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state`: tensors, numbers, texts, lists and dicts of those."""
    with whole(path) as temporary:
        torch.save(state, temporary)


def load(path: Path) -> dict[str, Any] | None:
    """The state that was saved, tensors on the CPU; None where there is none."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None


class Termination:
    """Whether SIGTERM or Ctrl-C has come, for a loop to look at between steps; a second one ends the process."""

    def __init__(self) -> None:
        self.came = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        signal.signal(number, signal.SIG_DFL)
