"""What is recorded about a run: its record, run.json, and its metrics file, each with the number of its schema.

Both prove what they are. `content` is what the key is the hash of, so the key cannot be another run's. `sha256` is the
hash of everything else in the file, so a number that was edited by hand, or merged badly, is noticed. This is a check
against accidents. It is no signature: whoever wants to can compute both hashes for other numbers.

Both hold nothing that differs between two machines that compute the same bytes. Times and machines are in a separate
file, made.json, with which nothing is compared. Only GPUs are listed, by model, driver and cuDNN, because the same
bytes are claimed for one of these; on the processor the list is left out.
"""

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from annotated_types import Ge
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from pipeline.base.config import Recipe, problem_lines
from pipeline.base.files import BadInputError, read_json, sha256
from pipeline.base.gpu import gpu_text
from pipeline.runs.key import digest
from pipeline.runs.protocols import PROTOCOLS, Protocol

SCHEMA = 3
RECORD, METRICS, MADE = "run.json", "metrics.json", "made.json"
HISTORY, QUERIES, CODE = "history.csv", "queries.npz", "code.json"
STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
Count = Annotated[int, Ge(1)]


def _is_hash(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError("is not a SHA-256 of 64 hexadecimal digits")
    return text


Hash = Annotated[str, AfterValidator(_is_hash)]


class Gpu(BaseModel):
    """A GPU, as far as it decides last bits."""

    model_config = STRICT

    name: str
    driver: str | None
    cudnn: int | None

    @property
    def text(self) -> str:
        """The GPU as tables name it."""
        return gpu_text(self.model_dump())


def gpus_of(machines: list[dict[str, Any]]) -> list[Gpu]:
    """The GPUs of machines (`provenance.machine`), each once."""
    found = [Gpu(**machine["gpu"]) for machine in machines if machine["gpu"]]
    return [gpu for place, gpu in enumerate(found) if gpu not in found[:place]]


class _Proven(BaseModel):
    """A record that proves what it is. Only `made` should create one, because it computes `sha256`."""

    model_config = STRICT

    schema_number: Literal[3] = 3
    key: Hash
    content: dict[str, Any]
    """What decided the run's bytes: the key is its hash (runs/key.py)."""
    files: dict[str, Hash]
    """The other files of the run: name -> SHA-256."""
    sha256: str
    """SHA-256 of everything else in this file."""
    gpus: list[Gpu] = Field(default=[], exclude_if=lambda gpus: not gpus)
    """The GPUs that worked on it; left out without any."""

    @classmethod
    def made(cls, **values: Any) -> Self:
        """A record with these values and its own hash."""
        values["content"] = json.loads(json.dumps(values["content"], allow_nan=False))
        unproven = cls.model_construct(**values, sha256="")
        return cls.model_validate(
            {name: getattr(unproven, name) for name in cls.model_fields} | {"sha256": unproven.hash()}
        )

    def hash(self) -> str:
        """SHA-256 of everything in the record but `sha256` itself."""
        return digest(self.model_dump(mode="json", exclude={"sha256"}, warnings=False))

    @model_validator(mode="after")
    def _proof(self) -> Self:
        if digest(self.content) != self.key:
            raise ValueError("its key is not the hash of its content")
        if self.hash() != self.sha256:
            raise ValueError("it was changed after it was made: its sha256 is not the hash of the rest")
        return self


class TakenOver(BaseModel):
    """Says that a run's bytes were made by other code, which gave the same bytes in a check (`pipeline.adopt`)."""

    model_config = STRICT

    key: str
    """The key under which the run was made."""
    because: str
    compared: str
    """The key of the run that was trained again for the check, and to which epoch."""


class TrainingRecord(_Proven):
    """A run's run.json. Its files are the weights and the history."""

    epochs: Count
    """The last epoch that was trained."""
    images: Count
    classes: Count
    taken_over: TakenOver | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the run, as `runs.key.settings_of` gives them."""
        settings: dict[str, Any] = self.content["settings"]
        return settings

    @property
    def protocol(self) -> Protocol:
        """The protocol of the run."""
        protocol: Protocol = self.settings["protocol"]
        return protocol

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run. Its metrics are the default ones, because several grids may evaluate a run by other
        metrics, and it does not name a file of the user's own weights. Raises `BadInputError` if it is the recipe of a
        version with other keys."""
        try:
            return Recipe.model_validate(self.settings["recipe"])
        except (ValidationError, KeyError, TypeError):
            raise BadInputError(f"the recipe of the run {self.key} is of another version: make the run again") from None

    @model_validator(mode="after")
    def _is_a_training(self) -> Self:
        settings = self.content.get("settings")
        if not isinstance(settings, dict):
            raise ValueError("its content is not that of a training")
        protocol = PROTOCOLS.get(str(settings.get("protocol")))
        if protocol is None or not protocol.trained or self.files.keys() != {*protocol.files, HISTORY, CODE}:
            raise ValueError("it does not list the files that its protocol keeps")
        return self


class Retrieved(BaseModel):
    """The retrieved images: queries and gallery together."""

    model_config = STRICT

    images: Count
    classes: Count


class MetricsRecord(_Proven):
    """The metrics file of a run. The run may also be one without training, such as that of the images themselves. Its
    files are those that were kept beside the metrics."""

    dataset: str
    retrieved: Retrieved
    metrics: dict[str, dict[str, float | int | str | None]]
    """The rule that chose the weights -> the metrics, as fractions, and the epoch."""
    history: list[dict[str, float | int]]
    """Loss by epoch, and Recall@K for the epochs that were evaluated; empty for a run without training."""
    run: TrainingRecord | None

    @property
    def data(self) -> dict[str, Any]:
        """The SHA-256 of the index and of the manifests that the evaluation read."""
        data: dict[str, Any] = self.content["data"]
        return data

    @property
    def all_gpus(self) -> list[str]:
        """The GPUs of the training and of the evaluation as text, each once."""
        every = [*(self.run.gpus if self.run else []), *self.gpus]
        return list(dict.fromkeys(gpu.text for gpu in every))

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the run that was evaluated: of its training, or of the run without training."""
        of: dict[str, Any] = self.run.settings if self.run else self.content["training"]
        return of

    @model_validator(mode="after")
    def _is_an_evaluation(self) -> Self:
        of = self.content.get("training")
        if of != self.run.key if self.run else not isinstance(of, dict):
            raise ValueError("its content is not that of an evaluation of its run")
        if self.files.keys() - {QUERIES} != {CODE}:
            raise ValueError("it does not list the files that an evaluation keeps")
        if self.settings.get("dataset") != self.dataset:
            raise ValueError(f"its run is not one on {self.dataset}")
        every: list[dict[str, Any]] = [*self.metrics.values(), *self.history]
        numbers = [pair for values in every for pair in values.items()]
        for name, value in numbers:
            fraction = name.partition("@")[0] in FRACTIONS and isinstance(value, float | int)
            if fraction and not 0 <= value <= 1 + 1e-9:
                raise ValueError(f"{name} is {value}, which no metric can be")
        return self


FRACTIONS = (
    *("recall", "map", "r_precision", "nmi_arithmetic", "nmi_geometric", "f1"),
    *("recall_other_groups", "map_other_groups"),
)
"""The metrics that are fractions, by the part of their name before an @."""

Record = TypeVar("Record", TrainingRecord, MetricsRecord)


def read_record(path: Path, kind: type[Record]) -> Record:
    """A record of the given kind. Raises `BadInputError` if it is missing, damaged or of another schema."""
    return checked_record(read_json(path), path, kind)


def checked_record(content: Any, path: Path, kind: type[Record]) -> Record:
    """A record of the given kind from what was read from a JSON file, which is named in messages. Raises
    `BadInputError` if it is damaged or of another schema."""
    if isinstance(content, dict) and content.get("schema_number") != SCHEMA:
        raise BadInputError(
            f"{path} has the schema {content.get('schema_number')!r} where this version reads {SCHEMA}: make it again "
            "(`dvc repro`)"
        )
    try:
        return kind.model_validate(content)
    except RecursionError:
        raise BadInputError(f"{path} is not a record, it is nested too deep: make it again") from None
    except ValidationError as error:
        lines = [line.partition(", found {")[0].removeprefix("the file: ") for line in problem_lines(error, "", kind)]
        more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
        raise BadInputError(f"{path} is not a record: {'; '.join(lines[:3])}{more}: make it again") from None


class _UsedGpu(BaseModel):
    name: str
    driver: str | None
    cudnn: int | None = None
    peak_memory_bytes: int = 0


class _Machine(BaseModel):
    cpu: str
    cores: int | None
    gpu: _UsedGpu | None


class _Git(BaseModel):
    revision: str | None = None
    clean: bool = False


Amount = Annotated[float, Ge(0)]


class _Work(BaseModel):
    """The entries of a made.json that tables, reports and estimates read."""

    key: str
    git: _Git
    machine: _Machine
    machines: list[_Machine] = []
    """All that worked on it."""
    seconds: Amount
    peak_memory_bytes: int
    gpu_joules: Amount | None = None
    runs_on_device: Count = 1
    images_per_second: list[Amount] = []
    epoch_seconds: list[Amount] = []


def read_made(path: Path) -> dict[str, dict[str, Any]]:
    """What a file under metrics/made says about a run's "training" and "evaluation": when and where they were made.
    Empty if there is no such file. A damaged file is named and counts as none, because no number depends on it."""
    if not path.exists():
        return {}
    try:
        return checked_made(read_json(path), path)
    except BadInputError as error:
        print(f"{error}: not used", file=sys.stderr)
        return {}


def checked_made(content: Any, path: Path) -> dict[str, dict[str, Any]]:
    """`read_made` for the content of a file, or of a folder of files, which is named in messages."""
    try:
        found = TypeAdapter(dict[str, _Work]).validate_python(content)
    except ValidationError:
        print(f"{path} does not say when and where a run was made: not used", file=sys.stderr)
        return {}
    return {work: noted.model_dump() for work, noted in found.items()}


AGAIN = "make it again (`python -m pipeline.run_grid GRID DATASET`, which trains only what the store lacks)"


def check_files(folder: Path, files: dict[str, str]) -> None:
    """Raise `BadInputError` unless the files of a record exist and have the SHA-256 in the record."""
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise BadInputError(f"{path} is missing: {AGAIN}")
        if sha256(path) != expected:
            raise BadInputError(f"{path} is not what its record says, SHA-256 {expected}: {AGAIN}")
