"""What is known about a published file. Separate from `fetch`, because training does not need `requests`."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Package(NamedTuple):
    """A wheel of the package index that holds a file: pip's name for the wheel, the wheel's SHA-256, and the file's
    path in the wheel."""

    requirement: str
    sha256: str
    member: str

    def __str__(self) -> str:
        return f"{self.requirement} from the package index"


class File(NamedTuple):
    """A published file. A value that is None was never published.

    - `page`: where a person finds the file.
    - `size`: in bytes.
    - `sha256`: may be only its first digits, as torch.hub puts them into file names.
    - `check`: raises `BadInputError` if the file at a path does not have the right content. It is called before a file
      without a published checksum is pinned.
    - `at_most`: the most bytes that are taken if the size is not known. The largest network of timm has 7.6 GB.
    - `package`: the wheel that holds the file, if the file has no address of its own.
    """

    name: str
    urls: tuple[str, ...]
    page: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    check: Callable[[Path], object] | None = None
    package: Package | None = None
    at_most: int = 8 * 10**9

    @property
    def published(self) -> bool:
        """Whether a checksum of the file was published."""
        return bool(self.sha256 or self.md5)
