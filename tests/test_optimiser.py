"""Optimisers against their formulas in plain arithmetic, and their state in a checkpoint; schedules against theirs."""

import io
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.base.checks import with_values
from pipeline.base.config import read_params
from pipeline.training.optimiser import build_optimiser, build_schedule, set_learning_rates
from pipeline.training.optimisers import torch as torch_optimisers
from pipeline.training.schedules import torch as torch_schedules

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
    recipe = with_values(RECIPE, {"optimiser.epsilon_added": added})
    network, criterion, named = parts()
    optimiser = build_optimiser(recipe, network, criterion)
    set_learning_rates(optimiser, recipe, 1.0)
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
        optimiser.step()
        apart = max(apart, *((parameter - values[name]).abs().max().item() for name, parameter in named.items()))
    assert apart < 2e-11
    assert other_form > 1e-4, "or the two forms could be mistaken for one another"
    assert taken["backbone.weight"] == STEPS - len(RESTING)


@pytest.mark.parametrize(("own", "factor"), [(None, 1.0), (1e-4, 1.0), (1e-3, 10.0)])
def test_the_heads_learning_rate_is_the_networks_or_its_own(own, factor):
    recipe = with_values(
        RECIPE, {"learning_rates.head": own, "optimiser.epsilon": 1e-12, "optimiser.weight_decay": 0.0}
    )
    for epoch, decay in ((1, 1.0), (20, 0.1), (40, 0.01)):
        network, criterion, named = parts()
        before = {name: parameter.detach().clone() for name, parameter in named.items()}
        optimiser = build_optimiser(recipe, network, criterion)
        set_learning_rates(optimiser, recipe, build_schedule(recipe, 5)(epoch, 1))
        give_gradients(named, 0)
        optimiser.step()
        # Adam's first step is as long as the learning rate, whatever the gradient.
        rates = {"backbone": 1e-4, "embedding": 1e-4 * factor, "proxies": 0.03}
        for name, parameter in named.items():
            steps = (parameter - before[name]).abs().flatten().tolist()
            assert steps == pytest.approx([decay * rates[name.split(".")[0]]] * len(steps), rel=1e-3), name


def test_a_resumed_optimiser_goes_on_to_the_same_bytes():
    def run(stops):
        network, criterion, named = parts(torch.float32)
        optimiser = build_optimiser(RECIPE, network, criterion)
        set_learning_rates(optimiser, RECIPE, 1.0)
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
            optimiser.step()
        return [parameter.detach().numpy().tobytes() for parameter in named.values()], optimiser.param_groups

    whole, groups = run([])
    assert [group["steps"] for group in groups] == [STEPS - len(RESTING), STEPS, STEPS]
    assert run(range(1, STEPS))[0] == whole, "broken off after every step"
    for stop in (1, 31, 45, 60, 99):
        assert run([stop])[0] == whole, stop


OPTIMISERS = [
    {"name": "adam", "weight_decay": 1e-4},
    {"name": "adamw", "weight_decay": 1e-4, "epsilon": 0.01, "epsilon_added": "before_correction"},
    {"name": "sgd", "weight_decay": 1e-4, "momentum": 0.9},
    {"name": "sgd", "weight_decay": 0.0, "momentum": 0.9, "nesterov": True},
    *({"name": f"torch/{name}"} for name in torch_optimisers.NAMES),
    {"name": "torch/RMSprop", "momentum": 0.5, "centered": True},
    {"name": "torch/Adam", "betas": [0.5, 0.99], "amsgrad": True},
]


def trained(settings, stops=(), steps=40):
    """Weights after some steps, with a change of the rates within them, and with the state saved and loaded again
    before the steps `stops`."""
    recipe = RECIPE.model_copy(update={"optimiser": settings})
    network, criterion, named = parts(torch.float32)
    optimiser = build_optimiser(recipe, network, criterion)
    for step in range(steps):
        if step in stops:
            state = io.BytesIO()
            torch.save([part.state_dict() for part in (network, criterion, optimiser)], state)
            state.seek(0)
            saved = torch.load(state, weights_only=True)
            network, criterion, named = parts(torch.float32)
            optimiser = build_optimiser(recipe, network, criterion)
            for part, content in zip((network, criterion, optimiser), saved, strict=True):
                part.load_state_dict(content)
        set_learning_rates(optimiser, recipe, 1.0 if step < 20 else 0.5)
        give_gradients(named, step)
        optimiser.step()
    return {name: parameter.detach() for name, parameter in named.items()}


@pytest.mark.parametrize("settings", OPTIMISERS, ids=str)
def test_every_optimiser_gives_the_same_bytes_when_resumed_after_any_step(settings):
    whole, again = trained(settings), trained(settings, range(1, 40))
    start = parts(torch.float32)[2]
    for name, value in whole.items():
        assert again[name].numpy().tobytes() == value.numpy().tobytes(), name
        assert value.isfinite().all(), name
    assert not torch.equal(whole["proxies"], start["proxies"])


def test_sgd_is_its_formula():
    recipe = RECIPE.model_copy(update={"optimiser": {"name": "sgd", "weight_decay": 0.01, "momentum": 0.9}})
    network, criterion, named = parts()
    optimiser = build_optimiser(recipe, network, criterion)
    set_learning_rates(optimiser, recipe, 1.0)
    values = {name: parameter.detach().clone() for name, parameter in named.items()}
    momenta = dict.fromkeys(named, 0.0)
    for step in range(STEPS):
        give_gradients(named, step)
        for name, parameter in named.items():
            if parameter.grad is not None:
                momenta[name] = 0.9 * momenta[name] + parameter.grad + 0.01 * values[name]
                values[name] = values[name] - (0.03 if name == "proxies" else 1e-4) * momenta[name]
        optimiser.step()
    for name, parameter in named.items():
        assert torch.allclose(parameter, values[name], rtol=1e-12, atol=1e-12), name


def factors(epochs=10, steps=4, **settings):
    """The schedule's factors, an epoch a row."""
    recipe = RECIPE.model_copy(update={"epochs": epochs, "schedule": settings})
    schedule = build_schedule(recipe, steps)
    return [[schedule(epoch, step) for step in range(1, steps + 1)] for epoch in range(1, epochs + 1)]


def test_steps_and_constant_are_those_of_the_epochs():
    assert factors(name="constant") == [[1.0] * 4] * 10
    expected = [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    assert factors(name="steps", at=[3, 7], factor=0.5) == [[of] * 4 for of in expected]
    assert factors(name="steps", every=4, factor=0.5) == [[0.5 ** ((epoch - 1) // 4)] * 4 for epoch in range(1, 11)]


def test_cosine_rises_by_steps_and_falls_along_a_cosine():
    found = [of for row in factors(name="cosine", warm_up=2.0, last=0.1) for of in row]
    assert found[:8] == pytest.approx([step / 9 for step in range(1, 9)])
    assert found[8] == 1.0
    middle, end = found[8 + 16], found[-1]
    assert middle == pytest.approx(0.55) and 0.1 < end < 0.11
    assert found[8:] == sorted(found[8:], reverse=True)
    plain = [of for row in factors(name="cosine") for of in row]
    assert plain == pytest.approx([(1 + math.cos(math.pi * step / 40)) / 2 for step in range(40)])
    half = [of for row in factors(name="cosine", warm_up=0.5) for of in row]
    assert half[:3] == pytest.approx([1 / 3, 2 / 3, 1.0]), "half an epoch is two steps"


def test_pytorchs_schedules_are_taken_over_the_recipes_length():
    cosine = factors(name="torch/CosineAnnealingLR", T_max=10)
    assert cosine == [[pytest.approx((1 + math.cos(math.pi * epoch / 10)) / 2)] * 4 for epoch in range(10)]
    by_steps = factors(name="torch/CosineAnnealingLR", T_max=40, each_step=True)
    ours = factors(name="cosine")
    assert by_steps == [pytest.approx(row) for row in ours]
    assert factors(name="torch/StepLR", step_size=4, gamma=0.5) == factors(name="steps", every=4, factor=0.5)
    assert factors(name="torch/MultiStepLR", milestones=[2, 6], gamma=0.5) == factors(
        name="steps", at=[3, 7], factor=0.5
    )
    cycle = [of for row in factors(name="torch/OneCycleLR", max_lr=1.0, each_step=True) for of in row]
    assert max(cycle) == 1.0 and 0 < cycle.index(1.0) < 20 and cycle[-1] < 1e-4
    given = {"ConstantLR": {}, "CosineAnnealingWarmRestarts": {"T_0": 3}, "ExponentialLR": {"gamma": 0.9}}
    given |= {"CyclicLR": {"base_lr": 0.1, "max_lr": 1.0}, "LinearLR": {}, "PolynomialLR": {"total_iters": 10}}
    tried = {"StepLR", "MultiStepLR", "OneCycleLR", "CosineAnnealingLR"}
    assert {*given, *tried} == {*torch_schedules.NAMES}
    for name, settings in given.items():
        found = factors(name=f"torch/{name}", **settings)
        assert (
            all(type(of) is float and 0 <= of < 1 + 1e-9 for row in found for of in row) and found != [[1.0] * 4] * 10
        )
