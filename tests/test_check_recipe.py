"""check_recipe passes a sound recipe and catches unsound choices, each by the check meant for it."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline import check_recipe
from pipeline.base.config import read_params
from pipeline.training import augment, optimiser
from tests import GRID

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
RECIPE = read_params(GRID / "params.yaml").recipes["glyphs"]
pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_default_passes(monkeypatch, capsys):
    monkeypatch.chdir(GRID)
    monkeypatch.setattr(sys, "argv", ["check_recipe", "glyphs"])
    with pytest.raises(SystemExit) as ended:
        check_recipe.main()
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0 and [line.split(":")[0] for line in lines] == [
        "ok    schedule",
        "ok    augmentations",
        "ok    the same again",
        "ok    resumed",
    ]


def test_crops_and_a_librarys_augmentations_pass():
    more = [{"name": "colour_jitter", "contrast": 0.5}, {"name": "torchvision/RandomErasing", "p": 0.5}]
    chosen = RECIPE.model_copy(update={"augment": [{"name": "random_resized_crop", "smallest": 0.1}, *more]})
    assert check_recipe.check_augmentations(chosen, 3) == (True, "3, the same for any batch")


@pytest.mark.parametrize("factor", [-0.1, float("nan"), float("inf")])
def test_a_schedule_that_cannot_multiply_rates_is_caught(monkeypatch, factor):
    assert check_recipe.check_schedule(RECIPE) == (True, "from 1 to 0.04")
    late = lambda recipe, steps: lambda epoch, step: factor if epoch == recipe.epochs else 1.0  # noqa: E731
    monkeypatch.setattr(check_recipe, "build_schedule", late)
    assert check_recipe.check_schedule(RECIPE) == (False, f"gives {factor}")


class Forgetful(torch.optim.SGD):
    """An optimiser with a state of its own that no checkpoint keeps."""

    taken = 0

    def step(self, closure=None):
        self.taken += 1
        for group in self.param_groups:
            group["lr"] /= self.taken
        return super().step(closure)


def test_an_optimiser_that_forgets_is_caught_by_resuming(monkeypatch):
    monkeypatch.setattr(optimiser, "chosen", lambda what, name: lambda groups: Forgetful(groups, lr=1.0))
    monkeypatch.setattr(check_recipe, "build_schedule", lambda recipe, steps: lambda epoch, step: 1.0)
    recipe = RECIPE.model_copy(update={"optimiser": {"name": "forgetful"}})
    first = check_recipe.trained(recipe, CPU)
    assert check_recipe.trained(recipe, CPU) == first
    assert check_recipe.trained(recipe, CPU, 3) != first


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda images, draws: images.float(), "torch.float32"),
        (lambda images, draws: images[..., :8], "torch.uint8 (12, 1, 32, 8)"),
        (
            lambda images, draws: images + images.sum().to(torch.uint8) + (draws[:, :1, None, None] * 9).byte(),
            "others in",
        ),
        (lambda images, draws: images.flip(-1), "the same in another epoch"),
    ],
)
def test_augmentations_that_are_none_are_caught(monkeypatch, call, said):
    class Augmentation:
        purpose, draws = "mine", 1

        def __init__(self, size):
            pass

        def __call__(self, images, draws):
            return call(images, draws)

    monkeypatch.setattr(augment, "chosen", lambda what, name: Augmentation)
    well, found = check_recipe.check_augmentations(SimpleNamespace(augment=[{"name": "mine"}], input_size=32), 1)
    assert not well and said in found
