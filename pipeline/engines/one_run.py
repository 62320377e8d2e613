"""Make the one run that standard input asks for, as JSON: what Ray starts in a clone of a node's own.

    {"grid", "dataset", "table", "place", "keys", "contents", "machine", "shared_by"}

The run must have the keys that it has where it was asked for; what they hold otherwise is named.
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from pipeline.base.files import BadInputError, exit_with
from pipeline.base.machine import Machine
from pipeline.engines.local import TERMINATED, Pool, Worker
from pipeline.runs import store
from pipeline.runs.grid import GridRun, grid_runs
from pipeline.runs.key import Key, evaluation_key, training_key


def keys(run: GridRun, device: str) -> list[Key]:
    """The keys of a run's training, where there is one, and of its evaluation, with what they hold."""
    return [*([training_key(run.run, device)] if run.run.trained else []), evaluation_key(run.run, device)]


def differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """What differs between two contents of a key, a line each."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            yield from differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
    elif there != here:
        yield f"{name} is {there} there and {here} here"


def make(task: dict[str, Any]) -> int:
    """Make the run; gives the exit code."""
    runs = {str(run.place): run for run in grid_runs(task["grid"], task["dataset"], task["table"])}
    if task["place"] not in runs:
        raise BadInputError(f"{task['place']} is no run of this clone: commit what asks for it")
    run, machine = runs[task["place"]], Machine.model_validate(task["machine"])
    own = keys(run, machine.device)
    if [key.digest for key in own] != task["keys"]:
        here = json.loads(json.dumps([key.content for key in own]))
        pairs = zip(task["contents"], here, strict=True)
        found = dict.fromkeys(line for pair in pairs for line in differences(*pair) if not line.startswith("training"))
        raise BadInputError(f"a node would make another run than was asked for: {'; '.join(found)}")
    outcome = Pool(machine, {run.grid: machine}, [run], Worker(time.time(), shared_by=task["shared_by"])).work()
    return TERMINATED if outcome.stopped else int(bool(outcome.failed))


def main() -> None:
    """Do it; what is wrong with it is also noted in the store, which the task hands back."""
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
