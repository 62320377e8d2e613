"""The project on a pretended GPU (tests/pretended_gpu.py): the CPU's bytes, no mix of devices, no operation that CUDA
would refuse, and the host waits only where tests/host_waits.yaml says."""

import json
import subprocess
import sys
from collections import Counter

import pytest
import yaml

from pipeline.base.config import read_params
from pipeline.networks.published import FILES
from pipeline.training.augmentations import torchvision as augmentations_of_torchvision
from pipeline.training.optimisers import torch as optimisers_of_torch
from pipeline.training.schedules import torch as schedules_of_torch
from tests.conftest import ENVIRONMENT, ROOT

OF_PLAIN_CROPS = ("training/crops.py", "training/resident.py crop:")
"""`crops.plain` stands for the kernel on the pretended GPU, and the kernel waits for nothing."""
EPOCHS = 2
"""Of the whole runs."""
ALLOWED = yaml.safe_load((ROOT / "tests/host_waits.yaml").read_text())


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Every case, walked in one process of its own: name -> what was found."""
    command = [sys.executable, "-m", "tests.pretended_runs", str(tmp_path_factory.mktemp("pretended"))]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def of_metrics(waits):
    """The number of waits in pipeline/metrics, and all others."""
    others = {place: count for place, count in waits.items() if not place.startswith("metrics/")}
    return sum(waits.values()) - sum(others.values()), others


def chosen(walked, *kinds):
    """The cases of some kinds, without their errors, which test_the_same_bytes_as_on_the_cpu shows."""
    return {name: case for name, case in walked.items() if name.startswith(kinds) and "error" not in case}


def test_every_loss_and_backbone_is_walked(walked):
    grids = [read_params(ROOT / "papers" / name / "params.yaml") for name in ("comparison", "proxygml")]
    assert {f"loss {loss}" for grid in grids for loss in grid.losses} <= walked.keys()
    assert {f"network {name}" for name in (*FILES, "small", "timm")} <= walked.keys()


def test_every_optimiser_schedule_and_augmentation_is_walked(walked):
    """Each in steps of its own, the last one after a resume. How often they may wait: the test of steps below."""
    for key, room in (("optimiser", "optimisers"), ("schedule", "schedules"), ("augment", "augmentations")):
        files = {path.stem for path in (ROOT / "pipeline/training" / room).glob("[a-z]*.py")}
        library = {"augment": augmentations_of_torchvision, "optimiser": optimisers_of_torch}.get(
            key, schedules_of_torch
        )
        name = library.__name__.rpartition(".")[2]
        expected = files - {name, "random_resized_crop"} | {f"{name}/{variant}" for variant in library.NAMES}
        assert {f"chosen {key} {name}" for name in expected} == {
            name for name in walked if name.startswith(f"chosen {key}")
        }


def test_optimisers_that_are_left_out_because_they_wait_still_do(walked):
    waiting = chosen(walked, "left out")
    assert len(waiting) == 2
    for name, case in waiting.items():
        assert case["waits"], f"{name}: it could be used now"


def test_the_same_bytes_as_on_the_cpu(walked):
    for name, case in walked.items():
        assert "error" not in case, f"{name}: {case['error']}"
        assert case["apart"] == [], name


def test_a_step_waits_as_often_as_the_list_says(walked):
    wrong = {}
    for name, case in chosen(walked, "loss", "network", "graphs", "chosen").items():
        case["waits"].pop("training/images.py _on_device: copy to the device", None)  # a recipe's first step
        allowed = ALLOWED["step"].get(name.removeprefix("loss "), 0)
        if sum(case["waits"].values()) != allowed:
            wrong[name] = case["waits"], case["lines"]
    assert not wrong


def test_a_run_waits_as_often_as_the_list_says(walked):
    for name, case in chosen(walked, "run, loaded", "run, resident").items():
        metrics, waits = of_metrics(case["waits"])
        waits = {place: count for place, count in waits.items() if not place.startswith(OF_PLAIN_CROPS)}
        expected = Counter(ALLOWED["run"])
        expected.update({place: EPOCHS * count for place, count in ALLOWED["epoch"].items()})
        if "resident" in name:
            expected.update(ALLOWED["resident"])
        assert waits == expected, (name, case["lines"])
        assert metrics <= ALLOWED["searches of a run"], (name, case["waits"])


def test_a_search_waits_at_most_as_often_as_the_list_says(walked):
    searched = chosen(walked, "search")
    assert {name.removeprefix("search ") for name in searched} == ALLOWED["search"].keys()
    for name, case in searched.items():
        metrics, others = of_metrics(case["waits"])
        assert not others and 0 < metrics <= ALLOWED["search"][name.removeprefix("search ")], (name, case["waits"])


PROVOKED = """
import pipeline
import torch
from tests.pretended_gpu import DEVICE, WAITS, Pretend
torch.use_deterministic_algorithms(True)

def fails(message, call):
    try:
        call()
    except RuntimeError as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"nothing raised: {message}")

with Pretend():
    on, off = torch.ones(3, 3, device=DEVICE), torch.ones(3, 3)
    fails("same device", lambda: on + off)
    fails("same device", lambda: torch.mm(off, on))
    fails("same device", lambda: torch.where(off > 0, on, on))
    fails("same device", lambda: off[on.long()])
    fails("deterministic", lambda: on.cumsum(0))
    fails("deterministic", lambda: on.histc())
    fails("deterministic", lambda: on.kthvalue(1))
    maps, backward = torch.ones(1, 1, 4, 4, device=DEVICE), torch.ops.aten.upsample_bilinear2d_backward
    fails("deterministic", lambda: backward(maps, [4, 4], [1, 1, 2, 2], False))
    assert not WAITS, WAITS
    assert torch.equal((on + torch.tensor(1.0)).cpu(), off + 1) and sum(WAITS.values()) == 1
    for call in (
        lambda: on.sum().item(),
        lambda: bool(on.sum() > 0),
        lambda: on.tolist(),
        lambda: on.cpu(),
        lambda: off.to(DEVICE),
        lambda: on[on > 0],
        lambda: on.unique(),
        lambda: on.nonzero(),
        lambda: on[torch.tensor([0, 1])],
    ):
        WAITS.clear()
        call()
        assert WAITS, call.__code__
    WAITS.clear()
    off.to(DEVICE, non_blocking=True)
    on[on > 0] = 1.0
    assert not WAITS, WAITS
"""


def test_the_pretended_gpu_notices_waits_mixes_and_what_is_not_deterministic():
    done = subprocess.run([sys.executable, "-c", PROVOKED], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
