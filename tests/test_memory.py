"""A GPU's memory: counted before a run starts, divided among the runs that share it."""

from pathlib import Path

import pytest
import torch

from pipeline.base.config import read_params
from pipeline.training.memory import OVERHEAD, Memory, saved_bytes, step_bytes

PAPERS = Path(__file__).parent.parent / "papers"
GPU = torch.device("cuda")
GB = 10**9


@pytest.mark.parametrize(
    ("grid", "recipe", "expected"),
    [("proxy_an", "cub", 7.0), ("proxygml", "cub", 1.4), ("proxy_an", "deit_small_distilled_cub", 5.8)],
)
def test_what_a_step_saves_for_its_backward_pass(grid, recipe, expected):
    """ResNet-50 in batches of 81, BN-Inception of 32, DeiT-S of 81."""
    recipe = read_params(PAPERS / grid / "params.yaml").recipes[recipe]
    saved = saved_bytes(recipe)
    assert saved / GB == pytest.approx(expected, abs=0.1)
    assert step_bytes(recipe, 25 * 10**6) == int(1.25 * saved) + 400 * 10**6
    half = recipe.model_copy(update={"precision": "bfloat16"})
    assert step_bytes(half, 0) == int(1.25 * (saved // 2))


def card(monkeypatch, free, total):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * GB, total * GB))


def test_runs_that_share_a_gpu_get_equal_parts_whichever_starts_first(monkeypatch):
    card(monkeypatch, 78, 80)
    alone, pair = Memory(GPU), [Memory(GPU, 2), Memory(GPU, 2)]
    assert alone.left == 76 * GB - OVERHEAD and [part.left for part in pair] == [38 * GB - OVERHEAD] * 2
    card(monkeypatch, 10, 80)  # another program has the rest
    assert Memory(GPU).left == 10 * GB - OVERHEAD
    assert Memory(torch.device("cpu")).left == 0


def test_cars_stay_on_a_card_of_40_gb_beside_the_largest_step(monkeypatch):
    """8 GB of images, and ResNet-50's step and graph."""
    card(monkeypatch, 39, 40)
    memory = Memory(GPU)
    assert memory.take(9 * GB) and memory.take(8 * GB) and memory.take(9 * GB)
    assert not memory.take(60 * GB) and memory.left > 0, "what does not fit takes nothing"
