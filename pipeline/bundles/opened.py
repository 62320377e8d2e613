"""A bundle, or the results of a commit, unpacked into a folder of its own to be checked.

A bundle may come from anybody. Members with names that lead out of the folder, links, encrypted members and absurd
sizes are refused before anything is written, and nothing of it is executed. Weights are hashed and not unpacked.
"""

import hashlib
import io
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote

from pipeline.base.files import BadInputError, read_json
from pipeline.bundles.contents import METADATA, SETTINGS
from pipeline.data.archives import GROWTH_LIMIT, MEMBER_LIMIT, MOST_MEMBERS
from pipeline.runs.revisions import git

SETTINGS_LIMIT = 1 << 20
"""The most bytes of a file of settings. The largest here has 12,000."""
WEIGHTS = "data/runs/"


@contextmanager
def bundle(path: Path) -> Iterator[tuple[Path, dict[str, str], list[str]]]:
    """Unpack a bundle and yield the folder, which is removed afterwards, the SHA-256 of each file by its name, and
    what is wrong with them by the bundle's own description. Raises `BadInputError` for what is no bundle, is damaged,
    or would lead out of the folder."""
    if not path.is_file():
        raise BadInputError(f"{path} is missing, or no file: name a bundle, a grid or a commit")
    with TemporaryDirectory(prefix="bundle-") as name:
        folder = Path(name)
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
                _check(path, members)
                _room(path, folder, members)
                hashes = {member.filename: _unpack(archive, member, folder) for member in members}
        except BadInputError:
            raise
        # zipfile raises many kinds of errors for archives that are damaged or made to do harm.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadInputError(f"{path} is no bundle, or damaged ({reason}): get it again") from None
        if METADATA not in hashes:
            raise BadInputError(f"{path} has no {METADATA}: name an archive that `python -m pipeline.bundle` wrote")
        hashes.pop(METADATA)
        yield folder, hashes, _differ(_described(folder / METADATA), hashes)


def _check(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raise `BadInputError` unless all members are files of reasonable sizes with names inside the folder."""
    if len(members) > MOST_MEMBERS:
        raise BadInputError(f"{path} has {len(members):,} members, more than the limit of {MOST_MEMBERS:,}")
    seen: set[str] = set()
    left = MEMBER_LIMIT + GROWTH_LIMIT * path.stat().st_size
    for member in members:
        name, parts = member.filename, PurePosixPath(member.filename).parts
        plain = "/".join(parts) == name and name.isprintable() and not {"\\", ":"} & {*name}
        # With a folder .git of its own a bundle could tell git what to run.
        plain = plain and not any(part.startswith(".") for part in parts)
        if not plain or name.startswith("/") or not parts:
            raise BadInputError(f"{path}: the member {name!r} leads out of its folder, is hidden, or has no plain name")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG) or member.flag_bits & 1:
            raise BadInputError(f"{path}: the member {name!r} is a link, a device or encrypted")
        if name in seen:
            raise BadInputError(f"{path} has the member {name!r} twice")
        seen.add(name)
        left -= member.file_size
        settings = parts[-1] in SETTINGS or parts[-1] == METADATA
        most = SETTINGS_LIMIT if parts[-1] in SETTINGS else MEMBER_LIMIT // 16 if settings else MEMBER_LIMIT
        if (member.file_size > most and not name.startswith(WEIGHTS)) or left < 0:
            raise BadInputError(f"{path}: {name!r} has {member.file_size:,} bytes, more than any file of a bundle")


def _room(path: Path, folder: Path, members: list[zipfile.ZipInfo]) -> None:
    needed = sum(member.file_size for member in members if not member.filename.startswith(WEIGHTS))
    if needed > shutil.disk_usage(folder).free:
        raise BadInputError(f"{path} needs {needed / 1e9:.1f} GB in {folder.parent}: free some space")


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> str:
    """Write a member below the folder, if it is not of the weights, and return its SHA-256. zipfile reads no more bytes
    than the size that was checked, and compares the member's CRC."""
    found = hashlib.sha256()
    target = io.BytesIO() if member.filename.startswith(WEIGHTS) else None
    place = folder / member.filename
    if target is None:
        place.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, place.open("xb") if target is None else target as file:
        while piece := source.read(1 << 20):
            found.update(piece)
            if target is None:
                file.write(piece)
    return found.hexdigest()


def _described(path: Path) -> dict[str, str]:
    """File -> SHA-256, as the description says. Raises `BadInputError` if it does not say them."""
    content = read_json(path)
    graph: Any = content.get("@graph") if isinstance(content, dict) else None
    if not isinstance(graph, list) or not all(isinstance(entity, dict) for entity in graph):
        raise BadInputError(f"{path.name} is no description of a bundle: it has no list @graph")
    files = [entity for entity in graph if entity.get("@type") == "File"]
    if not all(isinstance(entity.get(name), str) for entity in files for name in ("@id", "sha256")):
        raise BadInputError(f"{path.name} is no description of a bundle: a File lacks its @id or sha256")
    described = {unquote(entity["@id"]): entity["sha256"] for entity in files}
    if len(described) < len(files):
        raise BadInputError(f"{path.name} is no description of a bundle: it names a File twice")
    return described


def _differ(described: dict[str, str], hashes: dict[str, str]) -> list[str]:
    problems = [f"{name} is not in the archive" for name in described.keys() - hashes.keys()]
    problems += [f"{name} is in the archive, and {METADATA} does not name it" for name in hashes.keys() - described]
    changed = [name for name in described.keys() & hashes.keys() if described[name] != hashes[name]]
    return sorted(problems + [f"{name} was changed: it has another SHA-256 than {METADATA} says" for name in changed])


@contextmanager
def revision(commit: str) -> Iterator[Path]:
    """Unpack the results and settings of a commit into a folder, yield it, and remove it afterwards."""
    names = git("ls-tree", "--name-only", "-z", commit).decode().split("\0")
    wanted = [name for name in ("metrics", "papers", "params.yaml") if name in names]
    if "metrics" not in wanted:
        raise BadInputError(f"the commit {commit[:7]} has no metrics: there is nothing to check")
    with TemporaryDirectory(prefix="revision-") as name:
        with tarfile.open(fileobj=io.BytesIO(git("archive", commit, "--", *wanted))) as archive:
            files = [member for member in archive if member.isfile()]
            archive.extractall(name, files, filter="data")
        yield Path(name)
