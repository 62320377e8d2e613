"""The processors that this process may use: those of its affinity, the time that its control group gives it, and where
they are."""

import contextlib
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

GROUPS, MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
SYSTEM = Path("/sys/devices/system")


def _quota(folder: Path) -> float:
    """The limit of one control group, in processors; infinite if there is none. Version 1 has two files, not one."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return float("inf")
    return float("inf") if quota in ("max", "-1") else int(quota) / int(period)


def limit(groups: Path = GROUPS, mounted: Path = MOUNTED) -> float:
    """The processors' time that this process may use, in processors, such as 1.5; infinite without a limit.

    A container (`docker run --cpus 1.5`), SLURM with task/cgroup and Kubernetes set it for a control group, and the
    groups above it count, too. In a container the path that the system names may not be there; then the group that is
    mounted is the container's own.
    """
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return float("inf")
    found = [_quota(mounted)]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = mounted / controllers if controllers else mounted
        folder = top / path.strip("/")
        found += [_quota(place) for place in (folder, *folder.parents) if place.is_relative_to(top)]
    return min(found)


def usable() -> int:
    """The number of processors that can be kept busy: at least 1."""
    return max(1, int(min(len(os.sched_getaffinity(0)), limit())))


def _numbers(text: str) -> set[int]:
    """The numbers of a list as Linux writes it, such as "0-3,64"."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def physical(own: Iterable[int], system: Path | None = None) -> dict[int, list[list[int]]]:
    """The processors `own`, by NUMA node and physical core: node -> cores, each with the processors that are its
    threads. Linux often numbers the first threads of all cores of all sockets before the second threads. Without this
    knowledge each processor counts as a core of node 0."""
    nodes: dict[int, int] = {}
    system = system or SYSTEM
    for folder in sorted(system.glob("node/node[0-9]*")):
        with contextlib.suppress(OSError, ValueError):
            nodes |= dict.fromkeys(_numbers((folder / "cpulist").read_text()), int(folder.name[4:]))
    found: dict[int, dict[int, list[int]]] = {}
    for processor in sorted(own):
        try:
            core = min(_numbers((system / f"cpu/cpu{processor}/topology/thread_siblings_list").read_text()))
        except (OSError, ValueError):
            core = processor
        found.setdefault(nodes.get(processor, 0), {}).setdefault(core, []).append(processor)
    return {node: [cores[core] for core in sorted(cores)] for node, cores in sorted(found.items())}


def divided(cores: list[list[int]], parts: int) -> list[frozenset[int]]:
    """Physical cores divided into equal parts, of whole cores if there are enough of them. If there are more parts than
    processors, some parts share a processor."""
    units = cores if len(cores) >= parts else [[processor] for core in cores for processor in core]
    bounds = [part * len(units) // parts for part in range(parts + 1)]
    chosen = (units[start:end] or units[start : start + 1] for start, end in itertools.pairwise(bounds))
    return [frozenset(processor for unit in part for processor in unit) for part in chosen]


def shares(near: Sequence[int | None], own: Iterable[int], system: Path | None = None) -> list[frozenset[int]]:
    """A share of the processors `own` for each run: of whole physical cores, on the NUMA node that `near` names for it.
    If a node is not known, or has none of the processors, all runs share all of them in order."""
    by_node = physical(own, system)
    if any(node not in by_node for node in near):
        return divided([core for cores in by_node.values() for core in cores], len(near))
    found: dict[int, frozenset[int]] = {}
    for node, cores in by_node.items():
        runs = [run for run, wanted in enumerate(near) if wanted == node]
        if runs:
            found |= dict(zip(runs, divided(cores, len(runs)), strict=True))
    return [found[run] for run in range(len(near))]
