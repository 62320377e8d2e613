"""What the tries of a search gave on held-out classes, by the metrics files of their runs, and which one is chosen."""

from pathlib import Path

from pipeline.base.files import BadInputError, read_json
from pipeline.runs.key import settings_of
from pipeline.runs.record import MetricsRecord, read_record
from pipeline.runs.run import Run

DIVERGED = "FloatingPointError: "
"""How the error of a run begins whose training diverged. With the same settings it always does."""


def settings_differ(run: Run, record: MetricsRecord) -> bool:
    """Whether a metrics file has other settings than its run has now."""
    return any(record.settings.get(name) != value for name, value in settings_of(run).items())


def result(run: Run, metrics: Path, error: Path) -> float | None:
    """Recall@1 on held-out classes, as a fraction, of a run that chooses an epoch, by its metrics file. 0 if its
    training diverged; None if it is not known, or if the file has other settings."""
    try:
        if metrics.is_file():
            record = read_record(metrics, MetricsRecord)
            return None if settings_differ(run, record) else float(record.metrics["held_out_classes"]["recall@1"] or 0)
        return 0.0 if error.is_file() and str(read_json(error)["error"]).startswith(DIVERGED) else None
    except (BadInputError, KeyError, TypeError):
        return None


def best_try(results: dict[int, list[float | None]]) -> int | None:
    """The number of the try with the highest mean over folds; of equal ones the earliest. None if a result lacks."""
    if any(value is None for values in results.values() for value in values):
        return None
    means = {number: sum(value or 0.0 for value in values) / len(values) for number, values in results.items()}
    return max(means, key=lambda number: (means[number], -number))
