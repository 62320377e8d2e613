"""Copies of the checkpoints of runs in progress, at an address that outlives the machine (`machine.checkpoints`).

A run begins from the newer of its own checkpoint and the copy. A run that was interrupted on a spot machine can
therefore resume on a machine that has not seen it before. A copy is either whole or absent, and its name is the run's
key. It stays until a command finds the run done in its own store, because a machine may die between the last epoch and
the transfer of the run.
"""

import functools
import os
import re
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.base.files import BadInputError
from pipeline.runs import store

SECONDS = 2.0
"""The time between two checks for a new checkpoint."""

ENDING = ".checkpoint"


class Copies:
    """The copies at an fsspec address. Environment variables in it are expanded on this machine. Raises `BadInputError`
    if the address cannot be used."""

    def __init__(self, address: str):
        import fsspec  # here, because few users need it

        self.address = address
        with self.clear_error():
            self.files, self.root = fsspec.core.url_to_fs(os.path.expandvars(address))

    @contextmanager
    def clear_error(self) -> Iterator[None]:
        """Turn any error of the address, its package or its server into `BadInputError`, because each has its own kinds
        of errors."""
        try:
            yield
        except Exception as error:
            raise BadInputError(f"machine.checkpoints: {self.address}: {type(error).__name__}: {error}") from error

    def place(self, key: str) -> str:
        """The path of the copy of a run's checkpoint."""
        return f"{self.root.rstrip('/')}/{key}{ENDING}"

    def fetch(self, key: str) -> None:
        """Put the copy of a run's checkpoint into the store, if it is newer than the checkpoint there and not
        damaged."""
        from pipeline.training.checkpoint import problem  # here, because it imports torch

        here = store.beside(key, "checkpoint")
        with self.clear_error():
            if not self.files.exists(self.place(key)):
                return
            if here.is_file() and here.stat().st_mtime >= self.files.modified(self.place(key)).timestamp():
                return
            with tempfile.TemporaryDirectory(prefix=".copy-", dir=store.STORE) as folder:
                copy = Path(folder, "checkpoint")
                self.files.get_file(self.place(key), str(copy))
                if why := problem(copy, key):
                    print(f"the checkpoint at {self.address} is not used: {why}", file=sys.stderr)
                    return
                copy.replace(here)
        print(f"checkpoint taken from {self.address}", file=sys.stderr)

    def keep(self, key: str) -> None:
        """Copy a run's checkpoint to the address."""
        with tempfile.TemporaryDirectory(prefix=".copy-", dir=store.STORE) as folder, self.clear_error():
            # The file must not change while it is copied. The run replaces its checkpoint, and this link keeps the old.
            still = Path(folder, "checkpoint")
            store.link(store.beside(key, "checkpoint"), still)
            self.files.makedirs(self.root, exist_ok=True)
            temporary = f"{self.root.rstrip('/')}/.{key}.{uuid.uuid4().hex}.partial"
            try:
                self.files.put_file(str(still), temporary)
                self.files.mv(temporary, self.place(key))
            except BaseException:
                if self.files.exists(temporary):
                    self.files.rm(temporary)
                raise

    def clear(self) -> None:
        """Remove the copies of runs that are done in this store."""
        with self.clear_error():
            for path in self.files.ls(self.root, detail=False) if self.files.exists(self.root) else []:
                name = re.fullmatch(rf"([0-9a-f]{{64}}){re.escape(ENDING)}", path.rsplit("/", 1)[-1])
                if name and store.is_done(name[1]):
                    self.files.rm(path)


def clear(address: str) -> None:
    """Remove the copies at an address whose runs are done in this store. If that fails, the reason is printed."""
    try:
        Copies(address).clear()
    except BadInputError as error:
        print(f"copies of checkpoints cannot be removed: {error}", file=sys.stderr)


class Follower:
    """Copies each new checkpoint of a run. An error is printed, and the next checkpoint is tried again."""

    def __init__(self, key: str, keep: Callable[[], None]):
        self.path, self.keep, self.ended = store.beside(key, "checkpoint"), keep, threading.Event()
        self.seen: Any = self.state()
        self.thread = threading.Thread(target=self.follow, daemon=True)

    def state(self) -> tuple[int, int] | None:
        """Inode and time of the checkpoint, which differ for each new one; None without a checkpoint."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    def look(self) -> None:
        """Copy the checkpoint if it is a new one."""
        state = self.state()
        if state is not None and state != self.seen:
            self.seen = state
            try:
                self.keep()
            except Exception as error:
                print(f"the checkpoint is not copied: {error}", file=sys.stderr, flush=True)

    def follow(self) -> None:
        """Look every `SECONDS` until the end."""
        while not self.ended.wait(SECONDS):
            self.look()


@contextmanager
def copied(key: str, address: str | None) -> Iterator[None]:
    """Fetch a run's checkpoint, and copy each new one while the block trains the run. Do nothing without an address.
    Raises `BadInputError` if the address cannot be read."""
    if address is None:
        yield
        return
    copies = Copies(address)
    copies.fetch(key)
    follower = Follower(key, functools.partial(copies.keep, key))
    follower.thread.start()
    try:
        yield
    finally:
        follower.ended.set()
        follower.thread.join()
        follower.look()
