"""Stage: the hashes of the files that a stage's code consists of, and of requirements.lock, in one file.

Hundreds of runs depend on it in place of some twenty files each, whose checking takes DVC half a minute.

Files of pipeline/backbones, losses and datasets that are chosen by name are not among them: a run names its own.
"""

import argparse
import ast
from pathlib import Path

from pipeline.files import exit_with, sha256, write_text

PACKAGE = Path("pipeline")
LOCK = Path("requirements.lock")


def imported(file: Path) -> set[Path]:
    """The files of this package that `file` imports, anywhere in it, and those that they import; and `file`."""
    found, ahead = set(), [file]
    while ahead:
        file = ahead.pop()
        if file in found:
            continue
        found.add(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
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
    """The files of a stage of this package."""
    subpackages = {PACKAGE / name / "__init__.py" for name in ("backbones", "losses")}
    return imported(PACKAGE / f"{stage}.py") | subpackages | {PACKAGE / "__init__.py"}


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.code", description=__doc__)
    parser.add_argument("stage", help="such as train")
    parser.add_argument("--out", type=Path, required=True, help="file for the hashes, as sha256sum has them")
    arguments = parser.parse_args()
    hashes = "".join(f"{sha256(file)}  {file}\n" for file in [*sorted(files_of(arguments.stage)), LOCK])
    write_text(arguments.out, hashes)


if __name__ == "__main__":
    exit_with(main)
