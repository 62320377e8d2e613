"""The optimiser against PyTorch 1.2's formula in plain arithmetic, and its state in a checkpoint."""

import io
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.base.config import read_params
from pipeline.training.optimiser import build_optimiser, set_learning_rates, take_step

RECIPE = read_params(Path(__file__).parent.parent / "papers/proxygml/params.yaml").recipes["cub"]
STEPS = 100
RESTING = range(30, 60)
"""The steps that the backbone takes no part in."""


def parts(dtype=torch.float64):
    """A network with a backbone, a loss, and their parameters by name."""
    torch.manual_seed(0)
    network, criterion = nn.Module(), nn.Module()
    network.backbone, network.embedding = nn.Linear(4, 3), nn.Linear(3, 2)
    criterion.proxies = nn.Parameter(torch.randn(5, 2))
    network, criterion = network.to(dtype), criterion.to(dtype)
    return network, criterion, dict(network.named_parameters()) | dict(criterion.named_parameters())


def give_gradients(named, step):
    """Of very different sizes, from a millionth up; none, from step to step, where the backbone rests."""
    generator = torch.Generator().manual_seed(step)
    for place, (name, parameter) in enumerate(named.items()):
        gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 10.0 ** (place - 6)
        parameter.grad = None if name.startswith("backbone") and step in RESTING else gradient.to(parameter.dtype)


@pytest.mark.parametrize("added", ["before_correction", "after_correction"])
def test_adam_is_the_one_of_the_version_of_pytorch(added):
    recipe = RECIPE.model_copy(update={"epsilon_added": added})
    network, criterion, named = parts()
    optimiser = build_optimiser(recipe, network, criterion)
    set_learning_rates(optimiser, recipe, 1)
    values = {name: parameter.detach().clone() for name, parameter in named.items()}
    first, second, taken = (dict.fromkeys(named, 0.0) for _ in range(3))
    apart, other_form = 0.0, 0.0
    for step in range(STEPS):
        give_gradients(named, step)
        for name, parameter in named.items():
            if parameter.grad is None:
                continue
            gradient = parameter.grad + 1e-4 * values[name]
            taken[name] += 1
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient * gradient
            rate = 0.03 if name == "proxies" else 1e-4
            correction = 1 - 0.9 ** taken[name], math.sqrt(1 - 0.999 ** taken[name])
            before = rate * correction[1] / correction[0] * first[name] / (second[name].sqrt() + 0.01)
            after = rate / correction[0] * first[name] / (second[name].sqrt() / correction[1] + 0.01)
            values[name] -= before if added == "before_correction" else after
            other_form = max(other_form, (before - after).abs().max().item())
        take_step(optimiser, recipe)
        apart = max(apart, *((parameter - values[name]).abs().max().item() for name, parameter in named.items()))
    assert apart < 2e-11
    assert other_form > 1e-4, "or the two forms could be mistaken for one another"
    assert taken["backbone.weight"] == STEPS - len(RESTING)


@pytest.mark.parametrize(("own", "factor"), [(None, 1.0), (1e-4, 1.0), (1e-3, 10.0)])
def test_the_heads_learning_rate_is_the_networks_or_its_own(own, factor):
    recipe = RECIPE.model_copy(update={"head_learning_rate": own, "epsilon": 1e-12, "weight_decay": 0.0})
    for epoch, decay in ((1, 1.0), (20, 0.1), (40, 0.01)):
        network, criterion, named = parts()
        before = {name: parameter.detach().clone() for name, parameter in named.items()}
        optimiser = build_optimiser(recipe, network, criterion)
        set_learning_rates(optimiser, recipe, epoch)
        give_gradients(named, 0)
        take_step(optimiser, recipe)
        # Adam's first step is as long as the learning rate, whatever the gradient.
        rates = {"backbone": 1e-4, "embedding": 1e-4 * factor, "proxies": 0.03}
        for name, parameter in named.items():
            steps = (parameter - before[name]).abs().flatten().tolist()
            assert steps == pytest.approx([decay * rates[name.split(".")[0]]] * len(steps), rel=1e-3), name


def test_a_resumed_optimiser_goes_on_to_the_same_bytes():
    def run(stops):
        network, criterion, named = parts(torch.float32)
        optimiser = build_optimiser(RECIPE, network, criterion)
        set_learning_rates(optimiser, RECIPE, 1)
        for step in range(STEPS):
            if step in stops:
                state = io.BytesIO()
                torch.save(
                    [network.state_dict(), criterion.state_dict(), optimiser.state_dict()],
                    state,
                )
                state.seek(0)
                saved = torch.load(state, weights_only=True)
                network, criterion, named = parts(torch.float32)
                optimiser = build_optimiser(RECIPE, network, criterion)
                for part, content in zip((network, criterion, optimiser), saved, strict=True):
                    part.load_state_dict(content)
            give_gradients(named, step)
            take_step(optimiser, RECIPE)
        return [parameter.detach().numpy().tobytes() for parameter in named.values()], optimiser.param_groups

    whole, groups = run([])
    assert [group["steps"] for group in groups] == [STEPS - len(RESTING), STEPS, STEPS]
    assert run(range(1, STEPS))[0] == whole, "broken off after every step"
    for stop in (1, 31, 45, 60, 99):
        assert run([stop])[0] == whole, stop
