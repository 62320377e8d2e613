"""SHA-256 of files for which nobody has published one.

`data/checksums`, which is committed, pins files and manifests. The first good download or split writes it. Each folder
that a stage writes has a file SHA256SUMS. It holds the hashes of the folder's files and of the files that they were
made from, so that a later stage notices changes: `cd data/splits/cub && sha256sum --check SHA256SUMS`.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

from pipeline.base.files import BadInputError, sha256, write_text

SUMS = "SHA256SUMS"
DATA = Path("data")
CHECKSUMS = DATA / "checksums"
HEAD = """\
# SHA-256 of files, and fingerprints of manifests, that nobody published: pinned by the first good download or split.
# To check files by hand: cd data && sha256sum --check --ignore-missing checksums
"""


def pins() -> dict[str, str]:
    """The content of `data/checksums`: path under `data` -> SHA-256. A path such as `splits/cub/train`, without a
    suffix, has a manifest's fingerprint. Raises `BadInputError` for a line of another form."""
    if not os.path.lexists(CHECKSUMS):
        return {}
    try:
        text = CHECKSUMS.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        raise BadInputError(f"{CHECKSUMS} is a link to nothing, or no text in UTF-8: put it back from git") from None
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    for line in lines:
        if not re.fullmatch(r"[0-9a-f]{64}  \S.*", line):
            raise BadInputError(f"{CHECKSUMS}: the line {line!r} is not a SHA-256, two spaces and a path: fix it")
    return {path: sha256 for sha256, path in (line.split("  ", 1) for line in lines)}


def pin(found: dict[str, str]) -> None:
    """Add the SHA-256 of each path in `found` to `data/checksums`, and print a line for each."""
    if not found:
        return
    CHECKSUMS.parent.mkdir(exist_ok=True)
    with FileLock(CHECKSUMS.with_name(".checksums.lock")):
        known = pins() | found
        write_text(CHECKSUMS, HEAD + "".join(f"{known[path]}  {path}\n" for path in sorted(known)))
    for path, digest in found.items():
        print(f"{path}: no SHA-256 was known; {digest} is now pinned in {CHECKSUMS}: commit that file")


def write_sums(folder: Path, files: Iterable[Path]) -> None:
    """Write the SHA-256 of `files`, which are in `folder` or elsewhere under data, to the folder's SHA256SUMS."""
    lines = (f"{sha256(path)}  {os.path.relpath(path, folder)}\n" for path in files)
    (folder / SUMS).write_text("".join(lines), encoding="utf-8", newline="")


def foreign(folder: Path) -> Path | None:
    """The first file in `folder` that is not what the folder's SHA256SUMS says; None if there is no such file. A stage
    may replace the folder then, because it made all of it: a `files.Foreign`."""
    try:
        sums = read_sums(folder, "")
    except BadInputError:
        return folder
    for path in sorted(folder.iterdir()):
        if path.name == SUMS:
            continue
        if path.is_symlink() or not path.is_file() or sha256(path) != sums.get(path.name):
            return path
    return None


def read_sums(folder: Path, again: str) -> dict[str, str]:
    """The content of `folder`/SHA256SUMS: path relative to the folder -> SHA-256. Raises `BadInputError` if the file is
    missing or broken; `again` says in the message what to run."""
    path = folder / SUMS
    if not path.is_file():
        raise BadInputError(f"{path} is missing: {again}")
    found: dict[str, str] = {}
    for line, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{64})  (.+)", text)
        if not match:
            raise BadInputError(f"{path} line {line} is not a SHA-256, two spaces and a path: {again}")
        found[match[2]] = match[1]
    return found


def check_sum(folder: Path, name: str, sums: dict[str, str], again: str) -> None:
    """Raise `BadInputError` unless the file at `name`, a path relative to `folder`, has the SHA-256 that is in
    `sums`."""
    # Normalised as text, because a folder under data may be a link to another place.
    path = Path(os.path.normpath(folder / name))
    if name not in sums:
        raise BadInputError(f"{folder / SUMS} has no line for {name}: {again}")
    if not path.is_file() or sha256(path) != sums[name]:
        raise BadInputError(f"{path} has changed since {folder / SUMS} was written: {again}")
