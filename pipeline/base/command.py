"""How a command begins and ends: its streams, its exit codes, and the room that DVC needs."""

import codecs
import errno
import gc
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.base.files import NO_ROOM, BadInputError, elsewhere
from pipeline.base.machine import check_variables

NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Error numbers of the system if a file may not be read or written."""
WRONG_KIND = {
    errno.EISDIR: "is a folder where a file should be: move it away",
    errno.ENOTDIR: "cannot be read or written, because a file is where a folder should be: move that file away",
    errno.EEXIST: "is a file where a folder should be: move it away",
    errno.ENAMETOOLONG: "is too long a name",
    errno.ELOOP: "is a link that leads in a circle: remove it",
}
"""Error numbers of the system that tell of something else at a path than should be there -> what is said of the path.
These are bad input."""

ROOM_FOR_DVC = 64 * 2**20
"""Bytes that must be free before and after a DVC stage. If the disk has no room for DVC's record of a stage, DVC
truncates dvc.lock, and then no stage runs any more (seen with 3.67.1). Records and small outputs need a tenth of it."""


def check_room() -> None:
    """Raise `OSError` if DVC runs this stage and the disk has no room for DVC's record of it."""
    if "DVC_STAGE" in os.environ and shutil.disk_usage(".").free < ROOM_FOR_DVC:
        raise OSError(errno.ENOSPC, f"DVC needs {ROOM_FOR_DVC // 2**20} MB", str(Path.cwd()))


def check_words(words: Sequence[str]) -> None:
    """Raise `BadInputError` for an empty word of a command line. It would count as one that was not given."""
    for place, word in enumerate(words):
        if not word or re.fullmatch("--[a-z-]+=", word):
            after = f" after {words[place - 1]}" if place and not word else f" of {word}" if word else ""
            raise BadInputError(f"the value{after} is empty, such as a variable that is not set: give one")


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
    """Make `print` work on stdout and stderr in any encoding, and if they are closed. Signs that the encoding lacks are
    replaced. Files are UTF-8 whatever the terminal's encoding is."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                # Otherwise the next file that is opened would get this number, and children would print into it.
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, Path(os.devnull).open("r" if name == "stdin" else "w"))  # noqa: SIM115 - for ever
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="pipeline.ascii")


def _say(text: str) -> None:
    """Print a last message on stderr, if that can still be written."""
    with suppress(OSError):
        print(text, file=sys.stderr)


def _give_up_unwritable() -> None:
    """Drop what stdout and stderr cannot take, such as on a full disk. The interpreter would try again when it ends,
    and change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def exit_with(main: Callable[[], None]) -> None:
    """Run a stage's `main` on a terminal of any encoding, and turn errors into exit codes.

    - Bad input, also a folder where a file should be and the reverse: one line on stderr and exit code 2.
    - NaN or infinity in what is computed, such as a loss that diverges (`FloatingPointError`): one line on stderr and
      exit code 1.
    - A full disk, or a file that may not be written: one line on stderr and exit code 1.
    - Ctrl-C: exit code 130.
    - A closed pipe (`| head`): exit code 141.
    - Any other failure: its traceback and exit code 1.
    """
    print_in_any_encoding()
    try:
        check_variables()
        check_words(sys.argv[1:])
        check_room()
        main()
        sys.stdout.flush()
        check_room()
    except BadInputError as error:
        hint = elsewhere()
        _say(f"error: {error}{'' if hint in str(error) else hint}")
        sys.exit(2)
    except KeyboardInterrupt:
        _say("stopped by Ctrl-C")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except FloatingPointError as error:
        _say(f"error: {error}")
        sys.exit(1)
    except OSError as error:
        if error.errno in WRONG_KIND and error.filename is not None:
            _say(f"error: {error.filename} {WRONG_KIND[error.errno]}")
            sys.exit(2)
        if error.errno in NO_ROOM:
            _say(f"error: no room to write ({error}): free some space and run the stage again")
        elif error.errno in NOT_ALLOWED:
            _say(f"error: {error}: allow it, and run the stage again")
        else:
            raise
        sys.exit(1)
    finally:
        _give_up_unwritable()
        # Without this, the interpreter's last garbage collections go through all that torch imported: most of a second
        # for every stage.
        gc.freeze()
