"""The processors that a process may use, by the control groups of containers and clusters."""

import os

import pytest

from pipeline.base import cores
from pipeline.base.machine import Machine
from pipeline.engines.places import places

GROUPS = {
    "version 2, as systemd or SLURM nests them": (
        "0::/slurm/job_7/step_0\n", {"slurm/job_7/step_0/cpu.max": "max 100000", "slurm/job_7/cpu.max": "150000 100000"}
    ),
    "version 2, in a container": ("0::/\n", {"cpu.max": "150000 100000"}),
    "version 2, in a container that is told the host's path": ("0::/docker/ab12\n", {"cpu.max": "150000 100000"}),
    "version 1": (
        "7:memory:/a\n4:cpu,cpuacct:/kubepods/pod1\n",
        {"cpu,cpuacct/kubepods/pod1/cpu.cfs_quota_us": "75000", "cpu,cpuacct/kubepods/pod1/cpu.cfs_period_us": "50000"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GROUPS)
def test_the_limit_of_a_control_group_is_read(tmp_path, monkeypatch, name):
    listed, files = GROUPS[name]
    for path, content in files.items():
        (tmp_path / "mounted" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mounted" / path).write_text(f"{content}\n")
    (tmp_path / "groups").write_text(listed)
    assert cores.limit(tmp_path / "groups", tmp_path / "mounted") == 1.5
    monkeypatch.setattr(cores, "limit", lambda: 1.5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    assert cores.usable() == 1 and len(places(Machine(device="cpu", workers=0), threads=1)) == 1


@pytest.mark.parametrize("listed", ["0::/\n", "4:cpu:/a\n", "", None])
def test_without_a_limit_the_affinity_counts(tmp_path, monkeypatch, listed):
    if listed is not None:
        (tmp_path / "groups").write_text(listed)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cores.limit(tmp_path / "groups", tmp_path) == float("inf")
    monkeypatch.setattr(cores, "limit", lambda: float("inf"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 8})
    assert cores.usable() == 3


def two_sockets(folder):
    """Two sockets of 32 cores with two threads each, as Linux numbers them: 0-63 cores, 64-127 their second threads."""
    for processor in range(128):
        place = folder / f"cpu/cpu{processor}/topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{processor % 64},{processor % 64 + 64}\n")
    for node, listed in enumerate(("0-31,64-95", "32-63,96-127")):
        (folder / f"node/node{node}").mkdir(parents=True)
        (folder / f"node/node{node}/cpulist").write_text(f"{listed}\n")
    return folder


@pytest.mark.parametrize("near", [[0, 0, 0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0, 1, 0], [None] * 8])
def test_runs_on_gpus_get_whole_physical_cores_near_their_gpu(tmp_path, near):
    found = cores.shares(near, range(128), two_sockets(tmp_path))
    assert sorted(processor for share in found for processor in share) == list(range(128)), "each once"
    for share, node in zip(found, near, strict=True):
        assert len(share) == 16
        assert {processor % 64 for processor in share} == {processor for processor in share if processor < 64}
        sockets = {processor % 64 // 32 for processor in share}
        assert sockets == ({node} if node is not None else sockets) and len(sockets) == 1


def test_shares_of_a_few_cores(tmp_path):
    system = two_sockets(tmp_path)
    assert cores.shares([0, 0], [0, 1, 64, 65], system) == [{0, 64}, {1, 65}]
    assert cores.shares([0, 0, 0], [0, 64], system) == [{0}, {0}, {64}], "more runs than processors share some"
    assert cores.shares([1, 1], [0, 1, 64, 65], system) == [{0, 64}, {1, 65}], "no core is near"
    assert cores.shares([None, None], [3, 5], tmp_path / "none") == [{3}, {5}], "nothing is known"
