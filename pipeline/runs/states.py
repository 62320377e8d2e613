"""The state of a run, found by what the store has for its keys."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.runs import store
from pipeline.runs.grid import GridRun
from pipeline.runs.key import evaluation_key, training_key


@dataclass(frozen=True)
class Keys:
    """The keys of a run. Computing them hashes its settings and code. What the store has under them can change at any
    time."""

    own: tuple[str, ...]
    """The keys of its training, if it is trained, and of its evaluation."""
    awaited: tuple[str, ...]
    """The keys that must be done before: of the training that chooses its epoch, or of all runs of an ensemble."""
    epochs: int = 1
    """The most epochs of its training."""

    def done(self) -> bool:
        """Whether the run's training and evaluation are done."""
        return all(map(store.is_done, self.own))

    def state(self) -> str:
        """One of "done", "running", "failed", "not evaluated", "waits" (for another run that must be done first),
        "stopped" (it has a checkpoint), "not run"."""
        if self.done():
            return "done"
        if any(map(store.holder, self.own)):
            return "running"
        if any(map(store.failure, self.own)):
            return "failed"
        if store.is_done(self.own[0]):
            return "not evaluated"
        if not all(map(store.is_done, self.awaited)):
            return "waits"
        return "stopped" if store.beside(self.own[0], "checkpoint").is_file() else "not run"

    def shown(self) -> str:
        """The state, and the epoch in which a training is or was stopped, such as "stopped in epoch 3"."""
        state = self.state()
        if state in ("running", "stopped"):
            with suppress(FileNotFoundError):  # there is none before the first step, nor during an evaluation
                lines = store.beside(self.own[0], "history.csv").read_bytes().count(b"\n")
                # There is a heading, and a line for each epoch that is done.
                return f"{state} in epoch {min(lines, self.epochs)}"
        return state

    def damage(self) -> str:
        """What is wrong with what the store has of the run; empty if nothing is."""
        return next((why for key in self.own if store.is_done(key) and (why := store.damage(key))), "")

    def failure(self) -> dict[str, Any] | None:
        """The note of the run's last try, if it failed and the run is not done; otherwise None."""
        return next((note for key in self.own if (note := store.failure(key))), None)


def keys_of(run: GridRun, device: str) -> Keys:
    """The keys of a run. `device` is a value of machine.device. Raises `NotReadyError` if some of its data do not
    exist."""
    training = training_key(run.run, device).digest if run.run.trained else None
    evaluation = evaluation_key(run.run, device, training).digest
    chooser, members = run.run.chosen_by, run.run.members
    awaited = [training_key(of, device) for of in ([chooser] if chooser else members)]
    awaited += [evaluation_key(member, device) for member in members]
    own = (training, evaluation) if training else (evaluation,)
    return Keys(own, tuple(key.digest for key in awaited), run.run.recipe.epochs)
