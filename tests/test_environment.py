"""Environment variables that change bits: set or cleared at the import, named where a user had set them, recorded."""

import json
import os
import subprocess
import sys

import pytest
import torch

from pipeline.base import environment
from pipeline.base.provenance import Spent, provenance
from tests.conftest import ENVIRONMENT, ROOT

KNOWN = (*environment.PORTABLE, *environment.SET, *environment.DEFAULTS)
SCRIPT = "import pipeline, os, json; print(json.dumps(dict(os.environ)))"


def imported(**variables):
    """The environment of a process that has imported the project, and what it said."""
    clean = {name: value for name, value in ENVIRONMENT.items() if name not in KNOWN}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=clean | variables, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout), done.stderr


def test_what_changes_bits_is_set_or_cleared_and_named():
    changed = {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "MKL_CBWR": "AVX512"}
    cleared = {"NVIDIA_TF32_OVERRIDE": "1", "CUBLAS_EMULATE_SINGLE_PRECISION": "1", "PYTORCH_TUNABLEOP_ENABLED": "1"}
    found, said = imported(**changed, **cleared, CUDA_DEVICE_ORDER="FASTEST_FIRST")
    assert found.items() >= (environment.PORTABLE | environment.SET).items()
    assert not cleared.keys() & found.keys()
    assert found["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST", "it changes no bits"
    assert sorted(said.split("\n")[:-1]) == sorted(
        [f"{name}={value} would change results: {found[name]} is used instead" for name, value in changed.items()]
        + [f"{name}={value} would change results: it is not used" for name, value in cleared.items()]
    )
    # What this process starts has nothing more to say.
    again, nothing = imported(**{name: found[name] for name in KNOWN})
    assert nothing == "" and {name: again[name] for name in KNOWN} == {name: found[name] for name in KNOWN}


def test_native_instructions_are_the_users_and_a_gpus_settings_are_not():
    found, said = imported(PIPELINE_INSTRUCTIONS="native", MKL_CBWR="AVX2", CUBLAS_WORKSPACE_CONFIG=":16:8")
    assert found["MKL_CBWR"] == "AVX2" and "OPENBLAS_CORETYPE" not in found
    assert found["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert said.startswith("CUBLAS_WORKSPACE_CONFIG=:16:8 would change")


def test_they_are_in_the_record():
    assert provenance(torch.device("cpu"), Spent())["environment"] == {name: os.environ[name] for name in KNOWN}


@pytest.mark.parametrize("name", ["PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF"])
def test_what_changes_no_bits_stays(name):
    assert imported(**{name: os.environ.get(name, "x")})[0][name] == os.environ.get(name, "x")
