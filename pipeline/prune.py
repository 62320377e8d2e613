"""Remove from the store the runs and evaluations that no grid names any more, and the files beside them.

With --dry-run it only says what it would remove. It keeps every run of every grid as the grid is now, the runs that
names under data/runs and data/queries show, and runs that a process is working on. Nothing else in this project removes
a run. DVC's cache may still hold a copy of a removed run.
"""

import argparse
import re
from pathlib import Path

from pipeline.base.config import read_params
from pipeline.base.files import BadInputError, exit_with, remove
from pipeline.runs import store
from pipeline.runs.grid import grid_folder, grid_runs, known_grids
from pipeline.runs.key import NotReadyError
from pipeline.runs.states import keys_of


def named() -> set[str]:
    """The keys of all runs of all grids, and of all runs that names under data/runs and data/queries show."""
    keys: set[str] = set()
    for grid in known_grids():
        device = read_params(grid_folder(grid) / "params.yaml").machine.device
        for run in grid_runs(grid):
            try:
                keys |= set(keys_of(run, device).own)
            except NotReadyError:
                continue  # its data are not there, so the run was not made here
    for folder in (Path("data/runs"), Path("data/queries")):
        for path in folder.glob("**/*.json"):
            keys |= {key} if (key := store.key_of(path)) else set()
    return keys


def size(path: Path) -> int:
    """The bytes that become free if a file or a folder is removed. Only files without another hard link count."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files if file.stat().st_nlink == 1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.prune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be removed, and remove nothing")
    dry = parser.parse_args().dry_run
    if not store.STORE.is_dir():
        raise BadInputError(f"{store.STORE} is missing: run this in the project's folder, after a run")
    kept, freed, count = named(), 0, 0
    for path in sorted(store.STORE.iterdir()):
        key = path.name.split(".")[0]
        if not re.fullmatch("[0-9a-f]{64}", key) or key in kept or store.holder(key):
            continue
        if path.suffix == ".lock":
            continue  # the file is empty and never removed, because another process may be about to lock it
        freed, count = freed + size(path), count + 1
        print(f"{'would remove' if dry else 'removed'} {path}")
        if not dry:
            remove(path)
    print(f"{count} files and folders, {freed / 1e6:,.1f} MB{' would be' if dry else ''} freed; {len(kept)} keys kept")


if __name__ == "__main__":
    exit_with(main)
