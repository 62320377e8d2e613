"""The server process from which runs are forked. It has imported torch once and has never used a GPU."""

import functools
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any, TypeVar

from pipeline.base.files import BadInputError

STOPPING = {signal.SIGTERM, signal.SIGINT}

Result = TypeVar("Result")


@functools.cache
def server() -> ForkServerContext:
    """The context whose processes are forked from the server. The first call starts the server."""
    context = multiprocessing.get_context("forkserver")
    # PyTorch imports torch._dynamo when the first optimiser is made, which takes more than a second in every run.
    context.set_forkserver_preload(["pipeline.work.job", "torch._dynamo"])
    # The server and its processes start with these signals blocked: see `_stop_once` in engines/local.py. The tracker
    # is started first, because its start unblocks them.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _answer(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        connection.send(function(*arguments))
    except BadInputError as error:
        connection.send(error)


def in_server(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a module's function in a process of the server and return its result, so that this process need not import
    torch. Function, arguments and result are pickled. Raises the `BadInputError` that the function raises, and
    `RuntimeError` if its process fails in another way, which it then prints."""
    context = server()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        answer: Result | BadInputError = ours.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__} failed: its error is above") from None
    process.join()
    if isinstance(answer, BadInputError):
        raise answer
    return answer
