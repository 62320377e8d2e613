"""What the owner of a machine may choose: `machine` of a params file, and environment variables of the same names.

`PIPELINE_ENGINE`, `PIPELINE_GPUS` and so on, written as YAML, replace the keys of the file. A DVC stage therefore has
the same command line on every machine. Of all these settings only the kind of device is in a run's key.
"""

import os
import re
import shlex
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Len
from pydantic import AfterValidator, BaseModel, ConfigDict, PlainValidator

from pipeline.base.names import each_once
from pipeline.base.yaml_files import parse_yaml

MOST_WORKERS = 1024
"""The most loader processes of one run, runs on one GPU, and runs at a time. More would bring a machine down."""


def _gpus(value: Any) -> Any:
    if value == "all" or (type(value) is int and 1 <= value <= MOST_WORKERS):
        return value
    if isinstance(value, list) and value and all(type(gpu) in (int, str) and str(gpu) for gpu in value):
        return each_once([str(gpu) for gpu in value])
    raise ValueError("write all, a number of GPUs, or a list of their ids, such as [0, 2]")


def _options(value: str) -> str:
    words = shlex.split(value)
    wrong = [word for word in words if not word.startswith("-") or "\n" in word]
    if wrong:
        raise ValueError(f"{wrong[0]} is no option: write options as --NAME=VALUE, with spaces between them")
    return value


def _address(value: str) -> str:
    if value != "auto" and not re.fullmatch(r"(ray://)?[^\s/:]+:\d{1,5}", value):
        raise ValueError('write auto, or HOST:PORT as "ray start --head" prints it')
    return value


def _place(value: str) -> str:
    if "://" not in value and not re.match(r"[/~$]", value):
        raise ValueError(f"{value} means another place on each machine: write an absolute path or an address")
    return value


Count = Annotated[int, Ge(1), Le(MOST_WORKERS)]


class Machine(BaseModel):
    """Which device makes a run, how many runs are made at a time, and where. The results depend only on the kind of
    device."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    device: Literal["auto", "cpu", "cuda"]
    workers: Annotated[int, Ge(0), Le(MOST_WORKERS)]
    """The number of processes of each run that load images; 0 loads them in the training process."""
    tensorboard: bool = False
    """Whether the histories of runs in progress are also written for TensorBoard, under data/tensorboard."""
    engine: Literal["local", "slurm", "ray"] = "local"
    """What starts the workers that do the runs: this machine, SLURM, or Ray."""
    gpus: Annotated[str | int | list[str], PlainValidator(_gpus)] = "all"
    """The GPUs to use on the machine that a worker runs on: all, a number of GPUs, or a list of ids (numbers, or UUIDs
    as `nvidia-smi -L` prints them)."""
    runs_per_gpu: Count = 1
    """The number of runs that share a GPU. Without a GPU the cores and the recipe's `cpu_threads` limit the runs at a
    time, but there are never fewer than this number."""
    workers_at_most: Count | None = None
    """The most runs at a time; for SLURM and Ray, the most tasks at a time. null means one for each place that `gpus`
    and `runs_per_gpu` give, and for Ray as many as it has room for."""
    cuda_graphs: Literal["auto", "never"] = "auto"
    """Whether a network's steps on a GPU run as CUDA graphs. auto uses them if a check at the start of the run finds
    the same bits."""
    sbatch: Annotated[str, Len(0, 10_000), AfterValidator(_options)] = ""
    """Options of sbatch, such as "--partition=gpu --gres=gpu:1 --time=24:00:00"."""
    ray_address: Annotated[str, AfterValidator(_address)] = "auto"
    """The address of Ray's head, such as "10.0.0.1:6379"; auto is the cluster that this machine is part of."""
    ray_clones: Annotated[str, Len(1, 1000), AfterValidator(_place)] | None = None
    """The folder on each Ray node to which clones and data are copied, such as "$SCRATCH/clones"; each node expands the
    variables itself. null is for nodes that see this clone under the same path, on a file system with file locks."""
    checkpoints: Annotated[str, Len(1, 1000), AfterValidator(_place)] | None = None
    """The place to which checkpoints of runs in progress are copied, as an fsspec address, such as "s3://bucket/folder"
    or "/mnt/common". A run resumes from there on a machine that has not seen it before."""


def variable(key: str) -> str:
    """The environment variable of a key of `machine`."""
    return f"PIPELINE_{key.upper()}"


def from_environment() -> dict[str, Any]:
    """The keys of `machine` that environment variables set. Raises `BadInputError` for a value that is not YAML."""
    return {
        key: parse_yaml(text, variable(key))
        for key in Machine.model_fields
        if (text := os.environ.get(variable(key))) is not None
    }
