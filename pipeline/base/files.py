"""Errors that a user can fix, modules by name, files that are either whole or absent, and hashes of files."""

import errno
import faulthandler
import glob
import hashlib
import importlib
import itertools
import json
import os
import pkgutil
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of the system if a disk, a quota or a size limit is full."""


class BadInputError(Exception):
    """Something that the user gave is wrong. The message names the file, the key and the fix. Stages exit with code
    2."""


def module_file(package: str, name: str) -> Path:
    """The file of the module pipeline.`package`.`name`, such as one of the losses. Raises `BadInputError` for an
    unknown name."""
    folder = Path(__file__).parent.parent.joinpath(*package.split("."))
    if name.isidentifier() and not name.startswith("_") and (folder / f"{name}.py").is_file():
        return folder / f"{name}.py"
    names = sorted(module.name for module in pkgutil.iter_modules([str(folder)]))
    if name not in names:
        room = f"pipeline/{package.replace('.', '/')}"
        raise BadInputError(f"there is no file {name}.py in {room}: choose one of {', '.join(names)}")
    return folder / f"{name}.py"


def submodule(package: str, name: str) -> ModuleType:
    """The module pipeline.`package`.`name`, such as one of the losses. Raises `BadInputError` for an unknown name, and
    for a file that is not Python."""
    module_file(package, name)
    try:
        return importlib.import_module(f"pipeline.{package}.{name}")
    except SyntaxError as error:
        raise BadInputError(f"{error.filename} line {error.lineno}: {error.msg}: correct this file") from None


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """End the process, with the stack of all threads and exit code 1, if the block takes longer. It is for native code
    that may wait for ever, in which Python can do nothing."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def elsewhere() -> str:
    """A sentence for errors in a folder that is not a project's, such as a notebook's; otherwise empty."""
    if Path("dvc.yaml").is_file() or Path("params.yaml").is_file():
        return ""
    project = Path(__file__).parents[2]
    return f"\n{Path.cwd()} is not the project's folder, and all paths are meant from there: cd {project}"


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with its content. Do nothing if `path` does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _runs(process: str) -> bool:
    """Whether a process with this number runs on this machine."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def free_name(path: Path) -> Path:
    """`path`, or the first of path-2, path-3 and so on that does not exist."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


Foreign = Callable[[Path], Path | None]
"""A function that reads what is at a path, a file or a folder that is not empty. It gives the first file or folder
there that this project did not make, known by content and not by name; None if all of it is ours."""


def all_of_it(path: Path) -> Path | None:
    """A `Foreign` for outputs of which nothing is replaced."""
    return path


def replaceable(path: Path, foreign: Foreign = all_of_it) -> None:
    """Raise `BadInputError` unless `path` can be written without a loss of data: it is absent, an empty folder, or all
    of it is ours."""
    if path.is_symlink():
        raise BadInputError(f"{path} is a symbolic link and is not replaced: remove it, or name another place")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    # Devices and pipes are not read: some never end.
    if (found := foreign(path) if path.is_file() or path.is_dir() else path) is not None:
        kind = "folder" if path.is_dir() else "file"
        because = f", because of {found}" if found != path else ""
        raise BadInputError(
            f"{path} is a {kind} that this stage did not make and does not replace{because}: name another place, or "
            "move it away"
        )


LONGEST_NAME = 180
"""The most bytes of the name of an output. File systems take 255, and temporary names are longer."""

NO_OUTPUTS = (Path(".git"), Path(".dvc"), Path("data/store"))
"""Folders in which nobody may name an output."""


def check_output(option: str, path: Path, foreign: Foreign = all_of_it, is_file: bool = False) -> None:
    """Check, before any work, a place that a command line names for an output. Raises `BadInputError` if it cannot be
    written, if that would replace something that is not ours (see `replaceable`), or if it is inside a folder that
    only this project, git or DVC writes."""
    said = f"{option} {str(path)!r}" if not str(path).isprintable() else f"{option} {path}"
    if "\0" in str(path) or len(os.fsencode(path.name)) > LONGEST_NAME:
        raise BadInputError(f"{said}: a name has at most {LONGEST_NAME} bytes, none of them zero")
    try:
        above = next((folder for folder in path.absolute().parents if os.path.lexists(folder)), Path("/"))
        real = path.parent.resolve() / path.name
    except (OSError, RuntimeError) as error:
        raise BadInputError(f"{said} cannot be written: {error}") from None
    if not above.is_dir():
        raise BadInputError(f"{said}: {above} is not a folder: name another place")
    replaceable(path, foreign)
    if is_file and path.is_dir():
        raise BadInputError(f"{said} is a folder: name a file")
    for folder in NO_OUTPUTS:
        if real.is_relative_to(folder.resolve()):
            raise BadInputError(f"{said} is inside {folder}, where nothing else may be: name another place")


def check_apart(**outputs: Path | None) -> None:
    """Check, before any work, the places that a command line names for several outputs: option -> place, if it names
    one. Raises `BadInputError` if two are the same, or if one is inside the other."""
    real = [
        (f"--{option.replace('_', '-')}", path, path.parent.resolve() / path.name)
        for option, path in outputs.items()
        if path
    ]
    for (option, path, place), (other, _, above) in itertools.permutations(real, 2):
        if place.is_relative_to(above):
            where = "is also" if place == above else "is inside"
            raise BadInputError(f"{option} {path} {where} {other}: name another place")


def _sibling(path: Path, process: str, old: str = "") -> Path:
    """The temporary sibling of `path` to which a process writes, or with ".old" moves what was there. The last digits
    of the name are a hash of the others, so that nothing of a person's has such a name by chance."""
    name = f".{path.name}.{process}{old}"
    return path.with_name(f"{name}.{hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}.partial")


@contextmanager
def whole(path: Path, foreign: Foreign = all_of_it) -> Iterator[Path]:
    """Yield a temporary sibling of `path`, to which the block writes a file or a folder.

    If the block ends without an error, the sibling is renamed to `path`; otherwise it is removed. `path` therefore
    never holds a partial file or folder. A folder replaces only what is `replaceable`, which is checked before and
    after the block; a file replaces any file. Leftovers of killed processes (temporary siblings whose process no
    longer runs) are removed first.
    """
    if path.is_dir():
        replaceable(path, foreign)
    process = str(os.getpid())
    temporary = _sibling(path, process)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        writer, *rest = left.name.removeprefix(f".{path.name}.").split(".")
        ours = left == _sibling(path, writer, ".old" if rest[:1] == ["old"] else "")
        if ours and (left == temporary or not _runs(writer)):
            remove(left)
    try:
        yield temporary
        if temporary.is_dir():
            replaceable(path, foreign)
            if path.exists():
                # Move the old folder aside first, because no folder can be renamed to one that is not empty.
                aside = _sibling(path, process, ".old")
                path.replace(aside)
                temporary.replace(path)
                remove(aside)
                return
        else:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, FileNotFoundError) and error.filename == str(temporary):  # such as in /proc
            raise BadInputError(f"{path}: no file can be made in {path.parent}: name another place") from None
        if isinstance(error, OSError) and error.errno in NO_ROOM and error.filename is None:
            error.filename = str(path)
        remove(temporary)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8 as a whole file. Line ends are kept as they are."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON. Raises `ValueError` for NaN and infinity, because they are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that an earlier stage wrote. Raises `BadInputError` if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInputError(f"{path} is missing: run `dvc repro`, or the stage that writes it") from None
    except OSError as error:
        raise BadInputError(f"{path} cannot be read ({error.strerror}): move it away and run `dvc repro`") from None
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path} is not JSON ({error}): move it away and run `dvc repro`") from None


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
