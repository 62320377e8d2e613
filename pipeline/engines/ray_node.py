"""What Ray runs on its nodes: functions that start the processes of runs, and bring code and data to the node.

Ray sends these functions to the nodes as they are. They use only Python's standard library, because a node may have no
clone yet.
"""

import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

TERMINATED = 143
"""As in work/job.py."""


class NotReadyError(Exception):
    """The code or the data could not be brought to this node."""


class StoppedError(Exception):
    """The task was asked to stop before its run was started."""


class Commands:
    """Commands of a task, one after another. `ray.cancel` stops a task by an interrupt. While the block runs, an
    interrupt is noted and passed on to the command as SIGTERM."""

    def __init__(self, environment: dict[str, str]):
        # Ray sets this to one thread for each processor that a task asked for, but the recipe decides the number.
        own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        self.environment = own | environment
        self.stopped = False

    def __enter__(self) -> "Commands":
        self.before = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number: int, frame: object) -> None:
        self.stopped = True

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self.before)

    def run(self, command: list[str], folder: Path | str, given: str = "", errors: IO[str] | None = None) -> int:
        """Run a command to its end, with the text `given` as its standard input, and return its exit code. Ray shows
        its output on the machine that asked for the runs. If `errors` is given, its errors go to this file instead."""
        if self.stopped:
            return TERMINATED
        process = subprocess.Popen(
            command, cwd=folder, env=self.environment, stdin=subprocess.PIPE, stderr=errors, text=True
        )
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(given)
            process.stdin.close()
        passed_on = False
        while process.poll() is None:
            if self.stopped and not passed_on:
                process.terminate()
                passed_on = True
            time.sleep(0.2)
        return process.returncode

    def must(self, command: list[str], folder: Path) -> None:
        """Run a command. Raises `NotReadyError` if it fails, and `StoppedError` if the task was stopped."""
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            code = self.run(command, folder, errors=errors)
            if self.stopped:
                raise StoppedError
            if code:
                errors.seek(0)
                raise NotReadyError(f"{' '.join(command)}: {errors.read().strip()[-1000:]}")


def worker(command: list[str], folder: str, environment: dict[str, str]) -> int | str:
    """Run a worker that takes runs from the store of the clone in `folder`. Return its exit code, or a text that says
    what is wrong."""
    if not Path(folder).is_dir():
        return f"{folder} does not exist on {os.uname().nodename}: set machine.ray_clones"
    with Commands(environment) as commands:
        return commands.run([sys.executable, *command], folder)


@contextmanager
def held(path: Path, commands: Commands) -> Iterator[None]:
    """Hold a file's lock while the block runs. Wait for it as long as another task of the node holds it. Raises
    `StoppedError`."""
    with path.open("ab") as file:
        while True:
            if commands.stopped:
                raise StoppedError
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.2)
        yield


def clone(code: dict[str, Any], places: Path, commands: Commands) -> Path:
    """The folder of a clone of the commit, which is made if it does not exist. All clones of a node share DVC's cache
    and the store of runs, because the store knows each run by its key."""
    folder: Path = places / code["name"]
    if not folder.is_dir():
        making = places / f".{code['name']}.partial"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        with tarfile.open(fileobj=io.BytesIO(code["git"])) as archive:
            archive.extractall(making, filter="data")
        commands.must(["git", "reset", "--quiet", "--hard"], making)
        for name, content in code["locks"].items():
            (making / name).write_bytes(content)
        (places / "store").mkdir(exist_ok=True)
        (making / "data/store").symlink_to(places / "store")
        (making / ".dvc/config.local").write_text(f"[cache]\n    dir = {places / 'cache'}\n", encoding="utf-8")
        making.rename(folder)
    return folder


def pull(folder: Path, targets: list[str], commands: Commands) -> None:
    """Pull `targets` from DVC's remote, except those that were pulled before."""
    pulled = folder / ".dvc/tmp/pulled"
    before = pulled.read_text(encoding="utf-8").splitlines() if pulled.is_file() else []
    wanted = [target for target in targets if target not in before]
    if wanted:
        commands.must([sys.executable, "-m", "dvc", "pull", "--quiet", *wanted], folder)
        pulled.parent.mkdir(exist_ok=True)
        pulled.write_text("\n".join([*before, *wanted]), encoding="utf-8")


def put(store: Path, key: str, files: dict[str, bytes]) -> None:
    """Put the files of a run that was done elsewhere into the store of this node."""
    if not (store / key).is_dir():
        making = store / f".{key}.{os.getpid()}.partial"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        for name, content in files.items():
            (making / name).write_bytes(content)
        making.rename(store / key)


def one_run(
    code: dict[str, Any], clones: str, task: dict[str, Any], given: dict[str, Any], environment: dict[str, str]
) -> dict[str, Any] | int | str:
    """Make one run in a clone on this node. Return its exit code, its files and errors by key, and its log. The files
    that are returned are removed here. `given` are files of other runs that it needs, by key.

    Returns an exit code if the task was stopped before the run began, and a text that says what is wrong if code or
    data could not be brought here.
    """
    places = Path(os.path.expandvars(clones)).expanduser()
    store, asked = places / "store", time.time()
    with Commands(environment) as commands:
        try:
            places.mkdir(parents=True, exist_ok=True)
            with held(places / ".lock", commands):
                folder = clone(code, places, commands)
                pull(folder, task["targets"], commands)
        except StoppedError:
            return TERMINATED
        except (NotReadyError, OSError, tarfile.TarError) as error:
            return f"{os.uname().nodename}: {error}"
        for key, files in given.items():
            put(store, key, files)
        log = store / f"{task['keys'][0]}.log"
        start = log.stat().st_size if log.is_file() else 0
        done = commands.run([sys.executable, "-m", "pipeline.engines.one_run"], folder, json.dumps(task))
    paths = {key: store / f"{key}.error.json" for key in task["keys"]}
    notes = {key: json.loads(path.read_text(encoding="utf-8")) for key, path in paths.items() if path.is_file()}
    found = [store / key for key in task["keys"] if key not in given and (store / key).is_dir()]
    made = {path.name: {file.name: file.read_bytes() for file in path.iterdir()} for path in found}
    for key in task["keys"]:
        shutil.rmtree(store / key, ignore_errors=True)
    return {
        "code": done,
        "files": made,
        "errors": {key: note["error"] for key, note in notes.items() if note["time"] >= asked},
        "log": log.read_bytes()[start:] if log.is_file() else b"",
    }
