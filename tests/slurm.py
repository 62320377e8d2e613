"""A real SLURM of three nodes, each with two GPUs that are none, on this machine: everything it starts it stops.

    with cluster(folder) as slurm: ...     # slurm.environment is what clients need to find it

Wants root and Debian's slurmctld, slurmd, slurm-client and munge, whose own daemons need not run.
"""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.hold import until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")

CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
KillWait=10
MessageTimeout=60
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""


def lacks() -> str:
    """Why there can be no cluster here; empty where there can."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        return f"{', '.join(missing)} missing: apt-get install slurmctld slurmd slurm-client munge"
    return "" if os.geteuid() == 0 else "SLURM's daemons want root"


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for of in sockets:
            of.bind(("127.0.0.1", 0))
        return [of.getsockname()[1] for of in sockets]


def cancel_all(environment: dict[str, str]) -> None:
    """End all jobs, and wait until they are gone."""

    def left() -> bool:
        asked = subprocess.run(["squeue", "--noheader"], env=environment, capture_output=True, text=True)
        return bool(asked.stdout.strip())

    for options in (["--full", "--signal=KILL"], []):
        subprocess.run(["scancel", *options, "--user=root"], env=environment, capture_output=True)
    until(lambda: not left(), 30, "jobs are left")


class Cluster:
    """The daemons of a cluster whose files are in `folder`. A node is told from the others by its name and port."""

    NODES = ("n1", "n2", "n3")

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen] = {}
        for place in (folder, folder / "state", *(folder / f"spool-{node}" for node in self.NODES)):
            place.mkdir(parents=True, mode=0o755)
        self.make_key("munge")
        for number in (0, 1):
            os.mknod(folder / f"gpu{number}", 0o666 | 0o020000, os.makedev(1, 3))
        host = socket.gethostname().split(".")[0]
        ports = free_ports(1 + len(self.NODES))
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=1000 Gres=gpu:2"
            for node, port in zip(self.NODES, ports[1:], strict=True)
        )
        (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, port=ports[0], nodes=nodes, folder=folder))
        (folder / "gres.conf").write_text(f"NodeName={','.join(self.NODES)} Name=gpu File={folder}/gpu[0-1]\n")

    def make_key(self, name: str) -> None:
        """Make a key of munge."""
        (self.folder / f"{name}.key").write_bytes(os.urandom(1024))
        (self.folder / f"{name}.key").chmod(0o400)

    def start(self, name: str, key: str = "munge") -> None:
        """Start munged with one of its keys, slurmctld, or a node."""
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        munge = [f"--{option}={self.folder}/{key}.{file}" for option, file in files.items()]
        special = {"munged": ["munged", "--force", "--foreground", *munge], "slurmctld": ["slurmctld", "-D"]}
        self.daemons[name if key == "munge" else key] = subprocess.Popen(
            special.get(name, ["slurmd", "-D", "-N", name]),
            cwd=self.folder,  # where they leave core dumps
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if name == "munged":
            until((self.folder / f"{key}.socket").exists, 20, "munged does not start")

    def stop(self, name: str) -> None:
        """Stop a daemon. A node's tasks go on."""
        daemon = self.daemons.pop(name)
        daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    @contextmanager
    def another_key(self) -> Iterator[None]:
        """In the block clients have another key of munge than the daemons, which read their settings before."""
        settings = self.folder / "slurm.conf"
        before = settings.read_text()
        self.make_key("other")
        self.start("munged", "other")
        settings.write_text(before.replace("/munge.socket", "/other.socket"))
        yield
        settings.write_text(before)
        self.stop("other")

    @contextmanager
    def full_spools(self) -> Iterator[None]:
        """In the block no node has room for a task's script."""
        with ExitStack() as stack:
            for node in self.NODES:
                spool = self.folder / f"spool-{node}"
                subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", spool], check=True)
                stack.callback(subprocess.run, ["umount", spool], check=True)
                (spool / "full").write_bytes(bytes(4096))
            yield

    def kill(self, node: str) -> None:
        """Kill a node with everything that runs on it, as a power cut would."""
        self.daemons.pop(node).kill()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                own = f"SLURMD_NODENAME={node}\0" in (process / "environ").read_text(errors="replace")
                opened = {str(file.readlink()) for file in (process / "fd").iterdir()}
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if own or str(self.folder / f"{node}.log") in opened:
                os.kill(int(process.name), signal.SIGKILL)

    def print_logs(self) -> None:
        """What the daemons wrote last, for a test that has failed."""
        for log in sorted(self.folder.glob("*.log")):
            print(f"== {log.name}", *log.read_text(errors="replace").splitlines()[-60:], sep="\n")

    def ask(self, *command: str) -> str:
        """The output of a client of the cluster."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout.strip()

    def is_up(self) -> bool:
        """Whether all nodes can take tasks."""
        return set(self.ask("sinfo", "--noheader", "--format=%T").split()) == {"idle"}


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster whose files lie in `folder`, which must not exist."""
    made = Cluster(folder)
    try:
        for name in ("munged", "slurmctld", *made.NODES):
            made.start(name)
        until(made.is_up, 60, f"no node is up: see {folder}/*.log")
        yield made
    finally:
        if "slurmctld" in made.daemons:
            cancel_all(made.environment)
        for name in reversed(list(made.daemons)):
            made.stop(name)
