"""Checkpoints of runs in progress, which are either whole or absent. A run's checkpoint is beside the run's folder in
the store.

Its first line is JSON: the run's key, and the SHA-256 of the rest, which torch wrote. A checkpoint that is damaged, or
is another run's, is never used: it is set aside, and the run starts anew.
"""

import hashlib
import io
import json
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from pipeline.base.files import remove, whole

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a run that was asked to stop (SIGTERM or Ctrl-C) and has saved. It resumes when it is started again."""


class StoppedError(Exception):
    """A run was asked to stop, and has saved its checkpoint."""


def save(path: Path, key: str, state: dict[str, Any]) -> None:
    """Write `state` of the run with a key. It holds tensors, numbers, texts, and lists and dicts of these."""
    content = io.BytesIO()
    torch.save(state, content)
    head = {"key": key, "sha256": hashlib.sha256(content.getbuffer()).hexdigest()}
    with whole(path) as temporary, temporary.open("wb") as file:
        file.write(f"{json.dumps(head)}\n".encode())
        file.write(content.getbuffer())


def on_host(value: Any) -> Any:
    """A copy of a state with all tensors on the CPU. Copies from a GPU are made without waiting, into pinned memory:
    wait for the GPU before reading them."""
    if isinstance(value, Tensor):
        if value.device.type == "cpu":
            return value.detach().clone()
        pinned = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return pinned.copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        return {name: on_host(part) for name, part in value.items()}
    return [on_host(part) for part in value] if isinstance(value, list) else value


class Writer:
    """Writes a run's checkpoints in a thread, beside the next epoch's steps, one at a time."""

    def __init__(self, path: Path, key: str):
        self.path, self.key = path, key
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None

    def save(self, state: dict[str, Any]) -> None:
        """Write a copy of `state` in the background, once the previous checkpoint is written. Raises what that writing
        raised."""
        self.wait()
        copied, event = on_host(state), None
        if torch.cuda.is_initialized():
            event = torch.cuda.Event()
            event.record()
        self.writing = self.thread.submit(self._write, copied, event)

    def _write(self, state: dict[str, Any], event: torch.cuda.Event | None) -> None:
        if event is not None:
            event.synchronize()
        save(self.path, self.key, state)

    def wait(self) -> None:
        """Wait until all is written. Raises what the writing raised."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Wait until all is written, and end the thread. Raises what the writing raised."""
        self.thread.shutdown()
        self.wait()


def problem(path: Path, key: str) -> str:
    """Why the file at `path` is not a good checkpoint of the run with a key; empty if it is one."""
    try:
        with path.open("rb") as file:
            head = json.loads(file.readline(1000))
            found, expected = head["key"], head["sha256"]
            hashed = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, KeyError, TypeError):
        return "it is damaged"
    if found != key:
        return "it is another run's"
    return "" if hashed == expected else "it is damaged"


def load(path: Path, key: str) -> dict[str, Any] | None:
    """The saved state of the run with a key, with tensors on the CPU; None if there is no good checkpoint. A bad one is
    moved to `<path>.damaged`, with a line that says so."""
    if not path.exists():
        return None
    if why := problem(path, key):
        aside = path.with_name(f"{path.name}.damaged")
        remove(aside)
        path.replace(aside)
        print(f"{path}: {why}: set aside as {aside.name}, and the run starts anew", file=sys.stderr)
        return None
    with path.open("rb") as file:
        file.readline()
        state: dict[str, Any] = torch.load(io.BytesIO(file.read()), map_location="cpu", weights_only=True)
    return state


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
