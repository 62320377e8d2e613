"""SHA-256 of what nobody has published one for: pinned by the first good download or split, in a committed file."""

import re
from pathlib import Path

from filelock import FileLock

from pipeline.base.files import BadInputError, write_text

DATA = Path("data")
CHECKSUMS = DATA / "checksums"
HEAD = """\
# SHA-256 of files, and fingerprints of manifests, that nobody published: pinned by the first good download or split.
# To check files by hand: cd data && sha256sum --check --ignore-missing checksums
"""


def pins() -> dict[str, str]:
    """What `data/checksums` holds: SHA-256 by path under `data`; `splits/cub/train` is a manifest's fingerprint."""
    if not CHECKSUMS.exists():
        return {}
    lines = [line for line in CHECKSUMS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    for line in lines:
        if not re.fullmatch(r"[0-9a-f]{64}  \S.*", line):
            raise BadInputError(f"{CHECKSUMS}: the line {line!r} is not a SHA-256, two spaces and a path: fix it")
    return {path: sha256 for sha256, path in (line.split("  ", 1) for line in lines)}


def pin(found: dict[str, str]) -> None:
    """Add the SHA-256 of each path in `found` to `data/checksums` and say so."""
    if not found:
        return
    CHECKSUMS.parent.mkdir(exist_ok=True)
    with FileLock(CHECKSUMS.with_name(".checksums.lock")):
        known = pins() | found
        write_text(CHECKSUMS, HEAD + "".join(f"{known[path]}  {path}\n" for path in sorted(known)))
    for path, sha256 in found.items():
        print(f"{path}: no SHA-256 was known; {sha256} is now pinned in {CHECKSUMS}: commit that file")
