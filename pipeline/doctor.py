"""Check whether this machine or container is fit for the pipeline. Prints one page; each line says ok, warn or fail,
with its fix.

The exit code is 1 if a line says fail, otherwise 0. It takes a few seconds and changes nothing. `--json` prints the
lines as a list of objects with the keys name, state, found and fix.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement

from pipeline.base import gpu
from pipeline.base.command import exit_with
from pipeline.base.config import read_params
from pipeline.base.files import BadInputError, sha256
from pipeline.data.checksums import pins
from pipeline.data.index import read_index
from pipeline.data.manifests import Row, read_manifest
from pipeline.datasets import dataset_module
from pipeline.datasets.checks import check
from pipeline.engines.places import mps_is_on
from pipeline.health import engines
from pipeline.health.space import space
from pipeline.networks import weights
from pipeline.networks.published import FILES
from pipeline.runs.grid import chosen_grids, grid_runs, known_grids

ROOT = Path(__file__).parent.parent
GB = 10**9

DATASETS = {
    "glyphs": 2_000_000,  # the fonts, copied from an installed package
    "cub": 1_150_585_339,  # CUB_200_2011.tgz, published
    "cars": 1_957_136_468,  # cars_train.tgz, cars_test.tgz, car_devkit.tgz and the test labels, published
    "sop": 3_083_860_082,  # Stanford_Online_Products.zip, published
    "inshop": 1_300_000_000,  # not published: 52,712 images of 256 x 256 pixels at a generous 3 bits a pixel
}
"""Bytes of a dataset's download. JPEG files hardly shrink in an archive, so the packed images take the same space
again, and once more while they are sorted."""


class Line(NamedTuple):
    """One line of the page. `fix` is empty if everything is fine."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


UNTRIED = ("GPU", "Docker", "Arm")
"""What nobody has run this project on. docs/not_reproduced.md and README name the same."""


def _python() -> Iterator[Line]:
    fits = sys.version_info[:2] in ((3, 11), (3, 12))
    fix = "" if fits else "make setup PYTHON=python3.12"
    yield Line("Python", "ok" if fits else "fail", ".".join(map(str, sys.version_info[:3])), fix)
    lines = Path("requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = [Requirement(line.rstrip(" \\")) for line in lines if line[:1].isalnum()]
    wanted = [package for package in locked if not package.marker or package.marker.evaluate()]
    wrong = []
    for package in wanted:
        try:
            found = importlib.metadata.version(package.name)
        except importlib.metadata.PackageNotFoundError:
            found = ""
        if not found or found not in package.specifier:
            wrong.append(f"{package.name} {found or 'missing'}, locked {package.specifier}")
    if wrong:
        yield Line("Packages", "fail", "; ".join(wrong), "make setup, or build the image again")
    else:
        yield Line("Packages", "ok", f"all {len(wanted)} as in requirements.lock")


def driver_line(driver: str | None, cuda: str) -> Line:
    """Whether the NVIDIA driver, such as "580.65.06", or None if there is none, runs programs of a CUDA version."""
    first = gpu.DRIVERS.get(int(cuda.split(".")[0]))
    if driver is None:
        return Line("Driver", "warn", "none from NVIDIA", "for a GPU: docker run --gpus all, apptainer run --nv")
    if first is None:
        return Line("Driver", "warn", f"{driver}; CUDA is {cuda}", "check in CUDA's release notes whether they match")
    if int(driver.split(".")[0]) < first:
        return Line("Driver", "fail", f"{driver} is too old for CUDA {cuda}", f"driver {first} or newer on the host")
    return Line("Driver", "ok", f"{driver}; CUDA {cuda} needs {first} or newer")


def gpu_line(number: int) -> Line:
    """Whether a GPU that PyTorch sees can be used: its compute capability, and whether another program holds it."""
    import torch

    capability = torch.cuda.get_device_capability(number)
    name = f"{torch.cuda.get_device_name(number)}, capability {capability[0]}.{capability[1]}"
    if why := gpu.capability_problem(capability, torch.cuda.get_arch_list()):
        return Line("GPU", "fail", name, why)
    try:
        free, total = torch.cuda.mem_get_info(number)
    except RuntimeError as error:  # such as a GPU in exclusive mode that another program holds
        fix = "end the program that holds it (nvidia-smi shows it), or set its compute mode to Default"
        return Line("GPU", "fail", f"{name}: {str(error).splitlines()[0]}", fix)
    return Line("GPU", "ok", f"{name}, {free / GB:.1f} of {total / GB:.1f} GB free")


def _gpu() -> Iterator[Line]:
    import torch

    from pipeline.health import device

    cuda = torch.version.cuda
    yield Line("PyTorch", "ok", f"{torch.__version__}, CUDA {cuda}")
    query = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        gpus = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        gpus = []
    if cuda:
        yield driver_line(gpus[0].split(",")[0] if gpus else None, cuda)
    usable = torch.cuda.is_available()
    for number in range(torch.cuda.device_count() if usable else 0):
        yield gpu_line(number)
    if gpus and not usable:
        yield Line("GPU", "fail", f"{gpus[0]}: {gpu.problem() or 'PyTorch cannot use it'}", "see Driver")
    elif not usable:
        yield Line("GPU", "warn", "none: everything runs on the processor", "see Driver")
    if usable:
        yield Line("MPS", "ok", f"is {'on' if mps_is_on() else 'off'}; with it several runs share a GPU well")
    try:
        yield from (Line(*found) for found in device.lines(torch.device("cuda" if usable else "cpu")))
    except RuntimeError as error:
        yield Line("Same bits", "fail", str(error).splitlines()[0], "see GPU and Driver")


def tried_line(machine: str, gpu: bool, container: bool) -> Line:
    """Whether this project has been run before on this kind of machine. `machine` is that of `platform`."""
    here = {"GPU": gpu, "Docker": container, "Arm": machine == "aarch64"}
    new = ", ".join(name for name in UNTRIED if here[name])
    if not new:
        return Line("Tried before", "ok", "on a machine such as this one")
    fix = "measure with bench.gpu; see docs/not_reproduced.md" if gpu else "see docs/not_reproduced.md"
    return Line("Tried before", "warn", f"never on: {new}", fix)


def _machine() -> Iterator[Line]:
    import torch

    yield tried_line(platform.machine(), torch.cuda.is_available(), Path("/.dockerenv").exists())
    cores = len(os.sched_getaffinity(0))
    fix = "" if cores > 1 else "the papers' recipes ask for 8 threads"
    yield Line("Cores", "warn" if fix else "ok", str(cores), fix)
    limits = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    given = [int(text) for limit in limits if limit.is_file() and (text := limit.read_text().strip()).isdigit()]
    memory = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *given) / GB
    # CUB-200-2011 takes 6.6 GB when it is decoded once (docs/datasets.md).
    fix = "" if memory >= 12 else "enough for glyphs; the benchmark datasets need 12 GB or more"
    yield Line("Memory", "warn" if fix else "ok", f"{memory:.1f} GB", fix)
    yield shared_memory_line(Path("/dev/shm"))


def shared_memory_line(place: Path) -> Line:
    """Whether there is enough shared memory for the batches of loader processes. If it is full, a bus error kills these
    processes."""
    size = shutil.disk_usage(place).total / GB if place.is_dir() else 0
    # 8 processes with 4 batches each of 120 images of 3 x 224 x 224 bytes take 0.6 GB. Docker gives 0.07 GB.
    fix = "" if size > 1 else "docker run --shm-size=8g, or machine.workers: 0 in params.yaml"
    return Line("Shared memory", "warn" if fix else "ok", f"{size:.2f} GB", fix)


def _git() -> Iterator[Line]:
    done = subprocess.run(["git", "status", "--porcelain"], capture_output=True, encoding="utf-8", errors="replace")
    people = f"the clone's owner is {Path().stat().st_uid}, you are {os.geteuid()}"
    if done.returncode == 0:
        yield Line("git", "ok", f"{len(done.stdout.splitlines())} changed files; {people}")
    elif "dubious ownership" in done.stderr:
        # DVC's git backends do not read this setting from the environment.
        fix = f"git config --global --add safe.directory {ROOT}"
        yield Line("git", "fail", f"refuses a clone of another user: {people}", fix)
    else:
        fix = "use or mount a clone (not a worktree: its .git points elsewhere)"
        yield Line("git", "fail", done.stderr.strip().split("\n")[0], fix)


def _engines() -> Iterator[Line]:
    try:
        machine = read_params(Path("params.yaml")).machine
    except BadInputError as error:
        yield Line("Engines", "fail", str(error), "correct that file, or that variable")
        return
    grids = {grid: grid_runs(grid) for grid in chosen_grids()[1:]}
    yield from (Line(*found) for found in engines.lines(machine, grids))


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def _permissions() -> Iterator[Line]:
    folders = [
        Path(),
        *(place for top in (".dvc", ".git", "data", "metrics") for place in (Path(top), *Path(top).glob("*/"))),
    ]
    denied = [str(place) for place in folders if place.is_dir() and not os.access(place, os.W_OK)]
    if denied:
        fix = f"run as user {Path().stat().st_uid} (docker run --user), or make a clone of your own"
        yield Line("Writing", "fail", f"user {os.geteuid()} cannot write to {', '.join(denied[:4])}", fix)
    else:
        yield Line("Writing", "ok", "everywhere in the clone")
    names = ("HOME", "TORCH_HOME", "MPLCONFIGDIR", "DVC_SITE_CACHE_DIR")
    caches = {name: os.environ[name] for name in names if name in os.environ}
    refused = [f"{name}={place}" for name, place in caches.items() if not os.access(_existing(Path(place)), os.W_OK)]
    fix = f"cannot write to {', '.join(refused)}: mount or name folders that you may write to" if refused else ""
    found = " ".join(f"{name}={place}" for name, place in caches.items())
    yield Line("Caches", "warn" if refused else "ok", found, fix)


def _dvc() -> Iterator[Line]:
    from dvc.exceptions import DvcException
    from dvc.fs import localfs
    from dvc.repo import Repo
    from dvc_objects.fs.generic import test_links
    from scmrepo.exceptions import SCMError

    try:
        with Repo() as repo:
            repo.scm.get_rev()
            repo.index.stages  # noqa: B018  # reads every dvc.yaml and dvc.lock
            cache, wanted, site = repo.cache.local.path, repo.config["cache"]["type"], repo.site_cache_dir
        works = test_links(wanted, localfs, str(_existing(Path(cache))), localfs, str(ROOT / "data/link"))
    except (DvcException, SCMError, OSError) as error:
        fix = "git checkout -- dvc.lock" if "dvc.lock" in str(error) else "see git and Writing"
        yield Line("DVC", "fail", str(error), fix)
        return
    found = f"{works[0]} from {cache}, of {', '.join(works)}; site cache {site}"
    twice = "every file is stored twice: put the cache (dvc cache dir) and data on the same file system"
    yield Line("DVC", "warn", found, twice) if works[0] == "copy" else Line("DVC", "ok", found)


def dataset_line(name: str, free: int) -> Line:
    """Whether a dataset is there and verified: its index, its manifests, and the length of the packed images, whose
    hash each run checks anyway. A dataset that is not there must fit into `free` bytes of disk."""
    packed, splits = Path("data/packed") / name, Path("data/splits") / name
    command = "dvc repro split" if name == "glyphs" else f"dvc repro data/dvc.yaml:split@{name}"
    if not packed.is_dir() or not splits.is_dir():
        room = f"needs {3 * DATASETS[name] / GB:.1f} GB of disk, {free / GB:.1f} are free"
        steps = ["" if 3 * DATASETS[name] < free else "free some disk", _by_hand(name), command]
        return Line(name, "warn", f"not here; {room}", ", then ".join(filter(None, steps)))
    try:
        entries, module = read_index(packed), dataset_module(name)
        parts = {part: [entries[image] for image in images] for part, images in module.split(entries).items()}
        check(name, module, parts)
        for part, chosen in parts.items():
            if read_manifest(splits / f"{part}.csv") != [Row(entry.image, entry.label, entry.name) for entry in chosen]:
                raise BadInputError(f"{splits / part}.csv does not agree with the index")
        if (packed / "images.bin").stat().st_size != entries[-1].offset + entries[-1].length:
            raise BadInputError(f"{packed / 'images.bin'} does not have the length that its index says")
    except (BadInputError, OSError) as error:
        return Line(name, "fail", str(error), f"remove {packed} and {splits}, then {command}")
    return Line(name, "ok", f"{len(entries):,} images, index and manifests verified")


def _by_hand(name: str) -> str:
    """What a person has to fetch by hand before a dataset's stages can run; empty if programs can fetch it, or if it is
    there."""
    raw, by_hand = Path("data/raw") / name, getattr(dataset_module(name), "BY_HAND", "")
    there = raw.is_dir() and any(not path.name.startswith(".") for path in raw.iterdir())
    return "" if there or "PIPELINE_MIRRORS" in os.environ else by_hand


def grid_line(name: str, datasets: list[Line], free: int) -> Line:
    """Whether a grid and its missing datasets fit into `free` bytes of disk."""
    try:
        needed = space(name)
    except BadInputError as error:
        return Line(name, "fail", str(error), "correct that file")
    absent = [DATASETS[line.name] for line in datasets if line.name in needed.datasets and line.state == "warn"]
    need = needed.bytes + 2 * sum(absent) + max(absent, default=0)
    found = f"its datasets and all {needed.runs:,} runs need {need / GB:.0f} GB of disk, {free / GB:.0f} are free"
    if need < free:
        return Line(name, "ok", found)
    return Line(name, "warn", found, "free some disk, or put data and DVC's cache on another one")


def weights_line(name: str) -> Line:
    """Whether a network's published weights are there, checked by their SHA-256."""
    path = weights.FOLDER / FILES[name].name
    command = f"dvc repro data/dvc.yaml:weights@{name}"
    if not path.is_file():
        return Line(name, "warn", "weights not here", command)
    if not sha256(path).startswith(pins().get(f"weights/{path.name}") or FILES[name].sha256 or ""):
        return Line(name, "fail", f"{path} is not the published file", f"remove it, then {command}")
    return Line(name, "ok", "weights verified")


def _data() -> Iterator[Line]:
    free = shutil.disk_usage("data").free
    datasets = [dataset_line(name, free) for name in DATASETS]
    yield from (grid_line(grid, datasets, free) for grid in known_grids())
    yield from datasets
    yield from map(weights_line, FILES)


def examine() -> list[Line]:
    """All lines of the page, about the clone that this file is in. The clone becomes the working directory."""
    os.chdir(ROOT)
    return [line for part in (_python, _gpu, _machine, _git, _permissions, _dvc, _engines, _data) for line in part()]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the page")
    as_json = parser.parse_args().json
    lines = examine()
    if as_json:
        print(json.dumps([line._asdict() for line in lines], indent=2))
    else:
        for line in lines:
            print(f"{line.state:4}  {line.name:20}  {line.found}" + (f"\n{'':28}{line.fix}" if line.fix else ""))
    sys.exit(any(line.state == "fail" for line in lines))


if __name__ == "__main__":
    exit_with(main)
