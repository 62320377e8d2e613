"""Stage: the files that the code of stages consists of, with requirements.lock, as lists of hashes, one file a stage.

Runs depend on such a list in place of some twenty files each, whose checking would take DVC seconds.

A file's own imports count, not those inside its functions: what is imported there is imported in some runs only. Those
name it beside the list, as they do their network's file and their loss's.
"""

import argparse
import ast
from pathlib import Path

from pipeline.base.files import exit_with, sha256, whole, write_text

PACKAGE = Path("pipeline")
LOCK = Path("requirements.lock")


def imported(file: Path) -> set[Path]:
    """The files of this package that `file` imports, and those that they import; and `file`."""
    found, ahead = set(), [file]
    while ahead:
        file = ahead.pop()
        if file in found:
            continue
        found.add(file)
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            ahead += [path for name in names if (path := _file(name)) is not None]
    return found


def _file(name: str) -> Path | None:
    """The file of a module of this package; None for other names."""
    if name.split(".")[0] != PACKAGE.name:
        return None
    path = Path(*name.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def files_of(stage: str) -> set[Path]:
    """The files of a stage of this package, or of another of its modules, with what networks and losses share."""
    shared = {PACKAGE / place / "__init__.py" for place in (".", "networks/backbones", "losses")}
    found = PACKAGE / f"{stage}.py"
    found = found if found.is_file() else next(PACKAGE.glob(f"*/{stage}.py"))
    return imported(found) | shared


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.code", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="+", help="such as train and evaluate")
    parser.add_argument("--out", type=Path, required=True, help="folder for the lists, as sha256sum has them")
    arguments = parser.parse_args()
    with whole(arguments.out) as folder:
        for stage in arguments.stages:
            files = [*sorted(files_of(stage)), LOCK]
            write_text(folder / stage, "".join(f"{sha256(file)}  {file}\n" for file in files))


if __name__ == "__main__":
    exit_with(main)
