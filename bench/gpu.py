"""Check and measure a GPU in one command: does it give the CPU's numbers, does it give the same bits twice, how fast is
it, and how much memory does it take.

    python -m bench.gpu [--out FILE.json] [--only SECTION ...] [--tiny]

Prints a table and writes a JSON file. It takes at most ten minutes. Each section is a separate process with its own
time-out; sections run one after another, and lines measured before a time-out, or
before the command is ended, are kept. Nothing is downloaded:
look-alike photographs are made at the start. If the model (docs/gpu.md, for an H100) predicts a figure, a difference of
more than 2 times is marked. The exit code is 1 if something differs that should not, or if a section did not end.
`--tiny` runs everything on small images in minutes, also without a GPU; its speeds mean nothing.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.base.command import exit_with
from pipeline.base.files import BadInputError, write_json

SECTIONS = {
    "machine": 20,
    "same bits": 80,
    "as on the CPU": 70,
    "graphs": 50,
    "resume": 80,
    "speed": 90,
    "epoch": 70,
    "loop": 50,
    "evaluation": 25,
    "memory": 10,
    "losses": 10,
    "shared": 35,
}
"""The sections, those first that matter most, and the seconds that each may take. What a section leaves over, the next
ones may take, too. Together they fit into `TOTAL`."""

TOTAL = 590
"""The seconds that all sections together may take."""


def _child(section: str, tiny: bool, folder: str, lines: str) -> None:
    """The main function of a section's process. It writes each line as soon as it is measured."""
    os.setsid()  # so that the processes that it starts end with it
    from bench import gpu_checks, gpu_runs, gpu_speed
    from bench.gpu_parts import FULL, TINY

    with Path(lines).open("a", encoding="utf-8") as file:
        for line in (gpu_checks.RUN | gpu_runs.RUN | gpu_speed.RUN)[section](TINY if tiny else FULL, Path(folder)):
            file.write(json.dumps(line._asdict()) + "\n")
            file.flush()


def run_section(
    section: str, seconds: float, tiny: bool, folder: Path, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """The lines of a section, how it ended, and the seconds that it took. `keep` gets them every second, too, for when
    this process is ended from outside."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.gpu_checks", "bench.gpu_runs", "bench.gpu_speed"])
    lines, start = folder / f"{section}.jsonl", time.monotonic()
    lines.touch()

    def found(ended: str) -> dict[str, Any]:
        whole = [line for line in lines.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        return {"lines": [*map(json.loads, whole)], "ended": ended, "seconds": round(time.monotonic() - start, 1)}

    process = context.Process(target=_child, args=(section, tiny, str(folder), str(lines)))
    process.start()
    try:
        while process.is_alive() and (left := start + seconds - time.monotonic()) > 0:
            process.join(min(1.0, left))
            keep(found("cut off"))
        alive = process.is_alive()
    finally:
        if process.is_alive():
            assert process.pid is not None
            # Kill its process group, or only the process if it had no time to make a group.
            (os.killpg if os.getpgid(process.pid) == process.pid else os.kill)(process.pid, signal.SIGKILL)
        process.join()
    if alive:
        return found(f"stopped after {seconds:.0f} s")
    return found("whole" if process.exitcode == 0 else f"failed with exit code {process.exitcode}")


def missed(line: dict[str, Any]) -> bool:
    """Whether a figure differs by more than 2 times from what the model expects."""
    if not line["expected"]:
        return False
    low, high = line["expected"]
    return not low / 2 <= line["value"] <= 2 * high


def cells(section: str, line: dict[str, Any]) -> list[str]:
    """A line of the table."""
    value = line["value"]
    shown = f"{value:,.4g}" if isinstance(value, float) else str(value)
    expected = "–".join(f"{bound:,.0f}" for bound in line["expected"]) if line["expected"] else ""
    verdict = {True: "ok", False: "**WRONG**", None: ""}[line["good"]]
    return [section, line["name"], f"{shown} {line['unit']}".strip(), expected, "**missed**" * missed(line) or verdict]


def table(found: dict[str, Any]) -> str:
    """All sections as a Markdown table."""
    rows = [["section", "what", "measured", "model", ""]]
    for section, result in found.items():
        rows += [cells(section, line) for line in result["lines"]]
        rows.append([section, "", result["ended"], "", f"{result['seconds']} s"])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * 5 + "|", *lines[1:]])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the JSON file to write (default gpu.json)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--tiny", action="store_true", help="use small images and few steps")
    parser.add_argument("--seconds", type=float, default=TOTAL, help="for all sections together (default %(default)s)")
    words = parser.parse_args()
    if not words.out.absolute().parent.is_dir():
        raise BadInputError(f"--out {words.out}: its folder does not exist: make it first")
    found: dict[str, Any] = {}
    start = until = time.monotonic()
    # Whoever ends it from outside, such as a scheduler, gets the table of what was measured.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with tempfile.TemporaryDirectory() as name:
            for section in SECTIONS:
                if section in words.only:
                    print(f"{section} …", file=sys.stderr, flush=True)
                    until += SECTIONS[section] * (4 if words.tiny else 1)  # a busy processor is slow
                    left = max(1.0, min(until, start + words.seconds) - time.monotonic())

                    def keep(result: dict[str, Any], section: str = section) -> None:
                        found[section] = result
                        content = {"date": time.strftime("%Y-%m-%d"), "tiny": words.tiny, "sections": found}
                        write_json(words.out, content)

                    keep(run_section(section, left, words.tiny, Path(name), keep))
    finally:
        print(table(found), flush=True)
    wrong = any(line["good"] is False for result in found.values() for line in result["lines"])
    sys.exit(int(wrong or any(result["ended"] != "whole" for result in found.values())))


if __name__ == "__main__":
    exit_with(main)
