"""The installed packages that compute: those that requirements.lock pins, without those that are known not to change a
result."""

import functools
import importlib.metadata
import re
from pathlib import Path

LOCK = Path(__file__).parents[2] / "requirements.lock"

NOT_COMPUTING = {
    "dvc": "stores files",
    "ruamel-yaml-clib": "reads YAML: settings are in the key",
    "pyyaml": "reads YAML: settings are in the key",
    "pydantic": "checks settings, which are in the key",
    "annotated-types": "checks settings, which are in the key",
    "pyarrow": "reads Parquet: the images are in the key by their hashes",
    "pyfiglet": "draws glyphs: the images are in the key by their hashes",
    "requests": "downloads: the files are in the key by their hashes",
    "urllib3": "downloads: the files are in the key by their hashes",
    "matplotlib": "draws charts",
    "nvidia-ml-py": "reads a GPU's energy",
    "jinja2": "writes pages",
    "tqdm": "shows progress",
    "huggingface-hub": "downloads weights, which is not used here",
    "filelock": "locks files",
    "fsspec": "opens files by address, which is not used here",
    "networkx": "serves torch's compiler, which is not used",
    "triton": "serves torch's compiler, which is not used",
    "sympy": "serves torch's compiler, which is not used",
    "setuptools": "builds packages",
    "typing-extensions": "gives annotations",
    "packaging": "compares version numbers",
    "narwhals": "makes data frames, which are not used",
}
"""Packages that are in no key, together with packages that only they require, and why."""


@functools.cache
def computing(cuda: bool) -> tuple[str, ...]:
    """The names of the packages that compute. The comments in the lock say which package requires which. CUDA's
    libraries are included only for a GPU (`cuda`)."""
    requires: dict[str, set[str]] = {}
    for block in re.split(r"^(?=[a-z0-9])", LOCK.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        name = re.match(r"[\w.-]+", block)[0]  # type: ignore[index]  # by the split above
        for parent in re.findall(r"^    # +(?:via )?(-r requirements\.txt|[\w.-]+)$", block, re.MULTILINE):
            requires.setdefault(parent, set()).add(name)
    found: set[str] = set()
    ahead = list(requires["-r requirements.txt"])
    while ahead:
        name = ahead.pop()
        if name not in found and name.replace(".", "-") not in NOT_COMPUTING:
            found.add(name)
            ahead += requires.get(name, ())
    return tuple(sorted(name for name in found if cuda or not re.match("nvidia-|cuda-", name)))


@functools.cache
def versions(cuda: bool) -> dict[str, str | None]:
    """The installed version of each package that computes; None if it is not installed."""
    return {name: _version(name) for name in computing(cuda)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
