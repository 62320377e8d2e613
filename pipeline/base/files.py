"""Errors that a user can fix, modules by name, files that are either whole or absent, and hashes of files."""

import codecs
import errno
import gc
import glob
import hashlib
import importlib
import io
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

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of the system if a disk, a quota or a size limit is full."""
NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Error numbers of the system if a file may not be read or written."""

ROOM_FOR_DVC = 64 * 2**20
"""Bytes that must be free before and after a DVC stage. If the disk has no room for DVC's record of a stage, DVC
truncates dvc.lock, and then no stage runs any more (seen with 3.67.1). Records and small outputs need a tenth of it."""


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
        raise BadInputError(f"there is no file {name}.py in pipeline/{folder.name}: choose one of {', '.join(names)}")
    return folder / f"{name}.py"


def submodule(package: str, name: str) -> ModuleType:
    """The module pipeline.`package`.`name`, such as one of the losses. Raises `BadInputError` for an unknown name."""
    module_file(package, name)
    return importlib.import_module(f"pipeline.{package}.{name}")


def check_room() -> None:
    """Raise `OSError` if DVC runs this stage and the disk has no room for DVC's record of it."""
    if "DVC_STAGE" in os.environ and shutil.disk_usage(".").free < ROOM_FOR_DVC:
        raise OSError(errno.ENOSPC, f"DVC needs {ROOM_FOR_DVC // 2**20} MB", str(Path.cwd()))


IN_ASCII = {"±": "+-", "–": "-", "…": "..."}
"""What is printed instead of our own signs if the terminal cannot show them."""


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """A handler for `codecs.register_error`: ASCII text instead of signs that the encoding of a terminal or pipe lacks,
    and the position to go on from."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(IN_ASCII.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in signs), error.end


codecs.register_error("pipeline.ascii", _in_ascii)


def print_in_any_encoding() -> None:
    """Make `print` work on stdout and stderr in any encoding. Signs that the encoding lacks are replaced. Files are
    UTF-8 whatever the terminal's encoding is."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="pipeline.ascii")


def exit_with(main: Callable[[], None]) -> None:
    """Run a stage's `main` on a terminal of any encoding, and turn errors into exit codes.

    - Bad input: one line on stderr and exit code 2.
    - A full disk, or a file that may not be written: one line on stderr and exit code 1.
    - Ctrl-C: exit code 130.
    - A closed pipe (`| head`): exit code 141.
    - Any other failure: its traceback and exit code 1.
    """
    print_in_any_encoding()
    try:
        check_room()
        main()
        sys.stdout.flush()
        check_room()
    except BadInputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Text that is still in the buffer would fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno in NO_ROOM:
            print(f"error: no room to write ({error}): free some space and run the stage again", file=sys.stderr)
        elif error.errno in NOT_ALLOWED:
            print(f"error: {error}: allow it, and run the stage again", file=sys.stderr)
        else:
            raise
        sys.exit(1)
    finally:
        # Without this, the interpreter's last garbage collections go through all that torch imported: most of a second
        # for every stage.
        gc.freeze()


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


def replaceable(path: Path, mark: str | None) -> None:
    """Raise `BadInputError` unless a folder can replace `path` without a loss of data. That is so if `path` is absent,
    is an empty folder, or is a folder with a file named `mark`, which shows that the stage itself made the folder."""
    if path.is_symlink():
        raise BadInputError(f"{path} is a symbolic link and is not replaced: remove it, or name another folder")
    if path.is_dir() and (not any(path.iterdir()) or (mark and (path / mark).is_file())):
        return
    if path.exists():
        kind = "folder" if path.is_dir() else "file"
        raise BadInputError(f"{path} is a {kind} that this stage did not make and does not replace: name another place")


@contextmanager
def whole(path: Path, mark: str | None = None) -> Iterator[Path]:
    """Yield a temporary sibling of `path`, to which the block writes a file or a folder.

    If the block ends without an error, the sibling is renamed to `path`; otherwise it is removed. `path` therefore
    never holds a partial file or folder. A folder replaces only what `replaceable` allows, by its `mark`. Leftovers of
    killed processes (temporary siblings whose process no longer runs) are removed first.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        process = left.name.removeprefix(f".{path.name}.").split(".")[0]
        if left == temporary or not _runs(process):
            remove(left)
    try:
        yield temporary
        if temporary.is_dir():
            replaceable(path, mark)
            if path.exists():
                # Move the old folder aside first, because no folder can be renamed to one that is not empty.
                aside = path.with_name(f".{path.name}.{os.getpid()}.old.partial")
                path.replace(aside)
                temporary.replace(path)
                remove(aside)
                return
        else:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
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
    except ValueError as error:
        raise BadInputError(f"{path} is not JSON ({error}): remove it and run `dvc repro`") from None


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
