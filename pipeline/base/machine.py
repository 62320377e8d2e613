"""What a machine's owner may choose: `machine` of a params file, and environment variables of the same names.

`PIPELINE_ENGINE`, `PIPELINE_GPUS` and so on, written as YAML, take the place of a file's keys. So a stage of DVC has
one command line on every machine. Nothing here but the kind of device is in a run's key.
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
"""Loader processes of one run, runs on one GPU, or runs at a time: more end a machine."""


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
        raise ValueError(f"{wrong[0]} is no option: write --NAME=VALUE, one after another")
    return value


def _address(value: str) -> str:
    if value != "auto" and not re.fullmatch(r"(ray://)?[^\s/:]+:\d{1,5}", value):
        raise ValueError('write auto, or HOST:PORT as "ray start --head" prints it')
    return value


def _place(value: str) -> str:
    if "://" not in value and not re.match(r"[/~$]", value):
        raise ValueError(f"{value} means another place on each machine: write an absolute path, or an address")
    return value


Count = Annotated[int, Ge(1), Le(MOST_WORKERS)]


class Machine(BaseModel):
    """Which device a run is made on, and how many runs at a time, where. The results depend on the kind of device
    alone."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    device: Literal["auto", "cpu", "cuda"]
    workers: Annotated[int, Ge(0), Le(MOST_WORKERS)]
    """Processes of each run that load images; 0 loads in the training process."""
    tensorboard: bool = False
    """Whether the histories of runs in progress are also written for TensorBoard, under data/tensorboard."""
    engine: Literal["local", "slurm", "ray"] = "local"
    """What starts the workers that do the runs: this machine, SLURM, or Ray."""
    gpus: Annotated[str | int | list[str], PlainValidator(_gpus)] = "all"
    """Of the machine that a worker runs on: all, so many, or those with these ids (numbers, or UUIDs as `nvidia-smi -L`
    prints them)."""
    runs_per_gpu: Count = 1
    """Runs that share a GPU. Without a GPU there are as many runs at a time as the cores allow by the recipe's
    `cpu_threads`, and no fewer than this."""
    workers_at_most: Count | None = None
    """Runs at a time, at most; of SLURM and Ray: tasks at a time, at most. null is one for each place that `gpus` and
    `runs_per_gpu` give, and of Ray as many as it has room for."""
    cuda_graphs: Literal["auto", "never"] = "auto"
    """Whether the network's steps on a GPU are CUDA graphs, wherever a check at its start finds the same bits."""
    sbatch: Annotated[str, Len(0, 10_000), AfterValidator(_options)] = ""
    """Options of sbatch, such as "--partition=gpu --gres=gpu:1 --time=24:00:00"."""
    ray_address: Annotated[str, AfterValidator(_address)] = "auto"
    """Of Ray's head, such as "10.0.0.1:6379"; auto is the cluster that this machine is part of."""
    ray_clones: Annotated[str, Len(1, 1000), AfterValidator(_place)] | None = None
    """The folder of each of Ray's nodes that clones and data are brought to, such as "$SCRATCH/clones"; the variables
    are the node's. null is for nodes that see this clone under the same path, on a file system with file locks."""
    checkpoints: Annotated[str, Len(1, 1000), AfterValidator(_place)] | None = None
    """Where checkpoints of runs in progress are copied to, as fsspec writes addresses, such as "s3://bucket/folder" or
    "/mnt/common": a run goes on from there on a machine that has not seen it before."""


def variable(key: str) -> str:
    """The environment variable of a key of `machine`."""
    return f"PIPELINE_{key.upper()}"


def from_environment() -> dict[str, Any]:
    """The keys of `machine` that the environment sets. Raises `BadInputError` for what is not YAML."""
    return {
        key: parse_yaml(text, variable(key))
        for key in Machine.model_fields
        if (text := os.environ.get(variable(key))) is not None
    }
