"""Errors a user can mend, modules by name, files that are whole or absent, and their hashes."""

import gc
import hashlib
import importlib
import json
import os
import pkgutil
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any


class BadInputError(Exception):
    """Something the user gave is wrong; the message names the file, the key and the mend. Stages exit with code 2."""


def submodule(package: str, name: str) -> ModuleType:
    """The module pipeline.`package`.`name`, such as one of the losses; an unknown name is bad input."""
    folder = Path(__file__).parent / package
    names = sorted(module.name for module in pkgutil.iter_modules([str(folder)]))
    if name not in names:
        raise BadInputError(f"there is no file {name}.py in pipeline/{package}: choose one of {', '.join(names)}")
    return importlib.import_module(f"pipeline.{package}.{name}")


def exit_with(main: Callable[[], None]) -> None:
    """Run a stage's `main`: bad input becomes one line on stderr and exit code 2, any other failure keeps its
    traceback and exits with code 1."""
    try:
        main()
    except BadInputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        # The interpreter's last garbage collections walk all that torch imported: most of a second for every stage.
        gc.freeze()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write a file or a folder to; rename it to `path` when the block ends well
    and remove it when it does not, so that `path` never holds a part of anything."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        if temporary.is_dir():
            # A folder cannot be renamed over a folder with something in it.
            shutil.rmtree(path, ignore_errors=True)
        else:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as a whole file, line ends as given."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinity are refused, for they are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that a stage before this one wrote; a missing or broken one is bad input."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInputError(f"{path} is missing: run `dvc repro`, or the stage that writes it") from None
    except ValueError as error:
        raise BadInputError(f"{path} is not JSON ({error}): remove it and run `dvc repro`") from None


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
