"""List what could be removed from the store: runs and evaluations that nothing names any more, and the files beside
them. With --yes, remove it.

Each line says what the run was, its size and its age. Kept is

- every run of every grid as the grid is now, by whatever device and instructions it was made;
- what names under data/runs, data/queries and data/cached show;
- what the metrics files of the last commit and of DVC's experiments name (`dvc exp list`);
- what a process is working on.

If the data of a grid's dataset are not here, it is not known which runs the grid means. Then nothing is removed as long
as the store has a run on that dataset. Nothing else in this project removes a run. DVC's cache may still hold a copy of
a removed run.
"""

import argparse
import json
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.base.command import exit_with
from pipeline.base.config import read_params
from pipeline.base.files import BadInputError, read_json, remove
from pipeline.runs import store
from pipeline.runs.grid import CACHED, GridRun, grid_folder, grid_runs, known_grids
from pipeline.runs.key import NotReadyError, digest, evaluation_key, training_key
from pipeline.runs.packages import versions
from pipeline.runs.record import METRICS, RECORD
from pipeline.runs.revisions import experiments, files_of_commit, git


def what_counts(content: dict[str, Any], training: dict[str, Any] | None = None) -> str:
    """A hash of a key's content without the device, the instructions, the packages, and other runs' keys. `training`
    is the content of the training's key, for the evaluation of one."""
    of = content.get("training")
    data = {name: value for name, value in content["data"].items() if name != "chosen_by"}
    rest = {name: value for name, value in of.items() if name != "members"} if isinstance(of, dict) else None
    own = {"settings": content["settings"], "data": data, "code": content["code"], "of": rest}
    return digest([own, what_counts(training) if training else None])


def installed(content: dict[str, Any]) -> bool:
    """Whether the packages in a key's content are those that are installed here."""
    here = versions(True) | versions(False)
    return all(here.get(name) == version for name, version in content["packages"].items())


class Wanted:
    """What must be kept: `keys`, and `counting`, which has `what_counts` of all runs of all grids. `unclear` is dataset
    -> why the keys of some runs on it are not known."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.counting: set[str] = set()
        self.unclear: dict[str, str] = {}
        for grid in known_grids():
            device = read_params(grid_folder(grid) / "params.yaml").machine.device
            for run in grid_runs(grid, every_choice=True):
                self.add(run, device)
        for folder in (Path("data/runs"), Path("data/queries"), CACHED):
            self.keys |= {key for path in folder.glob("**/*.json") if (key := store.key_of(path))}
        here = Path.cwd().resolve()
        if any((folder / ".git").exists() for folder in (here, *here.parents)):
            commits = {commit for commit, _ in experiments()}
            with suppress(BadInputError):  # a repository without a commit
                commits.add(git("rev-parse", "--verify", "--quiet", "HEAD").decode().strip())
            for commit in commits:
                for _, text in files_of_commit(commit):
                    self.keys |= keys_in(text)

    def add(self, run: GridRun, device: str) -> None:
        """Add a run of a grid."""
        try:
            training = training_key(run.run, device) if run.run.trained else None
            evaluation = evaluation_key(run.run, device, training.digest if training else None)
        except NotReadyError as error:
            self.unclear.setdefault(run.run.dataset, str(error))
            return
        self.keys |= {evaluation.digest} | ({training.digest} if training else set())
        self.counting.add(what_counts(evaluation.content, training.content if training else None))
        if training:
            self.counting.add(what_counts(training.content))

    def keeps(self, key: str, record: dict[str, Any]) -> bool:
        """Whether an entry of the store must be kept. `record` is what its record says, unchecked."""
        if key in self.keys:
            return True
        try:
            training = (record.get("run") or {}).get("content")
            return what_counts(record["content"], training) in self.counting and installed(record["content"])
        except (AttributeError, KeyError, TypeError):
            return False


OURS = re.compile(r"|\.(checkpoint(\.damaged)?|history\.csv|log|error\.json|graphs|checked|damaged(-\d+)?)")
"""What follows the key in names of the store that can be removed. A lock is empty and never removed, because another
process may be about to lock it."""


def keys_in(text: bytes) -> set[str]:
    """The keys of an evaluation and of its training in a metrics file."""
    try:
        content = json.loads(text)
        return {str(key) for key in (content["key"], (content["run"] or {}).get("key")) if store.is_key(key)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()


def said(path: Path) -> dict[str, Any]:
    """What the record in a folder says, unchecked; empty if there is none."""
    for name in (RECORD, METRICS):
        try:
            content = read_json(path / name)
        except BadInputError:
            continue
        return content if isinstance(content, dict) else {}
    return {}


def dataset_of(record: dict[str, Any]) -> str | None:
    """The dataset of a run by its record, of this version or of an older one; None if it is not known."""
    try:
        dataset = record.get("dataset") or record["content"]["settings"]["dataset"]
    except (KeyError, TypeError):
        return None
    return dataset if isinstance(dataset, str) else None


def described(path: Path, record: dict[str, Any]) -> str:
    """What a file or folder of the store is."""
    if not path.is_dir():
        return path.suffix.removeprefix(".")
    kind = "evaluation" if "metrics" in record else "training"
    try:
        of = record.get("run") or record
        settings = of["content"].get("settings", {}) if "seed" not in of else of
        names = {name: settings.get(name) for name in ("loss", "seed", "protocol")}
        words = [str(dataset_of(record)), *(f"{name} {value}" for name, value in names.items() if value is not None)]
    except (AttributeError, KeyError, TypeError):
        return "a folder that is no run of this version"
    return f"{kind} on {', '.join(words)}"


def size(path: Path) -> int:
    """The bytes that become free if a file or a folder is removed. Only files without another hard link count."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files if file.stat().st_nlink == 1)


def removable(wanted: Wanted) -> list[tuple[Path, dict[str, Any]]]:
    """The files and folders of the store that nothing names, and what their records say. Raises `BadInputError` if it
    is not known whether one is named."""
    kept: dict[str, bool] = {}
    found = []
    for path in sorted(store.STORE.iterdir()):
        key, ending = path.name[:64], path.name[65:]
        if not store.is_key(key) or not OURS.fullmatch(path.name[64:]) or store.holder(key):
            continue
        record = said(path) if path.is_dir() else {}
        if not ending or key not in kept:
            kept[key] = wanted.keeps(key, record)
        if kept[key] and not ending.startswith("damaged"):
            continue
        dataset = dataset_of(record)
        if not ending and wanted.unclear and (dataset is None or dataset in wanted.unclear):
            why = wanted.unclear.get(dataset or "") or next(iter(wanted.unclear.values()))
            raise BadInputError(f"nothing is removed: it is not known whether a grid means {path}: {why}")
        found.append((path, record))
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.prune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--yes", action="store_true", help="remove what is listed")
    yes = parser.parse_args().yes
    if not store.STORE.is_dir():
        raise BadInputError(f"{store.STORE} is missing: run this in the project's folder, after a run")
    found, freed = removable(Wanted()), 0
    for path, record in found:
        bytes_, days = size(path), (time.time() - path.stat().st_mtime) / 86400
        about = f"{described(path, record)}, {bytes_ / 1e6:,.1f} MB, {days:.0f} days old"
        print(f"{'removed' if yes else 'would remove'} {path}: {about}")
        freed += bytes_
        if yes:
            remove(path)
    ask = "" if yes or not found else ": --yes removes them"
    print(f"{len(found)} files and folders, {freed / 1e6:,.1f} MB{' freed' if yes else ''}{ask}")


if __name__ == "__main__":
    exit_with(main)
