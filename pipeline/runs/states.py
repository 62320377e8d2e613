"""Where a run stands, by what the store has of its keys."""

from dataclasses import dataclass
from typing import Any

from pipeline.runs import store
from pipeline.runs.grid import GridRun
from pipeline.runs.key import evaluation_key, training_key


@dataclass(frozen=True)
class Keys:
    """The keys of a run. Asking for them hashes its settings and code; what stands under them changes by the moment."""

    own: tuple[str, ...]
    """Of its training, where there is one, and of its evaluation."""
    awaited: tuple[str, ...]
    """Of what has to be done before: the training that chooses its epoch, or all of an ensemble's runs."""

    def done(self) -> bool:
        """Whether all of the run is."""
        return all(map(store.is_done, self.own))

    def state(self) -> str:
        """One of "done", "running", "failed", "not evaluated", "waits" (for a run that has to be done
        before), "not run"."""
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
        return "not run"

    def failure(self) -> dict[str, Any] | None:
        """The note of the run's last try, where that failed and the run is not done."""
        return next((note for key in self.own if (note := store.failure(key))), None)


def keys_of(run: GridRun, device: str) -> Keys:
    """The keys that a run has on a device as machine.device says it. Raises `NotReadyError` where its data are not all
    there."""
    training = training_key(run.run, device).digest if run.run.trained else None
    evaluation = evaluation_key(run.run, device, training).digest
    chooser, members = run.run.chosen_by, run.run.members
    awaited = [training_key(of, device) for of in ([chooser] if chooser else members)]
    awaited += [evaluation_key(member, device) for member in members]
    own = (training, evaluation) if training else (evaluation,)
    return Keys(own, tuple(key.digest for key in awaited))
