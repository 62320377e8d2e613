"""Freezing: which parameters move in which epoch, and which running statistics, for every switch."""

import pytest
import torch

from pipeline.base.config import read_params
from pipeline.networks.freezing import set_trainable
from pipeline.networks.network import EmbeddingNetwork
from pipeline.training.embedding import embed
from tests import GRID

DEFAULT = read_params(GRID / "params.yaml").recipes["glyphs"]
CONVOLUTIONS, NORMS, STATISTICS, HEAD, HEAD_STATISTICS = ALL = (
    "convolutions",
    "batch norms' scale and shift",
    "batch norms' running statistics",
    "head",
    "head's running statistics",
)
pytestmark = pytest.mark.usefixtures("one_thread")


def part(name):
    """The part of the network that an entry of its state dict belongs to."""
    running = "running" in name or name.endswith("num_batches_tracked")
    if not name.startswith("backbone."):
        return HEAD_STATISTICS if running else HEAD
    return STATISTICS if running else NORMS if ".norm." in name else CONVOLUTIONS


def moved(**changes):
    """Train on noise; for each epoch the parts that moved, each in all its entries or in none."""
    recipe = DEFAULT.model_copy(update={"head": "normalised", **changes})
    torch.manual_seed(0)
    network = EmbeddingNetwork(recipe)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=1e-4, fused=True)
    found = []
    for epoch in range(1, 5):
        before = {name: value.clone() for name, value in network.state_dict().items()}
        set_trainable(network, recipe, epoch)
        for _ in range(2):
            loss = network(torch.randn(8, 1, 32, 32))[:, :5].sum()
            optimiser.zero_grad(set_to_none=recipe.frozen_gradients == "none")
            loss.backward()
            optimiser.step()
        embed(network, torch.zeros(2, 1, 32, 32, dtype=torch.uint8), recipe, torch.device("cpu"))
        changed: dict[str, set[bool]] = {}
        for name, value in network.state_dict().items():
            changed.setdefault(part(name), set()).add(not torch.equal(value, before[name]))
        assert changed.keys() == set(ALL) and all(len(answers) == 1 for answers in changed.values()), changed
        found.append({name for name, answers in changed.items() if answers == {True}})
    return found


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        pytest.param({}, [set(ALL)] * 4, id="embedded default"),
        pytest.param(
            {"batch_norm": "fixed_statistics", "head_only_epochs": [2]},
            [
                {CONVOLUTIONS, NORMS, HEAD, HEAD_STATISTICS},
                {HEAD, HEAD_STATISTICS},
                {CONVOLUTIONS, NORMS, HEAD, HEAD_STATISTICS},
                {CONVOLUTIONS, NORMS, HEAD, HEAD_STATISTICS},
            ],
            id="ProxyGML on CUB and Cars, warm-up one epoch late",
        ),
        pytest.param(
            {"batch_norm": "fixed_statistics", "head_only_epochs": [2], "frozen_gradients": "zero"},
            [{CONVOLUTIONS, NORMS, HEAD, HEAD_STATISTICS}] * 4,
            id="ProxyGML on CUB and Cars, PyTorch before 2.0",
        ),
        pytest.param(
            {"head_only_epochs": [2]},
            [set(ALL), {STATISTICS, HEAD, HEAD_STATISTICS}, set(ALL), set(ALL)],
            id="ProxyGML on SOP: statistics move while the backbone is frozen",
        ),
        pytest.param(
            {"batch_norm": "fixed_statistics", "head_only_epochs": [1, 2]},
            [{HEAD, HEAD_STATISTICS}] * 2 + [{CONVOLUTIONS, NORMS, HEAD, HEAD_STATISTICS}] * 2,
            id="Proxy-AN on CUB and Cars, scale and shift thawed",
        ),
        pytest.param(
            {"batch_norm": "fixed", "head_only_epochs": [1, 2]},
            [{HEAD, HEAD_STATISTICS}] * 2 + [{CONVOLUTIONS, HEAD, HEAD_STATISTICS}] * 2,
            id="Proxy-AN on CUB and Cars, as meant",
        ),
        pytest.param(
            {"head_only_epochs": [1, 2]},
            [{STATISTICS, HEAD, HEAD_STATISTICS}] * 2 + [set(ALL)] * 2,
            id="Proxy-AN on SOP and In-Shop",
        ),
        pytest.param(
            {"batch_norm": "fixed", "head_only_epochs": [1, 3], "frozen_gradients": "zero"},
            [
                {HEAD, HEAD_STATISTICS},
                {CONVOLUTIONS, HEAD, HEAD_STATISTICS},
                {CONVOLUTIONS, HEAD, HEAD_STATISTICS},
                {CONVOLUTIONS, HEAD, HEAD_STATISTICS},
            ],
            id="zero gradients only of what has trained",
        ),
    ],
)
def test_what_moves_in_which_epoch(switches, expected):
    assert moved(**switches) == expected


def test_nothing_is_left_from_the_epoch_before():
    recipe = DEFAULT.model_copy(
        update={"batch_norm": "fixed_statistics", "head_only_epochs": [2], "frozen_gradients": "zero"}
    )

    def state(network):
        modes = [module.training for module in network.modules()]
        parameters = [(parameter.requires_grad, parameter.grad) for parameter in network.backbone.parameters()]
        return modes, [(flag, None if gradient is None else gradient.count_nonzero()) for flag, gradient in parameters]

    uninterrupted = EmbeddingNetwork(recipe)
    for epoch in (1, 2, 3):
        set_trainable(uninterrupted, recipe, epoch)
        resumed = EmbeddingNetwork(recipe)
        set_trainable(resumed, recipe, epoch)
        assert state(uninterrupted) == state(resumed)
        uninterrupted(torch.randn(4, 1, 32, 32)).sum().backward()
        uninterrupted.eval()
