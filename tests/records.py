"""Metrics files as evaluation writes them, with made-up numbers, for tests of tables."""

from pathlib import Path
from typing import Any

from pipeline.base.files import write_json
from pipeline.runs.grid import GridRun
from pipeline.runs.key import digest, settings_of
from pipeline.runs.protocols import PROTOCOLS
from pipeline.runs.record import CODE, HISTORY, Gpu, MetricsRecord, Retrieved, TakenOver, TrainingRecord

METRICS = (
    *(f"recall@{k}" for k in (1, 2, 4, 8, 10, 20, 30, 40, 50, 100, 1000)),
    *("map@r", "r_precision", "nmi_arithmetic", "nmi_geometric"),
)
RUNS_ON: dict[str, Any] = {
    "device": "cpu",
    "instructions": "portable",
    "packages": {"torch": "2.14.1"},
    "code": "0" * 64,
}


def write_metrics(
    folder: Path,
    run: GridRun,
    selections: dict[str, float | dict[str, float]],
    retrieved: dict[str, int] | None = None,
    history: dict[int, float] | None = None,
    because: str | None = None,
    gpus: tuple[Gpu, ...] = (),
) -> Path:
    """Write the metrics file of a run of a grid under `folder`: each selection rule has one value for every metric, or
    these values. `because`: the run was taken over from other code. `gpus`: those of the training; the last one made
    the evaluation, too."""
    training = None
    if run.run.trained:
        taken = TakenOver(key="1" * 64, because=because, compared="all") if because else None
        settings = {"settings": settings_of(run.run), "data": {}, **RUNS_ON}
        training = TrainingRecord.made(
            key=digest(settings),
            content=settings,
            epochs=run.run.recipe.epochs,
            images=100,
            classes=10,
            files=dict.fromkeys((*PROTOCOLS[run.run.protocol].files, HISTORY, CODE), "0" * 64),
            taken_over=taken,
            gpus=list(gpus),
        )
    metrics = {
        rule: {"epoch": 1} | (dict.fromkeys(METRICS, values) if isinstance(values, float) else values)
        for rule, values in selections.items()
    }
    decided = {"training": training.key if training else settings_of(run.run), "data": {}, **RUNS_ON}
    content = MetricsRecord.made(
        key=digest(decided),
        content=decided,
        dataset=run.run.dataset,
        retrieved=Retrieved(**(retrieved or {"images": 3107, "classes": 31})),
        metrics=metrics,
        history=[{"epoch": epoch, "loss": 1.0, "recall@1": recall} for epoch, recall in (history or {}).items()],
        run=training,
        gpus=list(gpus[-1:]),
        files={CODE: "0" * 64},
    )
    path = folder / run.metrics
    write_json(path, content.model_dump(mode="json"))
    return path
