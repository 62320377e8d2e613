"""A published dataset as mirrors give it: an archive of another name or kind, with other folders around the files, or
unpacked. The published archive is known by its checksum; everything else is known by its content, which must have
every list and every image. `packed.FORM` in the packed folder says which it was, and nothing of a mirror is pinned."""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.base.files import BadInputError, sha256
from pipeline.data import archives, contents, fetch
from pipeline.data.file import File
from pipeline.data.index import Entry

OTHER = "another form than the published archives: "


def members(raw: Path) -> list[str]:
    """The names of all files in `raw`, in its archives and folders. Nothing of them is read."""
    found: list[str] = []

    def look(member: str) -> bool:
        found.append(member)
        return False

    if raw.is_dir():
        for _ in archives.read(raw, look):
            pass
    return found


def place(raw: Path, published: Sequence[File], lists: Collection[str]) -> Path:
    """Where a dataset is read from: its published archive, or `raw` itself if that archive is absent and the `lists`
    and images are in `raw` in another form."""
    first = raw / published[0].name
    if first.exists():
        return first
    found = members(raw)
    there = {archives.ending(name, lists) for name in found} >= set(lists)
    return raw if there and any(name.lower().endswith(contents.IMAGES) for name in found) else first


def download(raw: Path, published: Sequence[File], lists: Collection[str]) -> None:
    """Fetch the published files into `raw`, unless it holds another form of them. Raises `BadInputError` if they cannot
    be had; the message says which other forms are taken."""
    if place(raw, published, lists) == raw:
        print(f"{raw}: another form than the published archive, so `convert` checks that every list and image is there")
        return
    try:
        fetch.fetch_all(published, raw)
    except BadInputError as error:
        content = f"{', '.join(lists)} and all images"
        raise BadInputError(f"{error}\n{other_forms(raw, content)}") from None


def other_forms(raw: Path, content: str) -> str:
    """The end of a message about missing files: which other forms are taken, and what they must hold."""
    own = ""
    if (raw / "train").is_dir():
        own = f"\n{raw / 'train'} looks like a dataset of your own: it needs another name than {raw.name}"
    return (
        f"A mirror's form will do, too: put it into {raw} under any other name, as {', '.join(archives.ARCHIVES)} or "
        f"unpacked. It must hold {content}, in whatever folders{own}"
    )


def form(raw: Path, mirror: bool, published: Collection[str]) -> str:
    """What `packed.FORM` says: the names of the published files, or what lies in `raw`, with the SHA-256 of files."""
    if not mirror:
        return f"published: {', '.join(name for name in published if (raw / name).exists())}\n"
    paths = [path for path in sorted(raw.iterdir()) if not path.name.startswith(".")]
    named = (f"{path.name} (SHA-256 {sha256(path)})" if path.is_file() else f"{path.name}/" for path in paths)
    return f"{OTHER}{', '.join(named)}\n"


def bytes_of(entries: Collection[Entry]) -> str:
    """A fingerprint of the images' bytes: the SHA-256 of the lines "name,SHA-256", sorted by name."""
    lines = sorted({f"{entry.name},{entry.sha256}\n" for entry in entries})
    return hashlib.sha256("".join(lines).encode()).hexdigest()
