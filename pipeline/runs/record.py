"""What is recorded about a run: its record, run.json, and its metrics file, each with the number of its schema.

Both hold nothing that differs between two machines that compute the same bytes. Times and machines are in a separate
file, made.json, with which nothing is compared.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.base.config import Recipe, problem_lines
from pipeline.base.files import BadInputError, read_json, sha256
from pipeline.runs.run import Protocol

SCHEMA = 1
RECORD, METRICS, MADE = "run.json", "metrics.json", "made.json"

STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
Count = Annotated[int, Ge(1)]


class TakenOver(BaseModel):
    """Says that a run's bytes were made by other code, which gave the same bytes in a check (`pipeline.adopt`)."""

    model_config = STRICT

    key: str
    """The key under which the run was made."""
    because: str
    compared: str
    """The key of the run that was trained again for the check, and to which epoch."""


class TrainingRecord(BaseModel):
    """A run's run.json."""

    model_config = STRICT

    schema_number: Literal[1] = 1
    key: str
    dataset: str
    loss: str
    loss_settings: dict[str, Any]
    seed: int
    protocol: Protocol
    subset: dict[str, float | int]
    recipe: Recipe
    data: dict[str, Any]
    """The SHA-256 of the index and of the manifests that were read; the required SHA-256 of the pretrained weights; the
    key of the run that chose the epoch."""
    code: str
    device: Literal["cpu", "cuda"]
    instructions: str
    packages: dict[str, str | None]
    epochs: Count
    """The last epoch that was trained."""
    images: Count
    classes: Count
    files: dict[str, str]
    """Name -> SHA-256 of the weights and of the history."""
    taken_over: TakenOver | None = None


class Retrieved(BaseModel):
    """The retrieved images: queries and gallery together."""

    model_config = STRICT

    images: Count
    classes: Count


class MetricsRecord(BaseModel):
    """The metrics file of a run. The run may also be one without training, such as that of the images themselves."""

    model_config = STRICT

    schema_number: Literal[1] = 1
    key: str
    dataset: str
    retrieved: Retrieved
    metrics: dict[str, dict[str, float | int | str | None]]
    """The rule that chose the weights -> the metrics, as fractions, and the epoch."""
    history: list[dict[str, float | int]]
    """Loss by epoch, and Recall@K for the epochs that were evaluated; empty for a run without training."""
    run: TrainingRecord | None
    data: dict[str, Any]
    code: str
    device: Literal["cpu", "cuda"]
    instructions: str
    packages: dict[str, str | None]
    files: dict[str, str]
    """Name -> SHA-256 of the files that were kept beside the metrics."""


Record = TypeVar("Record", bound=BaseModel)


def read_record(path: Path, kind: type[Record]) -> Record:
    """A record of the given kind. Raises `BadInputError` if it is missing, damaged or of another schema."""
    content = read_json(path)
    if isinstance(content, dict) and content.get("schema_number") != SCHEMA:
        raise BadInputError(
            f"{path} has the schema {content.get('schema_number')!r} where this version reads {SCHEMA}: make it again "
            "(`dvc repro`)"
        )
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = problem_lines(error, "", kind)
        more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
        raise BadInputError(f"{path} is not a record: {'; '.join(lines[:3])}{more}: make it again") from None


def check_files(folder: Path, files: dict[str, str]) -> None:
    """Raise `BadInputError` unless the files of a record exist and have the SHA-256 in the record."""
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise BadInputError(f"{path} is missing: train its run again (`dvc repro`)")
        if sha256(path) != expected:
            raise BadInputError(f"{path} is not what its record says, SHA-256 {expected}: train its run again")
