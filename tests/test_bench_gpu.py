"""bench.gpu on a CPU: every section measures, table and JSON hold it, and a late failure keeps what was there."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import gpu, gpu_parts
from bench.gpu_parts import FULL, Line
from tests.conftest import ENVIRONMENT, ROOT


def bench(*words):
    command = [sys.executable, "-m", "bench.gpu", *words]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


def test_every_section_measures_on_a_cpu(tmp_path):
    """But for `resume`, which test_checkpoint has on a CPU, and whose six processes take a while to start."""
    wanted = [section for section in gpu.SECTIONS if section != "resume"]
    done = bench("--tiny", "--out", str(tmp_path / "gpu.json"), "--only", *wanted)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["tiny"] and list(found["sections"]) == wanted
    for section, result in found["sections"].items():
        assert result["ended"] == "whole" and result["lines"], section
        for line in result["lines"]:
            assert line["good"] in (True, None) and f"| {section} | {line['name']} |" in done.stdout
    checked = [line for line in found["sections"]["as on the CPU"]["lines"] if line["good"]]
    assert len(checked) == 4 + 1 + 4 + 1, "losses, metrics, networks there and back, crops"


def stuck(scale, folder):
    yield Line("first", 1.0)
    time.sleep(100)
    yield Line("second", 2.0)


def fails(scale, folder):
    yield Line("first", 1.0)
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_what_was_measured_before_a_failure_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "_child", swapped_child)
    # The first one also loads what all are forked from, which takes its time.
    for section, seconds, ended in (("fails", 100, "failed with exit code 1"), ("stuck", 4, "stopped after 4 s")):
        result = gpu.run_section(section, seconds, True, tmp_path)
        assert result["ended"] == ended and [line["name"] for line in result["lines"]] == ["first"]


def swapped_child(section, tiny, folder, lines):
    """A section's process that has these functions among its sections."""
    from bench import gpu_checks

    gpu_checks.RUN |= {"stuck": stuck, "fails": fails}
    child(section, tiny, folder, lines)


child = gpu._child


@pytest.mark.parametrize(
    ("value", "expected", "missed"),
    [(1200.0, (2300, 3100), False), (1100.0, (2300, 3100), True), (6300.0, (2300, 3100), True), (1.0, None, False)],
)
def test_a_figure_that_misses_the_model_by_more_than_2_is_marked(value, expected, missed):
    line = Line("step", value, "images/s", expected)._asdict()
    assert gpu.missed(line) == missed and ("**missed**" in gpu.cells("speed", line)) == missed


def test_the_time_outs_of_all_sections_are_ten_minutes_together():
    assert gpu.TOTAL <= 600 and max(gpu.SECTIONS.values()) < gpu.TOTAL
    assert FULL.batch is None and Path(gpu_parts.ROOT) == ROOT


def test_an_output_without_a_folder_is_bad_input(tmp_path):
    done = bench("--tiny", "--out", str(tmp_path / "none/gpu.json"))
    assert done.returncode == 2 and "its folder does not exist" in done.stderr
