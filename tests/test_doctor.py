"""The page of `python -m pipeline.doctor`: what it finds right, what it finds wrong, and the exit code."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from pipeline import doctor
from pipeline.base.files import submodule
from pipeline.health import device, engines
from pipeline.health.space import space
from pipeline.runs import store
from tests import swap


@pytest.fixture
def copy(project, tmp_path, monkeypatch):
    """A copy of the small project that a test may break, as the working directory."""
    folder = tmp_path / "copy"
    shutil.copytree(project.folder, folder, symlinks=True)
    broken = object.__new__(type(project))
    broken.folder = folder
    monkeypatch.chdir(folder)
    return broken


def examine(project, fails=0):
    """The lines of the page by their names."""
    output = project.run("python", "-m", "pipeline.doctor", "--json", fails=fails)
    return {line["name"]: line for line in json.loads(output)}


def test_a_good_machine_passes_and_names_what_is_not_there(project):
    lines = examine(project)
    fit = ("Python", "Packages", "PyTorch", "Same bits", "git", "Writing", "Caches", "DVC", "glyphs")
    assert {name: lines[name]["state"] for name in fit} == dict.fromkeys(fit, "ok")
    assert "6,221 images" in lines["glyphs"]["found"]
    assert lines["cub"]["state"] == "warn" and lines["cub"]["fix"].endswith("dvc repro data/dvc.yaml:split@cub")
    assert lines["resnet50"] == {
        "name": "resnet50",
        "state": "warn",
        "found": "weights not here",
        "fix": "dvc repro data/dvc.yaml:weights@resnet50",
    }
    assert all(line["fix"] for line in lines.values() if line["state"] != "ok")
    assert project.run("git", "status", "--porcelain") == ""


def test_the_page_has_each_line_with_its_fix(project):
    page = project.run("python", "-m", "pipeline.doctor")
    assert "ok    glyphs                6,221 images" in page
    assert (
        "warn  resnet50              weights not here\n" + " " * 28 + "dvc repro data/dvc.yaml:weights@resnet50" in page
    )


def test_a_fault_makes_the_exit_code_1(copy):
    (copy.folder / "data/weights").mkdir()
    (copy.folder / "data/weights/resnet50.pth").write_bytes(b"weights")
    line = examine(copy, fails=1)["resnet50"]
    assert line["state"] == "fail" and line["fix"].startswith("remove it")


def test_other_packages_than_locked_fail(copy):
    lock = Path("requirements.lock")
    swap(lock, "\nnumpy==2.", "\nnumpy==1.")
    with lock.open("a") as file:
        file.write("no-such-package==1.0 \\\n    --hash=sha256:00\nno-windows==1 ; sys_platform == 'win32'\n")
    _, line = doctor._python()
    assert line.state == "fail"
    assert "no-such-package missing" in line.found and "numpy 2." in line.found and "win" not in line.found


def test_anothers_clone_that_git_refuses_fails(copy, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    (line,) = doctor._git()
    assert line.state == "fail" and "safe.directory" in line.fix


def test_a_folder_that_is_no_clone_fails(copy):
    shutil.rmtree(".git")
    (git,), (dvc,) = doctor._git(), doctor._dvc()
    assert git.state == dvc.state == "fail" and "mount a clone" in git.fix


def test_a_changed_manifest_fails(copy):
    manifest = Path("data/splits/glyphs/test.csv")
    rows = manifest.read_text().splitlines(keepends=True)
    manifest.unlink()
    manifest.write_text("".join(rows[:-1]))
    line = doctor.dataset_line("glyphs", 0)
    assert line.state == "fail" and "test.csv" in line.found and "dvc repro split" in line.fix


def test_packed_images_of_another_length_fail(copy):
    packed = Path("data/packed/glyphs/images.bin")
    content = packed.read_bytes()
    packed.unlink()
    packed.write_bytes(content[:-1])
    line = doctor.dataset_line("glyphs", 0)
    assert line.state == "fail" and "images.bin" in line.found


def test_a_cache_on_another_file_system_is_copied_from(copy):
    copy.run("dvc", "cache", "dir", "--local", f"/dev/shm/doctor-{os.getpid()}")
    line = examine(copy)["DVC"]
    # Symbolic links go anywhere, hard links do not.
    assert line["state"] == "ok" and line["found"].startswith("symlink ")
    copy.run("dvc", "config", "--local", "cache.type", "hardlink,copy")
    line = examine(copy)["DVC"]
    assert line["state"] == "warn" and "stored twice" in line["fix"]


def test_folders_that_cannot_be_written_fail(copy, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place).name not in ("metrics", "elsewhere"))
    monkeypatch.setenv("TORCH_HOME", str(copy.folder / "data/elsewhere"))
    (copy.folder / "data/elsewhere").mkdir()
    writing, caches = doctor._permissions()
    assert writing.state == "fail" and "metrics" in writing.found and "--user" in writing.fix
    assert caches.state == "warn" and "TORCH_HOME=" in caches.fix


class FakeGpu:
    """Computes on the CPU, with an error, and is called a GPU."""

    def __init__(self, errors):
        self.errors = iter(errors)

    def __call__(self, device):
        error = next(self.errors) if device.type == "cuda" else 0
        return [value * (1 + error) for value in step(torch.device("cpu"))]


step = device.step


@pytest.mark.parametrize(
    ("errors", "states"),
    [
        ([0, 0], ["ok", "ok"]),
        ([1e-5, 1e-5], ["ok", "ok"]),
        ([1e-2, 1e-2], ["ok", "fail"]),
        ([0, 1e-6], ["fail", "ok"]),
    ],
)
def test_a_gpu_is_held_against_itself_and_against_the_cpu(monkeypatch, errors, states):
    monkeypatch.setattr(device, "step", FakeGpu(errors))
    found = list(device.bits(torch.device("cuda")))
    assert [(line[0], line[1]) for line in found] == list(zip(("Same bits", "As on the CPU"), states, strict=True))
    assert all(bool(line[3]) == (line[1] == "fail") for line in found)


@pytest.mark.parametrize(
    ("capability", "state", "says"),
    [((9, 0), "ok", "capability 9.0 has TF32"), ((7, 5), "warn", "capability 7.5 lacks TF32")],
)
def test_tf32(capability, state, says):
    name, found, text, fix = device.tf32(capability)
    assert (name, found) == ("TF32", state) and says in text and bool(fix) == (state != "ok")


@pytest.mark.parametrize("why", ["", "RuntimeError: Failed to find C compiler."])
def test_whether_the_gpu_crops(monkeypatch, why):
    monkeypatch.setattr(device, "problem", lambda device: why)
    monkeypatch.setattr(device, "step", FakeGpu([0, 0]))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    found = {line[0]: line[1:] for line in device.lines(torch.device("cuda"))}
    assert list(found) == ["TF32", "Crops", "Same bits", "As on the CPU"]
    assert found["Crops"][0] == ("warn" if why else "ok") and why in found["Crops"][1]


@pytest.mark.parametrize(
    ("driver", "cuda", "state", "says"),
    [
        ("580.65.06", "13.0", "ok", "580 or newer"),
        ("610.43", "13.0", "ok", "580 or newer"),
        ("575.57.08", "13.0", "fail", "too old for CUDA 13.0"),
        ("535.104", "12.6", "ok", "525 or newer"),
        ("610.43", "99.1", "warn", "99.1"),
        (None, "13.0", "warn", "none"),
    ],
)
def test_drivers(driver, cuda, state, says):
    line = doctor.driver_line(driver, cuda)
    assert line.state == state and says in line.found and bool(line.fix) == (state != "ok")


def test_small_shared_memory_warns_with_the_flag(tmp_path):
    assert "--shm-size" in doctor.shared_memory_line(tmp_path / "absent").fix
    assert doctor.shared_memory_line(tmp_path).state == "ok"


def test_a_dataset_that_does_not_fit_says_so(copy):
    line = doctor.dataset_line("sop", 9 * 10**9)
    assert line.state == "warn" and "needs 9.3 GB of disk, 9.0 are free" in line.found and "free some disk" in line.fix
    assert "free some disk" not in doctor.dataset_line("sop", 10 * 10**9).fix


def test_disk_figures_are_those_of_the_published_files():
    for name in ("cub", "cars", "sop"):
        assert doctor.DATASETS[name] == sum(file.size or 0 for file in submodule("datasets", name).FILES)


@pytest.mark.parametrize("name", ["cars", "inshop"])
def test_what_only_a_person_can_fetch_is_no_command(copy, monkeypatch, name):
    monkeypatch.delenv("PIPELINE_MIRRORS", raising=False)
    command = f"dvc repro data/dvc.yaml:split@{name}"
    fix = doctor.dataset_line(name, 10**12).fix
    assert fix.endswith(f", then {command}") and f"into data/raw/{name}" in fix and "docs/datasets.md" in fix
    assert doctor.dataset_line(name, 0).fix == f"free some disk, then {fix}"
    monkeypatch.setenv("PIPELINE_MIRRORS", "http://mirror")
    assert doctor.dataset_line(name, 10**12).fix == command
    monkeypatch.delenv("PIPELINE_MIRRORS")
    place = copy.folder / "data/raw" / name
    place.mkdir()
    (place / ".gitkeep").touch()
    assert doctor.dataset_line(name, 10**12).fix == fix
    (place / "a.zip").touch()
    assert doctor.dataset_line(name, 10**12).fix == command


def test_by_hand_names_the_files_that_the_stage_asks_for():
    for name in ("cars", "inshop"):
        module = submodule("datasets", name)
        wanted = [file.name for file in module.FILES if not file.urls] if name == "inshop" else module.LAYOUTS[0]
        assert all(file in module.BY_HAND for file in wanted)
    for name in ("cub", "sop", "glyphs"):
        assert not hasattr(submodule("datasets", name), "BY_HAND")


ROOT = Path(__file__).parent.parent
RUNS = {
    # By the tables: datasets x rows x seeds; a table with the held-out protocol has two more runs each; the main one
    # also an ensemble a row and an untrained network a dataset.
    "proxygml": 3 * 3 * 3 * 3 + 3 * 3 + 3 + 2 * 3 + 8 + 90 + 2 * 16 + 2 * 3 * 3 + 2 * 3,
    "proxy_an": 4 * 3 * 3 * 3 + 4 * 3 + 4 + 4 * 2 + 2 * 2 * 2 * 10 + 2 * 2 * 2 * 5 + 4 * 2 * 3 + 2 * 3 * 3 + 4 * 2,
}


@pytest.mark.parametrize("grid", RUNS)
def test_runs_and_their_bytes_are_counted_from_the_params_file(monkeypatch, grid):
    monkeypatch.chdir(ROOT)
    found = space(grid)
    assert found.runs == RUNS[grid]
    line = doctor.grid_line(grid, [], 10**12)
    assert line.name == grid and f"all {RUNS[grid]:,} runs need {found.bytes / 1e9:.0f} GB" in line.found
    assert line.state == "ok" and not line.fix
    line = doctor.grid_line(grid, [], 10**9)
    assert line.state == "warn" and "free some disk" in line.fix


def test_the_bytes_of_a_run_are_those_of_its_weights(project, monkeypatch):
    monkeypatch.chdir(project.folder)
    found = space("default")
    kept = [file.stat().st_size for file in project.folder.glob("data/runs/default/glyphs/glyphs/*/*/*.pt")]
    assert (found.datasets, found.runs, len(kept)) == ({"glyphs"}, 5, 8)
    assert found.bytes == pytest.approx(sum(kept), rel=0.05)


def test_a_params_file_that_cannot_be_read_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("papers/mine").mkdir(parents=True)
    Path("papers/mine/params.yaml").write_text("tables: 3\n")
    line = doctor.grid_line("mine", [], 10**12)
    assert line.state == "fail" and "papers/mine/params.yaml:" in line.found and line.fix == "correct that file"


def unsupported(file, kind):
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


LOCKS = [(lambda file, kind: None, "two processes hold the same lock"), (unsupported, "Operation not supported")]


@pytest.mark.parametrize(("flock", "message"), LOCKS)
def test_a_file_system_without_locks_fails(copy, monkeypatch, flock, message):
    """As where file locks of several nodes do not know of each other, or there are none."""
    assert engines.lock_problem() == ""
    monkeypatch.setattr(store.fcntl, "flock", flock)
    assert message in engines.lock_problem()


def test_the_engines_that_a_machine_is_fit_for(copy, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(3)))
    lines = {line.name: line for line in doctor._engines()}
    assert lines["File lock"].state == lines["Engine local"].state == "ok"
    assert "up to 3 runs at a time" in lines["Engine local"].found
    monkeypatch.setenv("PIPELINE_GPUS", "[0, 1, 2, 3]")
    copy.run("python", "-m", "pipeline.choose", "proxygml")
    lines = {line.name: line for line in doctor._engines()}
    assert "up to 4 runs at a time on 4 GPUs" in lines["Engine local"].found
    one, four = re.findall(r"([\d.]+) h on", lines["Time of proxygml"].found)
    assert float(four) == pytest.approx(float(one) / 4, rel=0.02)
