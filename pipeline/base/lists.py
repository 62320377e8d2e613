"""Lists in messages: a message that counts also names what it counts."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.base.files import write_text

SHOWN = 20
"""The most lines of a list in a message."""


def listed(lines: Sequence[str], rest: Path) -> str:
    """The end of a message that names things, one on each line. If there are more than `SHOWN`, the message has the
    first ones, and all are written to the file `rest`, which the message names."""
    more = ""
    if len(lines) > SHOWN:
        write_text(rest, "".join(f"{line}\n" for line in lines))
        more = f"\n  … and {len(lines) - SHOWN:,} more\n{rest} names them all"
    return "".join(f"\n  {line}" for line in lines[:SHOWN]) + more
