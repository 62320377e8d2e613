"""Check results without training: of a bundle, of a grid here, or of a commit; and make some of their runs again.

Of a bundle (`python -m pipeline.bundle`) the files have to be those that it describes. Of all three, each metrics file
has to be what its key and its SHA-256 say, and tables and intervals are made again from the metrics files and have to
be the same text; links have to lead somewhere. Of a grid, the command also says how many runs this clone has made, how
many have the very bytes that the commit names, and on which processors both were made.

With --remake N, N of the runs, drawn at random, are trained and evaluated once more and compared, file by file; --run
names one. What the store lacks of them stays there. With the same key every byte has to be the same. On another kind of
device the difference of metrics is said beside the spread over seeds. The exit code is 1 if anything is wrong.
"""

import argparse
import sys
from collections import Counter
from contextlib import ExitStack, chdir
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.command import exit_with
from pipeline.base.config import read_params
from pipeline.base.files import BadInputError
from pipeline.bundles import again, checked, opened
from pipeline.runs import made, store
from pipeline.runs.grid import GridRun, grid_folder, grid_runs, known_grids
from pipeline.runs.key import NotReadyError
from pipeline.runs.record import METRICS, MetricsRecord, read_record
from pipeline.runs.revisions import commit_of, files_of_commit
from pipeline.runs.states import keys_of

SAME, OTHER_BYTES, OTHER_RUN = "the same bytes", "other bytes", "another run"
NOT_COMMITTED, NOT_MADE = "not in the commit", "not made"


@dataclass(frozen=True)
class Compared:
    """How a run of the store compares with a commit: one of the states above; and the machines that made it there, by
    git's note, and here, empty if they are not known or if it was not made here."""

    run: GridRun
    state: str
    there: str = ""
    here: str = ""


def compared(run: GridRun, device: str, committed: dict[str, bytes]) -> Compared:
    """A run of the store, compared with the metrics files of a commit: path -> content."""
    try:
        keys = keys_of(run, device).own
    except NotReadyError:
        return Compared(run, NOT_MADE)
    if not all(map(store.check, keys)):
        return Compared(run, NOT_MADE)
    path = store.folder(keys[-1]) / METRICS
    record = read_record(path, MetricsRecord)
    there, here = (again.machine_of(notes) for notes in (made.committed(run, record), made.here(record)))
    text = committed.get(run.metrics.as_posix())
    if text is None:
        return Compared(run, NOT_COMMITTED, "", here)
    if text == path.read_bytes():
        return Compared(run, SAME, there, here)
    # A file in git that is damaged, or of another version, names another run, too.
    return Compared(run, OTHER_BYTES if f'"key": "{keys[-1]}"'.encode() in text else OTHER_RUN, there, here)


def summary(grid: str, commit: str, found: list[Compared]) -> list[str]:
    """The lines that say what was found."""
    counts = Counter(one.state for one in found)
    here = [one for one in found if one.here]
    machines = [f"{again.named(one.here for one in here)} here"] if here else []
    if here and counts[SAME]:
        machines.append(f"{again.named(one.there for one in found if one.state == SAME)} there")
    lines = [
        f"{grid}: {len(here)} of {len(found)} runs were made here, {counts[SAME]} of {len(found)} have the bytes that "
        f"commit {commit[:7]} names" + (f" ({', '.join(machines)})" if machines else "")
    ]
    for state, fix in (
        (OTHER_BYTES, "the same settings, code and data gave something else"),
        (OTHER_RUN, "their settings, code, data or packages are not those of the commit"),
        (NOT_COMMITTED, "the commit has no metrics file of them"),
        (NOT_MADE, "make them with `python -m pipeline.run_grid`"),
    ):
        if names := [str(one.run.place) for one in found if one.state == state]:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"{counts[state]} {state}: {', '.join(names[:3])}{more}: {fix}")
    return lines


def check_store(grid: str, revision: str) -> bool:
    """Print how the runs of the store compare with a commit. Returns whether any has other bytes under the same key."""
    machine = read_params(grid_folder(grid) / "params.yaml").machine
    commit = commit_of(revision)
    committed = dict(files_of_commit(commit))
    found = [compared(run, machine.device, committed) for run in grid_runs(grid)]
    print("\n".join(summary(grid, commit, found)))
    return any(one.state == OTHER_BYTES for one in found)


def check(what: str) -> tuple[list[str], list[again.Known]]:
    """Print what can be checked of a bundle, a grid or a commit without training. Returns the problems, which are
    printed, too, and the runs that could be made again."""
    with ExitStack() as stack:
        hashes, problems, queries = None, list[str](), None
        if what.endswith(".zip"):
            folder, hashes, problems = stack.enter_context(opened.bundle(Path(what)))
            print(f"{what}: {len(hashes)} files, {len(problems)} of them not as its description says")
            stack.enter_context(chdir(folder))
            grids = checked.grids_here()
        elif what in known_grids():
            grids = [what]
        else:
            queries = Path.cwd()
            stack.enter_context(chdir(stack.enter_context(opened.revision(commit_of(what)))))
            grids = checked.grids_here()
        known = []
        for grid in grids:
            found = checked.check_grid(grid, hashes, queries)
            print("\n".join(found.lines))
            problems += found.problems
            known += again.known_runs(grid)
    if not grids:
        raise BadInputError(f"{what} has no metrics of any grid: there is nothing to check")
    for problem in problems:
        print(f"wrong: {problem}")
    return problems, known


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", help="a bundle, such as default.zip; a grid: default, or a folder of papers/; a commit")
    parser.add_argument("--revision", help="of a grid: the commit or experiment to compare with; HEAD if not given")
    parser.add_argument("--remake", type=int, metavar="N", help="make N runs once more and compare all bytes")
    parser.add_argument("--run", metavar="ROW/SEED", help="make this run once more")
    words = parser.parse_args()
    if words.remake is not None and words.remake < 1:
        raise BadInputError(f"--remake is {words.remake}: give 1 or more")
    is_grid = not words.what.endswith(".zip") and words.what in known_grids()
    if words.revision and not is_grid:
        raise BadInputError("--revision: name a grid to compare it with a commit")
    wrong = is_grid and check_store(words.what, words.revision or "HEAD")
    problems, known = check(words.what)
    if words.remake or words.run:
        machine = read_params(Path("params.yaml")).machine
        runs = again.chosen(known, words.remake, words.run)
        made_again = [again.make_again(run, machine) for run in runs]
        print("\n".join(again.summary(runs, made_again)))
        wrong = wrong or any(of.differ or of.other for of in made_again)
    if wrong or problems:
        sys.exit(1)


if __name__ == "__main__":
    exit_with(main)
