"""Measure how long DVC and `pipeline.status` take with all grids chosen: `python -m bench.grid FOLDER`.

It copies the project to FOLDER, which must not exist. It then writes a small file for every output and a dvc.lock with
all of them, as if everything had been run. Finally it prints the seconds, by the clock and of the processor, of five
commands: `dvc repro`, `dvc repro -P` and `dvc status`, which find nothing to do, one small stage, and
`pipeline.status`.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def copied(folder: Path) -> None:
    """Copy all files that git tracks to `folder`, which becomes a separate repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if not name.endswith("dvc.lock"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)


def complete(folder: Path) -> int:
    """Write all outputs and locks in `folder`. Return the number of stages."""
    from dvc.repo import Repo
    from dvc.stage.serialize import to_single_stage_lockfile
    from dvc.utils.serialize import dump_yaml

    os.chdir(folder)
    repo = Repo()
    stages = repo.index.stages
    outputs = {Path(output.fs_path) for stage in stages for output in stage.outs}
    inside = {Path(dep.fs_path) for stage in stages for dep in stage.deps} - outputs
    for path in [*inside, *outputs]:
        if path.exists():
            continue
        # A path without an ending is a folder, unless it is in a folder named code.
        file = path / "file" if not path.suffix and path.parent.name != "code" else path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{path}\n")
    locks: dict[str, dict[str, Any]] = defaultdict(dict)
    with repo.lock:
        for stage in stages:
            stage.save()
            stage.commit()
            locks[str(Path(stage.path).with_name("dvc.lock"))][stage.name] = to_single_stage_lockfile(stage)
    for lock, content in locks.items():
        dump_yaml(lock, {"schema": "2.0", "stages": content})
    return len(stages)


def timed(folder: Path, *command: str) -> str:
    """Run a module's command. Return a text with the seconds that it took."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said = (done.stdout + done.stderr).strip().splitlines()[-1]
    return f"{' '.join(command)}: {wall:.1f} s by the clock, {processor:.1f} s of the processor ({said})"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.grid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the scratch folder to work in")
    folder = parser.parse_args().folder.absolute()
    copied(folder)
    subprocess.run([sys.executable, "-m", "pipeline.choose", "all"], cwd=folder, check=True)
    print(f"{complete(folder)} stages")
    timed(folder, "dvc", "repro", "-P")  # not counted: the first one fills DVC's own cache of file hashes
    for command in (("repro",), ("repro", "-P"), ("status",), ("repro", "-s", "-f", "tabulate")):
        print(timed(folder, "dvc", *command))
    print(timed(folder, "pipeline.status"))


if __name__ == "__main__":
    main()
