"""bench.gpu on a CPU: every section measures, table and JSON hold it, and a late failure keeps what was there."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import gpu, gpu_checks, gpu_parts
from bench.gpu_parts import FULL, Line
from pipeline.base.config import read_params
from tests.conftest import ENVIRONMENT, ROOT


def bench(*words):
    command = [sys.executable, "-m", "bench.gpu", *words]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


def test_every_section_measures_on_a_cpu(tmp_path):
    """But for `resume` and `epoch`, whose eight processes take a while to start; test_checkpoint resumes on a CPU."""
    wanted = [section for section in gpu.SECTIONS if section not in ("resume", "epoch")]
    done = bench("--tiny", "--out", str(tmp_path / "gpu.json"), "--only", *wanted)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["tiny"] and list(found["sections"]) == wanted
    for section, result in found["sections"].items():
        assert result["ended"] == "whole" and result["lines"], section
        for line in result["lines"]:
            assert line["good"] in (True, None) and f"| {section} | {line['name']} |" in done.stdout
    checked = {line["name"] for line in found["sections"]["as on the CPU"]["lines"] if line["good"]}
    losses = {f"{name}, loss and gradients" for name in gpu_checks.every_loss()}
    grids = [read_params(ROOT / "papers" / grid / "params.yaml") for grid in ("proxygml", "proxy_an", "comparison")]
    every = [params.loss(name) for params in grids for name in params.losses]
    assert all(loss in gpu_checks.every_loss().values() for loss in every) and losses <= checked
    assert len(checked) == 1 + 5 + len(losses) + 4, "crops, countings, losses, networks there and back"


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
        kept = []
        result = gpu.run_section(section, seconds, True, tmp_path, kept.append)
        assert result["ended"] == ended and [line["name"] for line in result["lines"]] == ["first"]
        assert {found["ended"] for found in kept} == {"cut off"} and kept[-1]["lines"] == result["lines"]


def test_time_that_a_section_leaves_over_goes_to_the_next(tmp_path, monkeypatch):
    """And a section never begins with less than its own time, as long as all before it ended in theirs."""
    given = []
    clock = iter([0.0, 0.0, 30.0, 90.0])
    monkeypatch.setattr(gpu, "SECTIONS", {"machine": 20, "same bits": 80, "graphs": 50})
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(gpu.signal, "signal", lambda *words: None)
    monkeypatch.setattr(gpu, "run_section", lambda section, seconds, *words: given.append(seconds) or WHOLE)
    monkeypatch.setattr(gpu.argparse.ArgumentParser, "parse_args", parsed(tmp_path))
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 0 and given == [20.0, 70.0, 40.0]


WHOLE = {"lines": [], "ended": "whole", "seconds": 1.0}


def parsed(folder):
    words = {"out": folder / "gpu.json", "only": ["machine", "same bits", "graphs"], "tiny": False, "seconds": 130.0}
    return lambda parser: SimpleNamespace(**words)


def test_ended_from_outside_it_prints_what_was_measured(tmp_path):
    command = [sys.executable, "-m", "bench.gpu", "--tiny", "--out", str(tmp_path / "gpu.json")]
    process = subprocess.Popen(
        [*command, "--only", "machine", "evaluation"], cwd=ROOT, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE
    )
    while not (tmp_path / "gpu.json").exists() or "GPU" not in (tmp_path / "gpu.json").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    printed, _ = process.communicate()
    assert process.returncode == 143 and "| machine | GPU | none" in printed


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
    assert sum(gpu.SECTIONS.values()) <= gpu.TOTAL <= 600
    assert list(gpu.SECTIONS)[-1] == "shared", "what others' programs can spoil comes last"
    assert FULL.batch is None and Path(gpu_parts.ROOT) == ROOT


@pytest.mark.parametrize(
    ("name", "case", "known"),
    [
        ("NVIDIA H100 80GB HBM3", ("proxygml", "bfloat16", True), True),
        ("NVIDIA H200", ("proxygml", "bfloat16", True), True),
        ("NVIDIA GH200 480GB", ("proxy_an", "tf32", False), True),
        ("NVIDIA A100-SXM4-40GB", ("proxygml", "bfloat16", True), False),
    ],
)
def test_which_gpus_the_model_knows(monkeypatch, name, case, known):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert gpu_parts.expected(*case) == (gpu_parts.MODEL[case] if known else None)


def test_an_output_without_a_folder_is_bad_input(tmp_path):
    done = bench("--tiny", "--out", str(tmp_path / "none/gpu.json"))
    assert done.returncode == 2 and "its folder does not exist" in done.stderr
