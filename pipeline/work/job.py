"""What a worker does with one run: it trains it and evaluates it, each under its key, unless this is already done."""

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.arrays import write_arrays
from pipeline.base.files import BadInputError, sha256, write_json
from pipeline.base.provenance import Meter, machine, provenance
from pipeline.networks.network import prepare
from pipeline.runs import store
from pipeline.runs.key import Key, evaluation_key, training_key
from pipeline.runs.record import (
    CODE,
    MADE,
    METRICS,
    QUERIES,
    RECORD,
    MetricsRecord,
    Retrieved,
    TrainingRecord,
    gpus_of,
)
from pipeline.runs.run import Run, best_epoch, read_history
from pipeline.training.checkpoint import TERMINATED, StoppedError
from pipeline.training.graphs import GraphsFailedError
from pipeline.training.loop import Training
from pipeline.work.copies import copied
from pipeline.work.evaluation import (
    TestImages,
    evaluate_ensemble,
    evaluate_pixels,
    evaluate_untrained,
    evaluate_weights,
    held_out_retrieved,
)

HELD = 75
"""Exit code of a worker whose run is held by another process. This is no failure; the run is checked again later."""

GRAPHS_FAILED = 76
"""Exit code of a worker whose CUDA graphs failed. The run goes on from its checkpoint when it is started again."""


@dataclass(frozen=True)
class Job:
    """A run to make, its name in messages, and what the machine's owner chose."""

    run: Run
    name: str
    device: str
    workers: int
    shared_by: int = 1
    """The number of runs that share the GPU, or the processor, including this one."""
    mps: bool = False
    """Whether NVIDIA's Multi-Process Service runs."""
    checkpoints: str | None = None
    """The address to which its checkpoints are copied."""
    cuda_graphs: str = "auto"

    def sharing(self) -> dict[str, Any]:
        """The entries of made.json on how the device was shared."""
        return {"runs_on_device": self.shared_by, "mps": self.mps}


def chosen_epoch(run: Run, device: str) -> int:
    """The last epoch of a held-out run: the best epoch of the run that chooses it. Raises `BadInputError` if that run
    is not done or not usable."""
    assert run.chosen_by is not None
    key = training_key(run.chosen_by, device).digest
    if not store.check(key):
        raise BadInputError(
            "the run that chooses the epoch of this one is not done: run the same command with --choose-epoch first"
        )
    folder = store.folder(key)
    epoch = best_epoch(read_history(folder / "history.csv"), folder / "history.csv")
    if not 1 <= epoch <= run.recipe.epochs:
        raise BadInputError(f"{folder / 'history.csv'}: its best epoch {epoch} is not one of the {run.recipe.epochs}")
    return epoch


def train_run(job: Job, key: Key, folder: Path, last_epoch: int | None = None) -> None:
    """Train a run and write its files to `folder`, which must exist: weights, history, record, and made.json. With
    `last_epoch` the training ends after that epoch."""
    run = job.run
    device = prepare(run.recipe, job.device)
    last = last_epoch or (chosen_epoch(run, job.device) if run.protocol == "held_out" else run.recipe.epochs)
    beside = (store.beside(key.digest, "checkpoint"), store.beside(key.digest, "history.csv"))
    noted = store.beside(key.digest, "graphs")
    with copied(key.digest, job.checkpoints):
        try:
            training = Training(
                *(run, job.name, last, device, job.workers, key.digest, *beside),
                graphs=job.cuda_graphs == "auto",
                shared_by=job.shared_by,
                graphs_failed=noted.read_text(encoding="utf-8", errors="replace") if noted.is_file() else "",
            )
            training.train()
        except GraphsFailedError as error:
            noted.write_text(str(error), encoding="utf-8")
            raise
    write_json(folder / CODE, key.code)
    names = [*training.write(folder), CODE]
    record = TrainingRecord.made(
        key=key.digest,
        content=key.content,
        epochs=last,
        gpus=gpus_of(training.progress.machines),
        images=training.parts.training_images,
        classes=training.parts.classes,
        files={name: sha256(folder / name) for name in names},
    )
    write_json(folder / RECORD, record.model_dump(mode="json"))
    speeds = {name: getattr(training.progress, name) for name in ("epoch_seconds", "images_per_second")}
    more = {**job.sharing(), **training.on_device(), **speeds}
    write_json(folder / MADE, provenance(device, training.spent, training.progress.machines, **more))
    beside[1].unlink(missing_ok=True)
    noted.unlink(missing_ok=True)


def kept_weights(record: TrainingRecord) -> dict[Path, int]:
    """The weights that a run of the store kept, given by its checked record (`store.entry`): file -> epoch."""
    folder = store.folder(record.key)
    if record.protocol == "held_out":
        return {folder / "held_out.pt": record.epochs}
    history = folder / "history.csv"
    best = best_epoch(read_history(history), history)
    return {folder / "best_test_epoch.pt": best, folder / "last_epoch.pt": record.epochs}


def kept_embeddings(member: Run, device: str, rule: str) -> tuple[Path, Path]:
    """The files of a run that an ensemble reads: `queries.npz` of its evaluation, and its weights. Both are checked.
    Raises `BadInputError` if the run is not done."""
    trained, evaluated = training_key(member, device).digest, evaluation_key(member, device).digest
    for key in (trained, evaluated):
        if not store.check(key):
            raise BadInputError(f"a run of the ensemble is not done (seed {member.seed}): run the grid again")
    return store.folder(evaluated) / "queries.npz", store.folder(trained) / f"{rule}.pt"


def evaluate_run(job: Job, key: Key, folder: Path) -> None:
    """Evaluate a run that is trained, or one without training, and write metrics, queries and made.json to `folder`."""
    run = job.run
    device = prepare(run.recipe, job.device)
    meter = Meter(device)
    record, trained, queries = None, None, dict[str, np.ndarray]()
    if run.trained:
        record = store.entry(key.content["training"], TrainingRecord)
        trained = store.folder(record.key)
    history = read_history(trained / "history.csv") if trained else []
    if run.protocol == "choose_epoch":
        assert trained is not None and record is not None
        epoch = best_epoch(history, trained / "history.csv")
        recalls = {name: value for name, value in history[epoch - 1].items() if name.startswith("recall@")}
        found: dict[str, Any] = {"held_out_classes": {"epoch": epoch, **recalls}}
        retrieved = held_out_retrieved(run.held_out)
    else:
        images = TestImages(run.dataset, run.recipe, job.workers, device, job.shared_by)
        retrieved = images.retrieved
        if trained is not None and record is not None:
            found, queries = evaluate_weights(images, kept_weights(record), run.seed)
        elif run.members:
            rule = "last_epoch" if run.members[0].protocol == "test" else "held_out"
            kept = [kept_embeddings(member, job.device, rule) for member in run.members]
            found, queries = evaluate_ensemble(images, kept, rule, run.seed)
        elif run.protocol == "untrained":
            found, queries = evaluate_untrained(images, run.seed)
        else:
            found, queries = evaluate_pixels(images)
    write_json(folder / CODE, key.code)
    if queries:
        write_arrays(folder / QUERIES, queries)
    content = MetricsRecord.made(
        key=key.digest,
        content=key.content,
        dataset=run.dataset,
        gpus=gpus_of([machine(device)]),
        retrieved=Retrieved(**retrieved),
        metrics=found,
        history=[{name: line[name] for name in line if name != "weights"} for line in history],
        run=record,
        files={name: sha256(folder / name) for name in [CODE, *([QUERIES] if queries else [])]},
    )
    write_json(folder / METRICS, content.model_dump(mode="json"))
    write_json(folder / MADE, provenance(device, meter.read(), **job.sharing()))


def do(job: Job, key: Key, work: Callable[[Job, Key, Path], None]) -> None:
    """Call `work` (`train_run` or `evaluate_run`) unless its key is done. An error is noted in the store and raised
    again. Raises `HeldError` if another process does the same work, and `StoppedError` if asked to stop."""
    with store.claim(key.digest):
        if store.check(key.digest):
            return
        try:
            with store.fill(key.digest) as folder:
                work(job, key, folder)
        except (StoppedError, GraphsFailedError):
            raise
        except Exception as error:
            said = str(error) if isinstance(error, BadInputError) else f"{type(error).__name__}: {error}"
            with suppress(OSError):  # if the disk is full, the original error is more important
                store.note_error(key.digest, said)
            raise


def perform(job: Job) -> int:
    """Train and evaluate a run, unless this is done already. Returns the exit code: 0, `HELD`,
    `TERMINATED` or `GRAPHS_FAILED`."""
    try:
        if job.run.trained:
            do(job, training_key(job.run, job.device), train_run)
        do(job, evaluation_key(job.run, job.device), evaluate_run)
    except store.HeldError:
        return HELD
    except StoppedError as stop:
        print(stop, file=sys.stderr)
        return TERMINATED
    except GraphsFailedError as error:
        print(f"{job.name}: CUDA graphs failed {error}; the run goes on without them in a new process", file=sys.stderr)
        return GRAPHS_FAILED
    return 0
