"""A GPU that is there and cannot be used is an error with its fix; CUDA_VISIBLE_DEVICES is read as CUDA reads it."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline import diff, doctor
from pipeline.base import gpu, provenance
from pipeline.base.files import BadInputError
from pipeline.base.provenance import worked_on
from pipeline.reports.runs import ShownGrid
from pipeline.runs.grid import grid_runs
from pipeline.runs.key import device_kind
from pipeline.runs.record import Gpu, MetricsRecord, TrainingRecord, read_record
from pipeline.tables import formats
from pipeline.tables.grid import read_content
from pipeline.training import loop
from pipeline.work import job
from tests.conftest import ENVIRONMENT, ROOT
from tests.records import write_metrics
from tests.small_run import small_run

LOCKED = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for cached in (gpu.problem, device_kind):
        cached.cache_clear()
    yield
    for cached in (gpu.problem, device_kind):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("0,1,-1,2", ["0", "1"]),
        ("NoDevFiles", []),
        ("1,1", []),
        ("", []),
        ("-1", []),
        (" 2, 0 ", ["2", "0"]),
        ("GPU-8a1b,GPU-9c", ["GPU-8a1b", "GPU-9c"]),
        ("MIG-GPU-8a1b/1/0", ["MIG-GPU-8a1b/1/0"]),
    ],
)
def test_visible_devices_are_those_that_cuda_sees(monkeypatch, named, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert gpu.visible() == expected
    if not any(name.startswith(("GPU", "MIG")) for name in expected):
        assert torch.cuda._parse_visible_devices()[:4] == [int(name) for name in expected], "as PyTorch reads it"


def test_a_gpu_that_is_hidden_is_none(monkeypatch):
    monkeypatch.setattr(gpu, "SIGNS", ("/",))
    assert gpu.is_there()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not gpu.is_there() and gpu.problem() == "" and device_kind("auto") == "cpu"


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        *(((7, 5), True), ((8, 0), True), ((8, 9), True), ((9, 0), True), ((10, 3), True), ((12, 1), True)),
        *(((6, 0), False), ((7, 0), False), ((11, 0), False)),
    ],
)
def test_which_gpus_run_the_locked_wheels(capability, runs):
    assert gpu.runs_on(capability, LOCKED) == runs
    why = gpu.capability_problem(capability, LOCKED)
    assert bool(why) != runs
    if why:
        assert f"capability {capability[0]}.{capability[1]}" in why and "sm_75" in why and "PIPELINE_DEVICE=cpu" in why


def test_a_gpu_with_a_capability_that_is_not_compiled_is_refused_without_cuda(monkeypatch):
    monkeypatch.setattr(gpu, "SIGNS", ("/",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: LOCKED)
    monkeypatch.setattr(gpu, "_from_nvml", lambda name, question: [7, 0])
    with pytest.raises(BadInputError, match=r"^machine\.device: auto: the GPU has the compute capability 7\.0, and"):
        device_kind("auto")
    assert device_kind("cpu") == "cpu" and not torch.cuda.is_initialized()


@pytest.mark.gcc
def test_a_driver_that_is_too_old_is_named_with_its_fix(tmp_path):
    """With PyTorch's own look at the driver, and a stand-in for the driver's library."""
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", str(library), str(ROOT / "tests/old_driver.c")], check=True)
    script = "from pipeline.base import gpu; gpu.SIGNS = ('/',)\n"
    script += "from pipeline.base.command import exit_with; from pipeline.runs.key import device_kind\n"
    script += "exit_with(lambda: device_kind('auto'))"
    environment = ENVIRONMENT | {"LD_LIBRARY_PATH": str(tmp_path)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for word in ("machine.device: auto: there is a GPU", "driver on your system is too old (found version 12080)"):
        assert word in done.stderr
    assert "needs the NVIDIA driver 580 or newer: update the driver, or choose the processor" in done.stderr


def test_doctor_names_a_gpu_that_the_wheels_cannot_run_or_that_another_program_holds(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: LOCKED)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (7, 0))
    assert doctor.gpu_line(0).state == "fail" and "compute capability 7.0" in doctor.gpu_line(0).fix

    def held(number):
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nmore")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (8, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", held)
    line = doctor.gpu_line(0)
    assert line.state == "fail" and "busy or unavailable" in line.found and "compute mode" in line.fix
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (10**10, 4 * 10**10))
    assert doctor.gpu_line(0).state == "ok"


@pytest.mark.parametrize(("content", "expected"), [("1\n", 1), ("-1\n", None), (None, None)])
def test_the_numa_node_of_a_gpu(tmp_path, monkeypatch, content, expected):
    monkeypatch.setattr(gpu, "_from_nvml", lambda name, question: SimpleNamespace(busId=b"00000000:3B:00.0"))
    (tmp_path / "0000:3b:00.0").mkdir()
    if content:
        (tmp_path / "0000:3b:00.0/numa_node").write_text(content)
    assert gpu.numa_node("0", tmp_path) == expected


GPUS = {name: {"name": name, "driver": "580.65.06", "cudnn": 92400} for name in ("NVIDIA A100", "NVIDIA H100")}


class Killed(BaseException):
    pass


def test_a_run_names_all_machines_that_worked_on_it(tmp_path, monkeypatch, capfd):
    """Killed after its first epoch on one GPU, it goes on on another one."""

    def killed(training, *words):
        training.writer.wait()
        raise Killed

    def on(name):
        machine = {"cpu": "EPYC", "gpu": GPUS[name]}
        monkeypatch.setattr(loop, "machine", lambda device: machine)
        monkeypatch.setattr(job, "machine", lambda device: machine)

    monkeypatch.chdir(tmp_path)
    asked = job.Job(small_run(tmp_path), "run", "cpu", 0)
    on("NVIDIA A100")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop.Training, "report", killed)
        job.perform(asked)
    on("NVIDIA H100")
    assert job.perform(asked) == 0
    said = capfd.readouterr().err
    assert "run: goes on from epoch 2" in said
    driver = "driver 580.65.06, cuDNN 92400"
    assert (
        f"run: earlier steps were taken on NVIDIA A100, {driver}, the next ones are taken on NVIDIA H100, {driver}"
        in said
    )
    trained, evaluated = (next(Path("data/store").glob(f"*/{name}")) for name in ("run.json", "metrics.json"))
    record, metrics = read_record(trained, TrainingRecord), read_record(evaluated, MetricsRecord)
    assert [each.name for each in record.gpus] == ["NVIDIA A100", "NVIDIA H100"]
    assert [each.name for each in metrics.gpus] == ["NVIDIA H100"] and metrics.run == record
    assert metrics.all_gpus == [f"{name}, driver 580.65.06, cuDNN 92400" for name in GPUS]
    made = json.loads(trained.with_name("made.json").read_text())
    assert made["machines"] == [{"cpu": "EPYC", "gpu": each} for each in GPUS.values()]


def test_a_machine_that_comes_back_is_named_once_and_the_same_gpu_is_not_worth_a_line(capsys):
    machines = []
    for cpu in ("EPYC", "Xeon", "EPYC"):
        machines = worked_on(machines, {"cpu": cpu, "gpu": GPUS["NVIDIA A100"]}, "run")
    assert [machine["cpu"] for machine in machines] == ["Xeon", "EPYC"] and not capsys.readouterr().err


def test_the_machine_has_the_gpus_model_driver_and_cudnn(monkeypatch):
    library = SimpleNamespace(nvmlInit=lambda: None, nvmlSystemGetDriverVersion=lambda: "580.65.06")
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92400)
    found = provenance.machine.__wrapped__(torch.device("cuda"))
    assert found["gpu"] == GPUS["NVIDIA H100"] and provenance.machine(torch.device("cpu")) == found | {"gpu": None}
    library.nvmlInit = lambda: 1 / 0
    assert provenance.machine.__wrapped__(torch.device("cuda"))["gpu"]["driver"] is None


def gpus(*names):
    return tuple(Gpu(**GPUS[f"NVIDIA {name}"]) for name in names)


@pytest.mark.parametrize(
    ("first", "second", "others", "mixed", "apart"),
    [
        ((), (), (), False, False),
        (("H100",), ("H100",), ("H100",), False, False),
        (("H100",), ("H100",), ("A100",), False, True),
        (("H100",), ("A100",), ("A100",), True, True),
        (("A100", "H100"), ("H100",), ("H100",), True, True),
        (("H100",), (), ("H100",), True, True),
    ],
)
def test_tables_name_their_gpus_and_warn_of_what_mixes_them(tmp_path, monkeypatch, first, second, others, mixed, apart):
    for name in ("params.yaml", "papers"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    named = {f"proxy_gml/{seed}.json": gpus(*(second if seed else first)) for seed in range(3)}
    recall = 0.5
    for run in grid_runs("default"):
        recall += 0.001
        used = named.get(f"{run.row}/{run.metrics.name}", gpus(*others))
        write_metrics(
            tmp_path, run, {"best_test_epoch": recall, "last_epoch": recall, "no_training": recall}, gpus=used
        )
    content = read_content("default")
    table = content.tables[0]
    text, tex = "\n".join(formats.page(table)), formats.latex(table)
    row, rows = "Runs of one row were made on different GPUs: glyphs/proxy_gml.", "differences between them may come"
    page = ShownGrid("default").mixtures()
    for shown in (text, tex.replace("\\_", "_"), "\n".join(page)):
        assert ((row in shown), (rows in shown)) == (mixed, apart)
    made = [note for note in table.notes if note.startswith("Made on: ")]
    assert len(made) == any((first, second, others))
    for name in {*first, *second, *others}:
        assert f"NVIDIA {name}, driver 580.65.06, cuDNN 92400 (" in made[0] and made[0] in text
    assert ("the processor (2 runs)" in text) == (bool(first) and not second)


def test_diff_warns_of_rows_that_changed_with_their_gpu():
    before, after = {("a", "last_epoch", "recall@1"): {0: 0.5}}, {("a", "last_epoch", "recall@1"): {0: 0.6}}
    found = diff.mixtures(before, after, {"a": {"NVIDIA A100"}}, {"a": {"NVIDIA H100"}})
    assert found == ["a: made on NVIDIA A100 before and on NVIDIA H100 after: the differences may come from the GPU."]
    assert not diff.mixtures(before, before, {"a": {"NVIDIA A100"}}, {"a": {"NVIDIA H100"}})
    assert not diff.mixtures(before, after, {"a": {"NVIDIA H100"}}, {"a": {"NVIDIA H100"}})
