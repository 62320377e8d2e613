"""What the owner of a machine may choose: `machine` of a params file, and environment variables of the same names.

`PIPELINE_ENGINE`, `PIPELINE_GPUS` and so on, written as YAML, replace the keys of the file. A DVC stage therefore has
the same command line on every machine. Of all these settings only the kind of device is in a run's key.
"""

import os
import re
import shlex
from argparse import ArgumentTypeError
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Len
from pydantic import AfterValidator, BaseModel, ConfigDict, PlainValidator

from pipeline.base.choices import arguments
from pipeline.base.files import BadInputError, module_file
from pipeline.base.names import each_once, shortened
from pipeline.base.problems import unknown
from pipeline.base.yaml_files import parse_yaml

MOST_WORKERS = 1024
"""The most loader processes of one run, runs on one GPU, and runs at a time. More would bring a machine down."""


def _gpus(value: Any) -> Any:
    if value == "all" or (type(value) is int and 1 <= value <= MOST_WORKERS):
        return value
    if isinstance(value, list) and value and all(type(gpu) in (int, str) and str(gpu) for gpu in value):
        return each_once([str(gpu) for gpu in value])
    raise ValueError("write all, a number of GPUs, or a list of their ids, such as [0, 2]")


OWN_OPTIONS = {
    "array": "a", "chdir": "D", "output": "o", "error": "e", "open-mode": "", "signal": "", "job-name": "J",
    "requeue": "", "no-requeue": "", "parsable": "", "wait": "W", "test-only": "", "wrap": "",
}  # fmt: skip
"""Options of sbatch that the engine sets itself, or that would break its waiting: long name -> short name."""


def _options(value: str) -> str:
    for word in shlex.split(value):
        if not re.match("-[A-Za-z]|--[a-z]", word) or "\n" in word:
            raise ValueError(f"{word} is no option: write options as --NAME=VALUE, with spaces between them")
        name = word[2:].partition("=")[0]
        # sbatch takes every beginning of a long option that no other option has.
        own = [known for known in OWN_OPTIONS if word.startswith("--") and len(name) > 2 and known.startswith(name)]
        own += [known for known, short in OWN_OPTIONS.items() if short and word[1] == short]
        if own:
            raise ValueError(f"the engine sets --{own[0]} itself: leave {word} out")
    return value


def _address(value: str) -> str:
    if value != "auto" and not re.fullmatch(r"(ray://)?[^\s/:]+:\d{1,5}", value):
        raise ValueError('write auto, or HOST:PORT as "ray start --head" prints it')
    return value


def _place(value: str) -> str:
    if "://" not in value and not re.match(r"[/~$]", value):
        raise ValueError(f"{value} means another place on each machine: write an absolute path or an address")
    return value


def _engine(value: str) -> str:
    if arguments("engine", value) is None:
        known = [file.stem for file in sorted(module_file("engines", "local").parent.glob("*.py"))]
        raise ValueError(f"choose among {', '.join(name for name in known if arguments('engine', name) is not None)}")
    return value


Count = Annotated[int, Ge(1), Le(MOST_WORKERS)]


class Machine(BaseModel):
    """Which device makes a run, how many runs are made at a time, and where. The results depend only on the kind of
    device."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    device: Literal["auto", "cpu", "cuda"]
    workers: Annotated[int, Ge(0), Le(MOST_WORKERS)]
    """The number of processes of each run that load images; 0 loads them in the training process."""
    engine: Annotated[str, AfterValidator(_engine)] = "local"
    """What starts the workers that do the runs: a file of pipeline/engines with a function `work`, such as local, which
    is this machine, slurm or ray."""
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


def workers(text: str) -> int:
    """The number of loader processes from a command line, for argparse."""
    if re.fullmatch("[0-9]{1,9}", text) and int(text) <= MOST_WORKERS:
        return int(text)
    raise ArgumentTypeError(f"give a whole number from 0 to {MOST_WORKERS}, not {shortened(text)}")


OTHERS = {
    "PIPELINE_INSTRUCTIONS": ("portable|native", "write portable or native"),
    "PIPELINE_MIRRORS": (r".*", ""),
    "PIPELINE_TIMEOUT": (r".*", ""),
    "PIPELINE_IMAGE": (r".*", ""),
    "PIPELINE_WORKER": ("[0-9]{1,9}", "write a whole number, the worker's own"),
    "PIPELINE_SHARED_BY": ("[1-9][0-9]{0,8}", "write the number of workers that share a GPU"),
}
"""The environment variables that are no keys of `machine`: name -> the values that it takes, as a regular expression,
and what to do about others. Those that take everything are checked where they are used, or only noted."""


def check_variables() -> None:
    """Raise `BadInputError` if an environment variable of this project has an unknown name or an impossible value.
    Values of `machine` are checked with the params file that they change."""
    known = [*OTHERS, *map(variable, Machine.model_fields)]
    problems = []
    for name in sorted(name for name in os.environ if name.startswith("PIPELINE_")):
        if name not in known:
            problems.append(f"{shortened(name)[1:-1]}: {unknown(name, known)}, or unset it")
        elif name in OTHERS and not re.fullmatch(OTHERS[name][0], os.environ[name], re.S):
            problems.append(f"{name}: {OTHERS[name][1]}, found {shortened(os.environ[name])}")
    if problems:
        raise BadInputError("\n  ".join(["environment variables:", *problems]))


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
