"""Run in a project's folder: start a training 20 times, kill each (SIGKILL) at a random moment, let the last finish.

    python kill_training.py SEED ARGUMENT...

Moments are counted in steps and in writes, not in seconds, so that a busy machine changes nothing: one kill in two
comes after a step, the others while a file is written, half of it done, or whole but not renamed yet. Processes are
forked after the imports. Prints where each kill came.
"""

import os
import random
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
import torch._dynamo  # the first optimiser imports it, in each process

import pipeline.work.job  # noqa: F401, train imports it when it has read its command line
from pipeline import train
from pipeline.training import checkpoint


def die(where: str) -> None:
    os.write(1, f"killed {where}\n".encode())  # at once, because another thread may print
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after_steps(count: int) -> None:
    step = torch.optim.Adam.step  # AdamW's, too

    def counted(self, *arguments):
        nonlocal count
        count -= 1
        if count < 0:
            die("after a step")
        return step(self, *arguments)

    torch.optim.Adam.step = counted


def kill_half_way_through_a_write(writes: int) -> None:
    whole = checkpoint.whole

    @contextmanager
    def cut(path):
        nonlocal writes
        writes -= 1
        with whole(path) as temporary:
            yield temporary
            if writes < 0:
                os.truncate(temporary, temporary.stat().st_size // 2)
                die("half way through a write")

    checkpoint.whole = cut


def kill_before_a_rename(writes: int) -> None:
    replace = Path.replace

    def never(self, target):
        nonlocal writes
        writes -= 1
        if writes < 0:
            die("before a rename")
        return replace(self, target)

    Path.replace = never


generator = random.Random(int(sys.argv.pop(1)))
for turn in range(21):
    steps, writes = generator.randint(0, 80), generator.randint(0, 1)
    kill_writing = generator.choice([kill_half_way_through_a_write, kill_before_a_rename])
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == (0 if turn == 20 else -signal.SIGKILL), f"turn {turn} ended with {status}"
        continue
    if turn < 20:
        if turn % 2:
            kill_after_steps(steps)
        else:
            kill_writing(writes)
    train.main()
    os._exit(0)
