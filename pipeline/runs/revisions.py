"""The metrics files that git has for a revision or a DVC experiment."""

import subprocess
from collections.abc import Iterator

from pipeline.base.files import BadInputError

RUNS = "metrics/runs"


def git(*words: str, stdin: bytes | None = None) -> bytes:
    """What a command of git prints. Raises `BadInputError` with its message if it fails."""
    try:
        return subprocess.run(["git", *words], input=stdin, capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise BadInputError("git is missing: install it") from None
    except subprocess.CalledProcessError as error:
        raise BadInputError(error.stderr.decode(errors="replace").strip()) from None


def experiments() -> list[tuple[str, str]]:
    """The commit and the name of each experiment of DVC."""
    lines = git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps/").decode().splitlines()
    return [(line.split()[0], line.rsplit("/", 1)[-1]) for line in lines]


def commit_of(revision: str) -> str:
    """The commit of a revision or of an experiment's name. Raises `BadInputError` for an unknown one."""
    named = [commit for commit, name in experiments() if name == revision]
    if named:
        return named[-1]
    try:
        return git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}").decode().strip()
    except BadInputError:
        raise BadInputError(
            f"{revision}: neither a revision of git nor the name of an experiment (`dvc exp list`)"
        ) from None


def is_metrics(name: str) -> bool:
    """Whether a file below metrics/runs is a metrics file, by its name."""
    return name.endswith(".json") and not name.endswith(".error.json")


def files_of_commit(commit: str) -> Iterator[tuple[str, bytes]]:
    """The metrics files of a commit: path and content."""
    entries = [entry.split("\t", 1) for entry in git("ls-tree", "-r", "-z", commit, "--", RUNS).decode().split("\0")]
    entries = [entry for entry in entries if is_metrics(entry[-1])]
    objects = "".join(f"{about.split()[2]}\n" for about, _ in entries)
    text = git("cat-file", "--batch", "--buffer", stdin=objects.encode())
    for _, name in entries:
        head, text = text.split(b"\n", 1)
        size = int(head.split()[2])
        yield name, text[:size]
        text = text[size + 1 :]
