"""The same bits whatever the processor and the number of its cores: `computes.py` here, and on an emulated Intel."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import pipeline

ROOT = Path(__file__).parent.parent
PACKAGES = sysconfig.get_path("purelib")


def computed(*wrapper: str, first: str = "", **environment: str) -> str:
    """What computes.py prints, without what importing the package, as these tests do, has set for processes that they
    start. The interpreter itself is started, because an emulator starts no link. `first` is Python that runs before."""
    python = [
        os.path.realpath(sys.executable),
        "-c",
        first + "\nimport runpy; runpy.run_path('tests/computes.py', {}, '__main__')",
    ]
    done = subprocess.run(
        [*wrapper, *python],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in pipeline.PORTABLE}
        | {"PYTHONPATH": f"{ROOT}:{PACKAGES}"}
        | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def here():
    return computed()


def test_the_number_of_cores_does_not_show(here):
    assert here.count("\n") == 10
    assert computed("taskset", "-c", str(min(os.sched_getaffinity(0)))) == here


def test_native_instructions_are_others_but_not_for_ranks(here):
    native = computed(PIPELINE_INSTRUCTIONS="native")
    assert native != here
    ranks = [line for line in here.splitlines() if line.startswith("ranks")]
    assert len(ranks) == 1 and ranks[0] in native.splitlines()


@pytest.mark.qemu
def test_an_emulated_intel_computes_the_same(here):
    # numpy sorts wrongly with AVX2 under this emulator (7.2): an index that is no index. It sorts without. numpy comes
    # first because the package would set the variable to what it is on a processor.
    assert computed("qemu-x86_64", "-cpu", "Haswell", first="import numpy", NPY_DISABLE_CPU_FEATURES="X86_V3") == here
