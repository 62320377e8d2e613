"""The sections of `bench.gpu` that train as a run does, by `pipeline.train`: one whole epoch, and resumed runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from bench.gpu_parts import PAPERS, ROOT, Busy, Line, Scale, expected, packed_pictures, paper_recipe
from pipeline.base.config import read_params
from pipeline.data.manifests import Row, write_manifests


class Project:
    """A folder with look-alike photographs as CUB, in which runs are trained. They are searched among themselves."""

    def __init__(self, folder: Path, scale: Scale):
        self.folder, self.scale = folder, scale
        (folder / "data/splits").mkdir(parents=True)
        (folder / "data/packed").mkdir()
        packed = packed_pictures(folder / "made", scale)
        packed.folder.rename(folder / "data/packed/cub")
        rows = [Row(entry.image, entry.label, entry.name) for entry in packed.entries]
        self.images = len(rows)
        index = folder / "data/packed/cub/index.csv"
        write_manifests(folder / "data/splits/cub", {"train": rows, "test": rows}, [index])

    def start(self, paper: str, loss: str, out: str, **changes: Any) -> subprocess.Popen[bytes]:
        """Start a run of a paper's recipe, with changes."""
        recipe = paper_recipe(paper, self.scale, schedule={"name": "constant"}, **changes).model_dump(mode="json")
        settings = read_params(ROOT / "papers" / paper / "params.yaml").losses[loss]
        if "ratio" in settings and self.scale.batch is not None:
            settings = settings | {"ratio": 0.9}  # of few classes a smaller share would keep none
        content = {"tables": {}, "machine": {"device": "auto", "workers": 0}, "recipes": {"cub": recipe}}
        (self.folder / f"{paper}.yaml").write_text(yaml.safe_dump(content | {"losses": {loss: settings}}))
        command = [sys.executable, "-m", "pipeline.train", "--params", f"{paper}.yaml", "--dataset", "cub"]
        command += ["--loss", loss, "--seed", "0", "--out", out, "--workers", "8" if self.scale.batch is None else "0"]
        command += ["--device", "cuda" if torch.cuda.is_available() else "cpu"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for a run. Raises `RuntimeError` with its last lines if it fails."""
        if process.wait():
            raise RuntimeError((self.folder / "log").read_text()[-1000:])


def epoch(scale: Scale, folder: Path) -> Iterator[Line]:
    """The second of two epochs of CUB's size with both papers' recipes, in which the whole network trains and all
    images are searched, exactly as a run does it."""
    project = Project(folder / "epoch", replace(scale, pictures=scale.epoch))
    for paper, loss in PAPERS.items():
        with Busy() as busy:
            changes = {"epochs": 2, "evaluated_epochs": 1, "head_only_epochs": []}
            project.end(project.start(paper, loss, f"runs/{paper}", **changes))
        key = json.loads((project.folder / f"runs/{paper}/run.json").read_text())["key"]
        made = json.loads((project.folder / f"data/store/{key}/made.json").read_text())
        seconds, rate = made["epoch_seconds"][-1], made["images_per_second"][-1]
        name = f"{paper}, float32, an epoch of {project.images:,} images"
        yield Line(name, seconds, "s")
        graphed = any(found.startswith("used") for found in made["cuda_graphs"].values())
        yield Line(f"{name}, its steps", rate, "images/s", expected(paper, "float32", graphed))
        yield Line(f"{name}: share of its steps", 100 * project.images / rate / seconds, "%")
        if busy.percent is not None:
            yield Line(f"{name}: time that the GPU was busy, with start and evaluation", busy.percent, "%")
        found = "; ".join(made["cuda_graphs"].values()) or "no graphs"
        yield Line(f"{name}: images", "on the GPU" if made["images_on_device"] else "loaded")
        yield Line(f"{name}: graphs", found)


def resume(scale: Scale, folder: Path) -> Iterator[Line]:
    """A run that is killed after its first checkpoint, and one that is asked to stop then, each resumed and compared
    with an undisturbed run."""
    project = Project(folder / "resume", scale)

    def start(out: str) -> subprocess.Popen[bytes]:
        return project.start("proxygml", PAPERS["proxygml"], out, epochs=3, evaluated_epochs=3, head_only_epochs=[1])

    def files(out: str) -> dict[str, bytes]:
        project.end(start(out))
        found = {path.name: path.read_bytes() for path in (project.folder / out).iterdir() if path.name != "made.json"}
        shutil.rmtree(project.folder / "data/store")
        return found

    def saved() -> bool:
        return bool(list(project.folder.glob("data/store/*.checkpoint")))

    undisturbed = files("undisturbed")
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = start(number.name)
        while process.poll() is None and not saved():
            time.sleep(0.02)
        process.send_signal(number)
        process.wait()
        came = saved()
        same = files(number.name) == undisturbed
        yield Line(f"{number.name}, then resumed", "same bytes" if same else "other bytes", good=same and came)


RUN: dict[str, Callable[[Scale, Path], Iterator[Line]]] = {"epoch": epoch, "resume": resume}
