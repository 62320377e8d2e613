"""Run in a project's folder: stages of the pipeline, in processes forked after the imports, two chains at a time.

    python run_stages.py CHAINS RESULTS

CHAINS is a JSON file {chain: [[command, expected, kill], ...]}: the words of a command line without `python -m
pipeline.`, the exit code that it should have (else the chain ends there), and null, or the optimiser's step at which it
is killed (SIGKILL). RESULTS, a folder, gets a JSON file a chain: [{"command", "code", "output", "seconds"}, ...].
"""

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from pipeline.base.command import exit_with


def kill_at_step(last: int) -> None:
    """Kill this process before a step, once the checkpoint that is written beside the steps is whole."""
    import torch

    from pipeline.training import checkpoint

    count, writers = 0, []
    step = torch.optim.Adam.step  # AdamW's, too
    save = checkpoint.Writer.save

    def saving(self, state):
        writers.append(self)
        save(self, state)

    def counted(self, *arguments):
        nonlocal count
        count += 1
        if count == last:
            for writer in writers:
                writer.wait()
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *arguments)

    checkpoint.Writer.save = saving
    torch.optim.Adam.step = counted


def run(words: list[str], kill: int | None, log: Path) -> int:
    """Run one stage in a process of its own and return how it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = words
        if kill:
            kill_at_step(kill)
        exit_with(importlib.import_module(f"pipeline.{words[0]}").main)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


chains = json.loads(Path(sys.argv[1]).read_text())
results = Path(sys.argv[2])
results.mkdir()
stages = {words[0] for commands in chains.values() for words, _, _ in commands}
later = {"train": ["pipeline.networks.backbones", "pipeline.losses"], "evaluate": ["pipeline.networks.backbones"]}
for stage in stages:
    importlib.import_module(f"pipeline.{stage}")
# What a stage imports when it is needed, imported once here instead of in every process.
for package in {package for stage in stages for package in later.get(stage, [])}:
    folder = Path(package.replace(".", "/"))
    for module in sorted(path.stem for path in folder.glob("[!_]*.py")):
        importlib.import_module(f"{package}.{module}")
if "train" in stages:
    importlib.import_module("pipeline.work.job")
    importlib.import_module("torch._dynamo")  # by the first optimiser
if "evaluate" in stages:
    importlib.import_module("faiss")
    importlib.import_module("sklearn.cluster")
running = 0
for name, commands in chains.items():
    if running == 2:
        os.wait()
        running -= 1
    running += 1
    if os.fork():
        continue
    found = []
    for words, expected, kill in commands:
        start = time.monotonic()
        code = run(words, kill, results / f"{name}.log")
        seconds = round(time.monotonic() - start, 1)
        output = (results / f"{name}.log").read_text()
        found.append({"command": words, "code": code, "output": output, "seconds": seconds})
        if code != expected:
            break
    (results / f"{name}.json").write_text(json.dumps(found))
    os._exit(0)
for _ in range(running):
    os.wait()
