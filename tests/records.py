"""Metrics files as evaluation writes them, with made-up numbers, for tests of tables."""

from pathlib import Path
from typing import Any

from pipeline.base.files import write_json
from pipeline.runs.grid import GridRun
from pipeline.runs.record import MetricsRecord, Retrieved, TakenOver, TrainingRecord

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
) -> Path:
    """Write the metrics file of a run of a grid under `folder`: each selection rule has one value for every metric, or
    these values. `because`: the run was taken over from other code."""
    training = None
    if run.run.trained:
        taken = TakenOver(key="1" * 64, because=because, compared="all") if because else None
        training = TrainingRecord(
            key="2" * 64,
            **run.run.settings() | {"recipe": run.run.recipe},
            data={},
            epochs=run.run.recipe.epochs,
            images=100,
            classes=10,
            files={},
            taken_over=taken,
            **RUNS_ON,
        )
    metrics = {
        rule: {"epoch": 1} | (dict.fromkeys(METRICS, values) if isinstance(values, float) else values)
        for rule, values in selections.items()
    }
    content = MetricsRecord(
        key="3" * 64,
        dataset=run.run.dataset,
        retrieved=Retrieved(**(retrieved or {"images": 3107, "classes": 31})),
        metrics=metrics,
        history=[{"epoch": epoch, "loss": 1.0, "recall@1": recall} for epoch, recall in (history or {}).items()],
        run=training,
        data={},
        files={},
        **RUNS_ON,
    )
    path = folder / run.metrics
    write_json(path, content.model_dump(mode="json"))
    return path
