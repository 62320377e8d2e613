"""Rehearse both papers, side by side: all of their stages on look-alike archives, in a scratch folder.

    python -m tests.rehearse FOLDER          # every table, dataset, loss, setting, network and switch
    python -m tests.rehearse FOLDER --thin   # one cell of each paper

What is small is small by params.yaml: two epochs, small batches and images, few proxies, thinned grids. The data are
look-alikes (tests/lookalikes.py), the weights of the right shapes and random. The numbers mean nothing, and the tables
say so: their runs did not search among the published images.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline.base.files import submodule
from pipeline.networks.published import FILES
from pipeline.tables.claims import FILE
from tests import lookalikes
from tests.server import Served, serve

ROOT = lookalikes.REPOSITORY
COUNTS = {
    "cub": {"train": (48, 4), "test": (48, 4), "held_out_train": (24, 2), "held_out_test": (24, 2)},
    "cars": {"train": (52, 4), "test": (40, 4), "held_out_train": (27, 2), "held_out_test": (25, 2)},
    "sop": {"train": (24, 4), "test": (24, 4), "held_out_train": (12, 2), "held_out_test": (12, 2)},
    "inshop": {
        "train": (24, 4),
        "query": (8, 4),
        "gallery": (16, 4),
        "held_out_train": (12, 2),
        "held_out_test": (12, 2),
    },
}
TABLES = {
    "proxygml": {
        "main": {"rows": {"dimension": [64]}, "seeds": [0, 1]},
        "epsilon": {"seeds": [0]},
        "precision": {"rows": {"precision": ["float32", "tf32"]}},  # bfloat16 takes minutes on most processors
        "ablation": {},
        "proxies": {"rows": {"ratio": [1.0, 0.5], "proxies_per_class": [1, 2]}},
        "ratio": {"rows": {"ratio": [0.01, 1.0]}},
    },
    "proxy_an": {
        "main": {"seeds": [2024]},
        "precision": {"rows": {"precision": ["float32", "tf32"]}, "seeds": [2024]},
        "alpha": {},
        "partial": {"rows": {"loss": ["proxy_an", "proxy_anchor"], "alpha": [12.0], "rate": [0.1, 1.0]}},
        "imbalance": {"rows": {"loss": ["proxy_an", "proxy_anchor"], "alpha": [12.0], "gamma": [150]}},
        "networks": {
            "datasets": ["cub", "inshop"],
            "rows": {"recipe": ["bn_inception", "deit_small_distilled"], "loss": ["proxy_an"]},
        },
    },
}
THIN = {
    "proxygml": {"main": {"datasets": ["cub"], "rows": {"dimension": [64]}, "seeds": [0]}},
    "proxy_an": {
        "partial": {
            "datasets": ["cub"],
            "rows": {"loss": ["proxy_an"], "alpha": [12.0], "rate": [0.1]},
        }
    },
}


def build_archives(folder: Path) -> None:
    """Write the look-alikes as a mirror serves them: raw/<dataset>/ and weights/."""
    lookalikes.cub(folder / "raw/cub", range(1, 13), more=4)
    lookalikes.cars_official(folder / "raw/cars", more=10)
    lookalikes.sop(folder / "raw/sop", classes=8, images=6)
    parts = {item: " ".join(["train"] * 6) for item in (2, 7, 3, 11)}
    parts |= dict.fromkeys((5, 10, 12, 13), "query query gallery gallery gallery gallery")
    lookalikes.inshop(folder / "raw/inshop", parts)
    (folder / "weights").mkdir()
    for name in FILES:
        torch.manual_seed(0)
        torch.save(submodule("networks.backbones", name).Backbone().state_dict(), folder / "weights" / f"{name}.pth")


def shrink(path: Path, tables: dict[str, dict[str, Any]]) -> None:
    """Make a paper's params.yaml small: what is trained, on what, and how many runs. Claims of other tables go."""
    params = yaml.safe_load(path.read_text())
    params["machine"]["workers"] = 0
    for recipe in params["recipes"].values():
        balanced = recipe.get("samples_per_class") is not None
        schedule = {"name": "steps", "at": [2], "factor": recipe["schedule"]["factor"]}
        recipe |= {"epochs": 2, "evaluated_epochs": 1, "schedule": schedule, "cpu_threads": 1}
        recipe["recall_at"] = [k for k in recipe["recall_at"] if k < 16]  # of 16 images and more
        recipe["head_only_epochs"] = recipe.get("head_only_epochs", [])[:1]  # and the whole network in the other epoch
        recipe |= {"batch_size": 4, "samples_per_class": 2} if balanced else {"batch_size": 6}
        if recipe["backbone"] != "deit_small_distilled":  # which takes no other size
            recipe |= {"input_size": 64, "test_resize": 72}
    for settings in params["losses"].values():
        if "ratio" in settings:
            settings |= {"ratio": 0.8, "proxies_per_class": min(3, settings["proxies_per_class"])}
    params["tables"] = {name: params["tables"][name] | changes for name, changes in tables.items()}
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    claimed = yaml.safe_load((path.parent / FILE).read_text())
    claimed["claims"] = [claim for claim in claimed["claims"] if claim.get("table", next(iter(tables))) in tables]
    (path.parent / FILE).write_text(yaml.safe_dump(claimed, sort_keys=False))


def copy(folder: Path, tables: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Copy the project into `folder`, small."""
    lookalikes.project(folder, COUNTS, weights=True)
    for name in ("papers", ".dvc"):
        ignored = shutil.ignore_patterns("dvc.lock", "tmp", "cache")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    for paper, of in tables.items():
        shrink(folder / "papers" / paper / "params.yaml", of)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)


def rehearse(folder: Path, thin: bool = False) -> list[Path]:
    """Run the papers, side by side, each in a project of its own in `folder`, which must not exist yet, and give the
    tables. Raises `CalledProcessError`."""
    build_archives(folder / "mirror")
    files = {f"/{path.relative_to(folder / 'mirror')}": path for path in (folder / "mirror").rglob("*.*")}
    pages, started = [], []
    with serve({address: Served(path.read_bytes()) for address, path in files.items()}) as base:
        for paper, tables in (THIN if thin else TABLES).items():
            project = folder / paper
            copy(project, {paper: tables})
            shutil.copytree(folder / "mirror/raw/inshop", project / "data/raw/inshop")
            subprocess.run([sys.executable, "-m", "pipeline.choose", paper], cwd=project, check=True)
            command = [sys.executable, "-m", "dvc", "repro", "papers/dvc.yaml"]
            started.append(subprocess.Popen(command, cwd=project, env=os.environ | {"PIPELINE_MIRRORS": base}))
            pages += [project / f"metrics/tables/{paper}/{name}.md" for name in tables]
        for process in started:
            process.wait()
    for process in started:
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
    return pages


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.rehearse", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a scratch folder that does not exist yet")
    parser.add_argument("--thin", action="store_true", help="one cell of each paper")
    arguments = parser.parse_args()
    start = time.monotonic()
    for page in rehearse(arguments.folder.absolute(), arguments.thin):
        print(page.read_text())
    print(f"Rehearsed in {time.monotonic() - start:.0f} s; everything is in {arguments.folder}.")


if __name__ == "__main__":
    main()
