"""Show what changed in the runs between two revisions or DVC experiments: means, and the difference paired by seed.

The numbers come from the metrics files that git has for each revision (metrics/runs); without a second revision, from
this folder. For every row whose numbers differ it prints the mean before and after, in percent, and the mean of the
differences by seed with the half-width of its 95 % t-interval. `p` is the p-value of a paired two-sided t-test,
corrected by Holm's method for all differences in one block. If nothing changed, nothing is printed.
"""

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from pipeline.base.files import BadInputError, exit_with
from pipeline.runs.record import MetricsRecord
from pipeline.tables.formats import HEADLINE
from pipeline.tables.pages import padded
from pipeline.tables.ranking import holm, paired
from pipeline.tables.rows import SELECTIONS, Cell

RUNS = "metrics/runs"
SIGNIFICANT = 0.05

Numbers = dict[tuple[str, str, str], dict[int, float]]
"""(row as <grid>/<dataset>/<table>/<row>, selection rule, metric) -> seed -> value as a fraction."""


def _git(*words: str, stdin: bytes | None = None) -> bytes:
    try:
        return subprocess.run(["git", *words], input=stdin, capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise BadInputError("git is missing: install it") from None
    except subprocess.CalledProcessError as error:
        raise BadInputError(error.stderr.decode(errors="replace").strip()) from None


def commit_of(revision: str) -> str:
    """The commit of a revision or of an experiment's name. Raises `BadInputError` for an unknown one."""
    experiments = _git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps/").decode().splitlines()
    named = [line.split()[0] for line in experiments if line.rsplit("/", 1)[-1] == revision]
    if named:
        return named[-1]
    try:
        return _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}").decode().strip()
    except BadInputError:
        raise BadInputError(
            f"{revision}: neither a revision of git nor the name of an experiment (`dvc exp list`)"
        ) from None


def _is_metrics(name: str) -> bool:
    return name.endswith(".json") and not name.endswith(".error.json")


def files_of_commit(commit: str) -> Iterator[tuple[str, bytes]]:
    """The metrics files of a commit: path and content."""
    entries = [entry.split("\t", 1) for entry in _git("ls-tree", "-r", "-z", commit, "--", RUNS).decode().split("\0")]
    entries = [entry for entry in entries if _is_metrics(entry[-1])]
    objects = "".join(f"{about.split()[2]}\n" for about, _ in entries)
    text = _git("cat-file", "--batch", "--buffer", stdin=objects.encode())
    for _, name in entries:
        head, text = text.split(b"\n", 1)
        size = int(head.split()[2])
        yield name, text[:size]
        text = text[size + 1 :]


def files_of_folder() -> Iterator[tuple[str, bytes]]:
    """The metrics files in this folder: path and content."""
    for path in sorted(Path(RUNS).rglob("*.json")):
        if _is_metrics(path.name):
            yield path.as_posix(), path.read_bytes()


def numbers(files: Iterable[tuple[str, bytes]], where: str) -> Numbers:
    """The numbers in metrics files. Files of another schema are skipped, and their number is printed."""
    found: Numbers = defaultdict(dict)
    unread = 0
    for name, text in files:
        try:
            record = MetricsRecord.model_validate_json(text)
        except ValidationError:
            unread += 1
            continue
        place = Path(name).relative_to(RUNS)
        seed = re.match(r"\d+", place.name)
        if seed is None:
            unread += 1
            continue
        for rule, metrics in record.metrics.items():
            for metric in HEADLINE:
                if isinstance(value := metrics.get(metric), float):
                    found[place.parent.as_posix(), rule, metric][int(seed[0])] = value
    if unread:
        print(f"{where}: {unread} metrics files of another version are skipped", file=sys.stderr)
    return found


def _differences(before: Numbers, after: Numbers, rule: str, metric: str) -> list[list[str]]:
    """The table's lines, one for each row that differs."""
    rows = [key for key in before if key[1:] == (rule, metric) and key in after and before[key] != after[key]]
    seeds = {key: sorted(before[key].keys() & after[key].keys()) for key in rows}
    tested = [key for key in rows if len(seeds[key]) > 1]
    pairs = {key: tuple([of[key][seed] for seed in seeds[key]] for of in (before, after)) for key in rows}
    p = dict(zip(tested, holm([paired(*pairs[key]) for key in tested]), strict=True))
    lines = []
    for key in rows:
        old, new = (Cell(list(of[key].values()), [], len(of[key])) for of in (before, after))
        change = Cell([b - a for a, b in zip(*pairs[key], strict=True)], [], len(seeds[key]))
        if key in p:
            word = "more than chance" if p[key] < SIGNIFICANT else "within chance"
            test = f"{word}, p {p[key]:.3f}"
        else:
            test = "no common seed" if not seeds[key] else "one seed: no test"
        means = [f"{100 * of.mean:.2f}" for of in (old, new)]
        lines.append([key[0], *means, change.text("±", "+", none="–"), str(len(seeds[key])), test])
    return lines


def page(before: Numbers, after: Numbers, old: str, new: str) -> list[str]:
    """The differences in Markdown: a block for each selection rule and metric for which something differs, and then the
    rows that only one of the two revisions has."""
    lines: list[str] = []
    known = {rule for _, rule, _ in [*before, *after]}
    for rule in [*SELECTIONS, *sorted(known - SELECTIONS.keys())]:
        for metric, name in HEADLINE.items():
            if block := _differences(before, after, rule, metric):
                title = SELECTIONS.get(rule, rule.replace("_", " ")).split(":")[0]
                lines += [f"**{name}, {title[0].lower()}{title[1:]}.**", ""]
                lines += padded([["", old, new, "difference", "n", "paired test"], *block])
    for where, has, lacks in ((old, before, after), (new, after, before)):
        alone = sorted({row for row, _, _ in has} - {row for row, _, _ in lacks})
        if alone:
            lines += [f"Only in {where}:", "", *(f"- {row}" for row in alone), ""]
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.diff", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", nargs="?", default="HEAD", help="a revision or an experiment; HEAD if not given")
    parser.add_argument("after", nargs="?", help="another revision or experiment; this folder if not given")
    words = parser.parse_args()
    before = numbers(files_of_commit(commit_of(words.before)), words.before)
    files = files_of_commit(commit_of(words.after)) if words.after else files_of_folder()
    after = numbers(files, words.after or RUNS)
    lines = page(before, after, words.before, words.after or "this folder")
    if lines:
        print("\n".join(lines[:-1]))


if __name__ == "__main__":
    exit_with(main)
