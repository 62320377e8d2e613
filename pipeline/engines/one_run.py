"""Make the one run that standard input asks for as JSON. Ray starts this in a node's own clone.

    {"grid", "dataset", "table", "place", "keys", "contents", "machine", "shared_by"}

The run must have the same keys as on the machine that asked for it. If not, the error names the differences of their
contents.
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from pipeline.base.command import exit_with
from pipeline.base.files import BadInputError
from pipeline.base.machine import Machine
from pipeline.engines.local import TERMINATED, Pool, Worker
from pipeline.runs import store
from pipeline.runs.grid import GridRun, grid_runs
from pipeline.runs.key import Key, evaluation_key, training_key


def keys(run: GridRun, device: str) -> list[Key]:
    """The keys of a run's training, if it is trained, and of its evaluation, with their contents."""
    return [*([training_key(run.run, device)] if run.run.trained else []), evaluation_key(run.run, device)]


def differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """The differences between two contents of a key, one line each."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            yield from differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
    elif there != here:
        yield f"{name} is {there} there and {here} here"


def make(task: dict[str, Any]) -> int:
    """Make the run and return the exit code. Raises `BadInputError` if this clone does not have the run, or would make
    it with other keys."""
    runs = {str(run.place): run for run in grid_runs(task["grid"], task["dataset"], task["table"], True)}
    if task["place"] not in runs:
        raise BadInputError(f"{task['place']} is not a run of this clone: commit the params file that defines it")
    run, machine = runs[task["place"]], Machine.model_validate(task["machine"])
    own = keys(run, machine.device)
    if [key.digest for key in own] != task["keys"]:
        here = json.loads(json.dumps([key.content for key in own]))
        pairs = zip(task["contents"], here, strict=True)
        found = dict.fromkeys(line for pair in pairs for line in differences(*pair) if not line.startswith("training"))
        raise BadInputError(f"a node would make another run than the one asked for: {'; '.join(found)}")
    outcome = Pool(machine, {run.grid: machine}, [run], Worker(time.time(), shared_by=task["shared_by"])).work()
    return TERMINATED if outcome.stopped else int(bool(outcome.failed))


def main() -> None:
    """Make the run. Bad input is also noted in the store, because the task sends these notes back."""
    task = json.load(sys.stdin)
    try:
        code = make(task)
    except BadInputError as error:
        store.STORE.mkdir(parents=True, exist_ok=True)
        store.note_error(task["keys"][0], str(error))
        raise
    sys.exit(code)


if __name__ == "__main__":
    exit_with(main)
