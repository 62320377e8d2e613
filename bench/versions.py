"""Try the project with other versions of Python and packages: `python -m bench.versions FOLDER [NAME ...]`.

For each set of versions it makes an environment in FOLDER with uv, clones the last commit there, runs `doctor`, the
stages of the embedded dataset and all losses of the default with seed 0, and compares them with the committed runs:
are the weights the same bytes, are the metrics the same numbers? Then it runs some fast tests. It prints a table in
Markdown (docs/versions.md), and removes each environment when it has been tried. An environment takes 6 GB.

Needs uv, and the versions of Python by the names python3.12 and python3.13. Takes five minutes of one core a set.
"""

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

RUNS = Path("metrics/runs/default/glyphs/glyphs")
WEIGHTS = ("best_test_epoch.pt", "last_epoch.pt")

TESTS = ["losses", "optimiser", "batches", "config", "retrieval", "pytorch_metric_learning", "decoding"]
"""Fast files that reach every package that computes."""

LOCKED = ["--require-hashes", "-r", "requirements.lock"]
SETS: dict[str, tuple[str, list[str] | dict[str, str]]] = {
    "3.11": ("3.11", LOCKED),
    "3.12": ("3.12", LOCKED),
    "3.13": ("3.13", LOCKED),
    "torch-next": ("3.11", {"torch": "2.15.0", "torchvision": "0.29.2"}),
    "torch-2.11": ("3.12", {"torch": "2.11.0", "torchvision": "0.26.0"}),
    "newest": (
        "3.13",
        {"torch": "2.15.0", "torchvision": "0.29.2", "numpy": "2.5.5", "scipy": "1.18.1", "pillow": "13.0.0"},
    ),
}
"""Name -> version of Python, and what is installed: the lock, or requirements.txt with these versions."""


def call(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder. Its output and errors are one text, which is also appended to FOLDER/../log."""
    words: dict[str, Any] = {"cwd": folder, "env": os.environ | environment, "text": True, "encoding": "utf-8"}
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **words
    )
    with folder.with_name("log").open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n{done.stdout}\nexit code {done.returncode}\n")
    return done


def installed(clone: Path, python: str, wanted: list[str] | dict[str, str]) -> str:
    """Make the environment `clone`/.venv. Returns what went wrong, or an empty text."""
    pip = ["uv", "pip", "install", "--quiet", "--python", ".venv"]
    if isinstance(wanted, dict):
        given = [line.split("==")[0] for line in (clone / "requirements.txt").read_text().splitlines() if "==" in line]
        unknown = wanted.keys() - set(given)
        assert not unknown, f"requirements.txt does not have {unknown}"
        (clone / ".versions").write_text("\n".join(f"{name}=={version}" for name, version in wanted.items()))
        wanted = ["-r", "requirements.txt", "--override", ".versions"]
    for command in (["uv", "venv", "--quiet", "--python", python], pip + wanted):
        if (done := call(clone, *command)).returncode:
            return done.stdout.strip().splitlines()[-1]
    tests = (clone / "tests/requirements.lock").read_text().splitlines()
    pinned = [line.split()[0] for line in tests if line.startswith(("pytest", "hypothesis==", "execnet", "pyyaml=="))]
    call(clone, *pip, *pinned)
    return ""


def numbers(content: dict[str, Any]) -> dict[str, Any]:
    return {"metrics": content["metrics"], "history": content["history"]}


def compared(clone: Path) -> tuple[str, str, str]:
    """How weights, queries.npz and numbers of the runs in a clone compare with those that are committed."""
    weights = queries = same = count = 0
    largest = 0.0
    for path in sorted((ROOT / RUNS).glob("*/0.json")):
        ours = json.loads(path.read_text())
        theirs = json.loads((clone / path.relative_to(ROOT)).read_text())
        if not ours["run"]:  # raw pixels
            continue
        count += 1
        weights += all(ours["run"]["files"][name] == theirs["run"]["files"][name] for name in WEIGHTS)
        queries += ours["files"]["queries.npz"] == theirs["files"]["queries.npz"]
        same += numbers(ours) == numbers(theirs)
        recalls = [content["metrics"]["last_epoch"]["recall@1"] for content in (ours, theirs)]
        largest = max(largest, abs(recalls[0] - recalls[1]))
    difference = "the same" if same == count else f"{same} of {count} the same; Recall@1 by up to {100 * largest:.2f}"
    return f"{weights} of {count} the same bytes", f"{queries} of {count} the same bytes", difference


def tried(folder: Path, name: str) -> list[str]:
    """The cells of a set's row of the table."""
    python, wanted = SETS[name]
    clone = folder / name / "clone"
    clone.parent.mkdir(parents=True)
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    packages = "the lock" if isinstance(wanted, list) else ", ".join(f"{name} {of}" for name, of in wanted.items())
    problem = installed(clone, f"python{python}", wanted)
    if problem:
        return [python, packages, f"not installable: {problem}", "", "", ""]
    path = {"PATH": f"{clone}/.venv/bin:{os.environ['PATH']}"}
    for stage in ("download", "convert", "split"):
        call(clone, "python", "-m", f"pipeline.{stage}", "glyphs", **path)
    made = call(clone, "python", "-m", "pipeline.run_grid", "default", "glyphs", "--seed", "0", **path)
    cells = compared(clone) if not made.returncode else (f"failed: {made.stdout.strip().splitlines()[-1]}", "", "")
    tests = call(clone, "python", "-m", "pytest", "-n0", "-q", *(f"tests/test_{test}.py" for test in TESTS), **path)
    shutil.rmtree(clone)
    failed = [line.split(" - ")[0] for line in tests.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return [python, packages, *cells, "; ".join(failed) or ("all pass" if not tests.returncode else "not run")]


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.versions", description=__doc__)
    parser.add_argument("folder", type=Path, help="where environments and clones are made; it must not exist")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(SETS)}; all if not given")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    print("| Python | packages | weights | queries.npz | numbers | fast tests |\n|---|---|---|---|---|---|", flush=True)
    for name in arguments.names or SETS:
        print("|", " | ".join(tried(arguments.folder.resolve(), name)), "|", flush=True)


if __name__ == "__main__":
    main()
