"""A real Ray of three raylets on this machine: a head, and two nodes with a GPU each that is none. It is a process of
its own, so that what it starts ends with it, whatever becomes of the tests.

    with cluster(folder) as ray: ...     # ray.address; ray.up() gives the nodes, ray.kill(node) ends one

Each node has a folder, named by NODE_FOLDER in the environment of what runs there.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MEMORY = 80 * 2**20
"""Bytes of each node's object store, the least that Ray takes."""


def lacks() -> str:
    """Why there can be no cluster here; empty where there can."""
    return "" if importlib.util.find_spec("ray") else "ray missing: make ray"


class Ray:
    def __init__(self, process: subprocess.Popen, folder: Path):
        self.process, self.folder = process, folder
        self.nodes: list[Path] = []
        self.address = self.answer()

    def answer(self) -> str:
        line = self.process.stdout.readline()
        assert line, f"the cluster has ended: see {self.folder}/log"
        return json.loads(line)

    def ask(self, *words: str) -> str:
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def up(self, count: int = 2) -> list[Path]:
        """Start nodes until there are so many; gives their folders."""
        while len(self.nodes) < count:
            self.nodes.append(Path(self.ask("add")))
        return [*self.nodes]

    def kill(self, node: Path) -> None:
        """End a node, with all that runs there, as a machine ends that loses its power."""
        self.nodes.remove(node)
        self.ask("kill", str(node))
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"NODE_FOLDER={node}".encode() in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGKILL)


@contextmanager
def cluster(folder: Path) -> Iterator[Ray]:
    """Start a head and stop all that was started; nodes' folders lie in `folder`."""
    folder.mkdir(parents=True)
    # Ray's sockets lie below, and the names of sockets are short.
    place = tempfile.mkdtemp(prefix="r", dir="/tmp")
    environment = os.environ | {"RAY_TMPDIR": place, "RAY_USAGE_STATS_ENABLED": "0"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield Ray(process, folder)
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            assert process.wait(60) == 0, (folder / "log").read_text()
        finally:
            if process.poll() is None:
                process.kill()
            shutil.rmtree(place)


def serve(folder: Path) -> None:
    """Do what standard input asks for, until it ends; then end all."""
    from ray.cluster_utils import Cluster

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(text: str) -> None:
        answers.write(json.dumps(text) + "\n")
        answers.flush()

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY}
    started = Cluster(initialize_head=True, head_node_args=head)
    nodes: dict[str, object] = {}
    try:
        answer(started.address)
        for line in sys.stdin:
            match json.loads(line):
                case ["add"]:
                    node = folder / f"node{len(list(folder.glob('node*')))}"
                    node.mkdir()
                    nodes[str(node)] = started.add_node(
                        num_cpus=1, num_gpus=1, object_store_memory=MEMORY, env_vars={"NODE_FOLDER": str(node)}
                    )
                    answer(str(node))
                case ["kill", node]:
                    started.remove_node(nodes.pop(node), allow_graceful=False)
                    answer("killed")
                case ["kill head"]:
                    started.head_node.kill_gcs_server()
                    answer("killed")
    finally:
        started.shutdown()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
