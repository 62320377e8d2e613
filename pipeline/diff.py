"""Show what changed in the runs between two revisions or DVC experiments: means, and the difference paired by seed.

The numbers come from the metrics files that git has for each revision (metrics/runs); without a second revision, from
this folder. For every row whose numbers differ it prints the mean before and after, in percent, and the mean of the
differences by seed with the half-width of its 95 % interval and the p-value of a paired t-test. Both are corrected for
all differences that are printed (Bonferroni), and rows that changed share one spread. `cannot say` does not mean that
nothing changed: beside it stands the difference that the test sees with 80 % probability. If nothing changed, nothing
is printed.
"""

import argparse
import json
import math
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.base.command import exit_with
from pipeline.base.files import BadInputError
from pipeline.runs.record import SCHEMA, MetricsRecord, checked_record
from pipeline.runs.revisions import RUNS, commit_of, files_of_commit, is_metrics
from pipeline.statistics.contrasts import student
from pipeline.statistics.spread import Spread, spreads
from pipeline.tables.columns import HEADLINE
from pipeline.tables.formats import block_lines
from pipeline.tables.model import Block, texts
from pipeline.tables.rows import NO_GPU, SELECTIONS

Numbers = dict[tuple[str, str, str], dict[int, float]]
"""(row as <grid>/<dataset>/<table>/<row>, selection rule, metric) -> seed -> value as a fraction."""

Gpus = dict[str, set[str]]
"""Row -> the GPUs that its runs were made on, or `NO_GPU`."""


def files_of_folder() -> Iterator[tuple[str, bytes]]:
    """The metrics files in this folder: path and content."""
    for path in sorted(Path(RUNS).rglob("*.json")):
        if is_metrics(path.name) and path.is_file():
            yield path.as_posix(), path.read_bytes()


def numbers(files: Iterable[tuple[str, bytes]], where: str) -> tuple[Numbers, Gpus]:
    """The numbers in metrics files, and the GPUs. Files of another schema are skipped, and their number is printed.
    A file that does not prove what it says, or is in another run's place, is named and skipped."""
    found: Numbers = defaultdict(dict)
    gpus: Gpus = defaultdict(set)
    unread = 0
    for name, text in files:
        place = Path(name).relative_to(RUNS)
        seed = re.match(r"\d+", place.name)
        try:
            content = json.loads(text)
            if seed is None or (isinstance(content, dict) and content.get("schema_number") != SCHEMA):
                unread += 1
                continue
            record = checked_record(content, Path(name), MetricsRecord)
            if record.settings["seed"] != int(seed[0]) or record.dataset not in place.parts:
                raise BadInputError(f"{name} is of the seed {record.settings['seed']} on {record.dataset}")
        except (BadInputError, ValueError, RecursionError) as error:
            said = str(error) if isinstance(error, BadInputError) else f"{name} is not JSON ({error})"
            print(f"{where}: skipped: {said}", file=sys.stderr)
            continue
        gpus[place.parent.as_posix()].update(record.all_gpus or [NO_GPU])
        for rule, metrics in record.metrics.items():
            for metric in HEADLINE:
                if isinstance(value := metrics.get(metric), float):
                    found[place.parent.as_posix(), rule, metric][int(seed[0])] = value
    if unread:
        print(f"{where}: {unread} metrics files of another version are skipped", file=sys.stderr)
    return found, gpus


def mixtures(before: Numbers, after: Numbers, old: Gpus, new: Gpus) -> list[str]:
    """Warnings of changed rows whose differences are between GPUs, too, by model, driver and cuDNN."""
    rows = sorted({key[0] for key in before.keys() & after.keys() if before[key] != after[key]})
    return [
        f"{row}: made on {'; '.join(sorted(old[row]))} before and on {'; '.join(sorted(new[row]))} after: the "
        "differences may come from the GPU."
        for row in rows
        if len(old[row] | new[row]) > 1
    ]


def _changed(before: Numbers, after: Numbers, rule: str, metric: str) -> dict[str, list[float]]:
    """The rows that differ -> the differences by seed, in points."""
    rows = [key for key in before if key[1:] == (rule, metric) and key in after and before[key] != after[key]]
    return {
        key[0]: [
            100 * (after[key][seed] - before[key][seed]) for seed in sorted(before[key].keys() & after[key].keys())
        ]
        for key in rows
    }


def _test(values: list[float], spread: Spread | None, tests: int) -> tuple[str, str]:
    """The mean difference with its interval, and what a paired t-test says, both corrected for `tests` tests."""
    if not values:
        return "–", "no common seed"
    mean = statistics.fmean(values)
    if len(values) < 2 or spread is None:
        return f"{mean:+.2f}", "one seed: no test"
    found = student(mean, spread.value / math.sqrt(len(values)), spread.df, tests=tests)
    said = "differs" if found.says(0) != "open" else f"cannot say, sees {found.sees:.2g}"
    return f"{mean:+.2f} ± {found.high - found.value:.2f}", f"{said}, p {found.p:.2f}"


def page(before: Numbers, after: Numbers, old: str, new: str) -> list[str]:
    """The differences in Markdown: a block for each selection rule and metric for which something differs, and then the
    rows that only one of the two revisions has."""
    lines: list[str] = []
    known = {rule for _, rule, _ in [*before, *after]}
    rules = [*SELECTIONS, *sorted(known - SELECTIONS.keys())]
    changed = {(rule, metric): _changed(before, after, rule, metric) for rule in rules for metric in HEADLINE}
    tests = sum(len(values) > 1 for rows in changed.values() for values in rows.values())
    for (rule, metric), rows in changed.items():
        block = []
        for (row, values), spread in zip(rows.items(), spreads([*rows.values()]), strict=True):
            means = [f"{100 * statistics.fmean(of[row, rule, metric].values()):.2f}" for of in (before, after)]
            change, said = _test(values, spread, tests)
            block.append([row, *means, change, str(len(values)), said])
        if block:
            title = SELECTIONS.get(rule, rule.replace("_", " ")).split(":")[0]
            head = ["", old, new, "difference", "n", "paired test"]
            lines += block_lines(Block(f"{HEADLINE[metric]}, {title[0].lower()}{title[1:]}", head, texts(*block)))
    if tests > 1:
        lines += [f"Intervals and p-values are corrected for {tests} tests.", ""]
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
    before, old = numbers(files_of_commit(commit_of(words.before)), words.before)
    files = files_of_commit(commit_of(words.after)) if words.after else files_of_folder()
    after, new = numbers(files, words.after or RUNS)
    lines = page(before, after, words.before, words.after or "here")
    lines += [line for mixture in mixtures(before, after, old, new) for line in (mixture, "")]
    if lines:
        print("\n".join(lines[:-1]))


if __name__ == "__main__":
    exit_with(main)
