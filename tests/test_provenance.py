"""What a result says of its making."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from pipeline.base.provenance import Meter, Spent, provenance


def test_secrets_of_the_environment_stay_out(monkeypatch):
    for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY", "PIPELINE_MIRRORS"):
        monkeypatch.setenv(name, "http://me:hidden@127.0.0.1:9")
    written = json.dumps(provenance(torch.device("cpu"), Spent(1.0, None)))
    assert "hidden" not in written and "127.0.0.1" not in written


@pytest.fixture
def counter(monkeypatch):
    """NVIDIA's library with one GPU, whose counter the test sets, in millijoules."""

    class NVMLError(Exception):
        pass

    library, state = ModuleType("pynvml"), SimpleNamespace(millijoules=5_000)

    def total(handle):
        assert handle == "GPU-ab"
        if state.millijoules is None:
            raise NVMLError("Not Supported")
        return state.millijoules

    library.NVMLError, library.nvmlInit = NVMLError, lambda: None
    library.nvmlDeviceGetHandleByUUID, library.nvmlDeviceGetTotalEnergyConsumption = lambda uuid: uuid, total
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="ab"))
    return state


def test_the_energy_of_a_gpu_is_what_its_counter_gained_in_all_processes(counter):
    meter = Meter(torch.device("cuda"))
    counter.millijoules += 7_500
    first = meter.read()
    assert first.gpu_joules == 7.5 and (first + first).gpu_joules == 15
    counter.millijoules = None  # as of a part of a GPU
    assert meter.read().gpu_joules is None and (first + meter.read()).gpu_joules is None
    assert Meter(torch.device("cpu")).read().gpu_joules is None
