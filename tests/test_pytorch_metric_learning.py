"""The library's losses by name: built, equal to ours where they are the same, resumed, and refused with a reason."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.base.config import read_params
from pipeline.base.files import BadInputError
from pipeline.losses import proxy_anchor, unit
from pipeline.losses.pytorch_metric_learning import Loss
from pipeline.training.parts import build_loss
from tests.conftest import ENVIRONMENT

PARAMS = Path(__file__).parent.parent / "papers/comparison_glyphs/params.yaml"
LIBRARY = [name for name, of in read_params(PARAMS).losses.items() if of.get("loss") == "pytorch_metric_learning"]


def batch():
    torch.manual_seed(1)
    return unit(torch.randn(32, 16)), torch.arange(8).repeat_interleave(4)


@pytest.mark.parametrize("name", LIBRARY)
def test_every_loss_of_the_comparison_trains_its_parameters(name, one_thread):
    criterion = build_loss(*read_params(PARAMS, loss=name).loss(name), 8, 16, f"{PARAMS}: losses.{name}")
    embeddings, labels = batch()
    embeddings.requires_grad_()
    optimiser = torch.optim.AdamW(
        [{"params": [embeddings]}, {"params": criterion.parameters()}], lr=0.05, weight_decay=0.0, fused=True
    )
    before = {key: value.clone() for key, value in criterion.named_parameters()}
    losses = []
    for _ in range(30):
        loss = criterion(unit(embeddings), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert loss.ndim == 0 and sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert not any(torch.equal(value, before[key]) for key, value in criterion.named_parameters())


@pytest.mark.parametrize("alpha", [1.0, 32.0])
def test_its_proxy_anchor_equals_ours(alpha):
    for seed in range(5):
        torch.manual_seed(seed)
        theirs = Loss(20, 16, name="ProxyAnchorLoss", settings={"alpha": alpha, "margin": 0.2}).double()
        torch.manual_seed(seed)
        ours = proxy_anchor.Loss(20, 16, alpha=alpha, margin=0.2).double()
        assert torch.equal(theirs.loss.proxies, ours.proxies), "proxies of one seed start otherwise"
        found = []
        labels = torch.randint(20, (24,))
        drawn = torch.randn(24, 16, dtype=torch.float64)
        for criterion, proxies in ((theirs, theirs.loss.proxies), (ours, ours.proxies)):
            embeddings = unit(drawn).requires_grad_()
            value = criterion(embeddings, labels)
            value.backward()
            found.append([value.detach(), embeddings.grad, proxies.grad])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_margins_boundary_is_one_a_class_and_can_be_learned():
    criterion = Loss(8, 16, name="MarginLoss", settings={"learn_beta": True, "beta": 1.1})
    assert [tuple(parameter.shape) for parameter in criterion.parameters()] == [(8,)]
    criterion(*batch()).backward()
    assert criterion.loss.beta.grad.abs().sum() > 0


def test_draws_follow_the_seed_and_the_step_and_leave_torchs_generator_alone():
    embeddings, labels = batch()

    def drawn(seed, steps):
        torch.manual_seed(seed)
        criterion = Loss(8, 16, name="MarginLoss", miner="DistanceWeightedMiner")
        return [criterion(embeddings, labels).item() for _ in range(steps)], criterion

    first, criterion = drawn(3, 3)
    assert len(set(first)) == 3 and first != drawn(4, 3)[0]
    again, resumed = drawn(3, 1)
    torch.manual_seed(99)
    assert again + [resumed(embeddings, labels).item() for _ in range(2)] == first
    resumed.load_state_dict(drawn(3, 2)[1].state_dict())
    assert resumed(embeddings, labels).item() == first[2]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    criterion(embeddings, labels)
    assert torch.equal(torch.rand(1), expected)


WRONG = [
    ({"name": "CircelLoss"}, r"name: CircelLoss is not one of the names .*, did you mean CircleLoss\?"),
    ({"name": "BaseMetricLossFunction"}, r"name: BaseMetricLossFunction is not one of the names"),
    ({"name": "CircleLoss", "settings": {"gama": 80}}, r"settings\.gama: unknown key, did you mean gamma\?"),
    ({"name": "CircleLoss", "settings": {"gamma": "big"}}, r"settings\.gamma: give a number, found 'big'"),
    ({"name": "CircleLoss", "settings": {"gamma": [1]}}, r"settings\.gamma.*found \[1\]"),
    ({"name": "TripletMarginLoss", "settings": {"swap": 1}}, r"settings\.swap: give true or false, found 1"),
    ({"name": "NPairsLoss", "settings": {"distance": "cosine"}}, r"settings\.distance: unknown key, choose among none"),
    ({"name": "RankedListLoss", "settings": {"margin": 0.4}}, r"settings\.Tn: this key is missing"),
    ({"name": "CircleLoss", "miner": "MultiSimilarity"}, r"miner: .* did you mean MultiSimilarityMiner\?"),
    (
        {"name": "CircleLoss", "miner": "MultiSimilarityMiner", "miner_settings": {"epsilom": 0.1}},
        r"miner_settings\.epsilom: unknown key, did you mean epsilon\?",
    ),
    ({"name": "CircleLoss", "miner_settings": {"epsilon": 0.1}}, r"miner_settings: no miner is chosen"),
    ({"nome": "CircleLoss"}, r"nome: unknown key, did you mean name\?"),
]


@pytest.mark.parametrize(("entry", "message"), WRONG)
def test_what_the_library_does_not_have_is_named(tmp_path, entry, message):
    content = yaml.safe_load(PARAMS.read_text())
    content["losses"]["circle"] = {"loss": "pytorch_metric_learning", **entry}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(BadInputError, match=message) as raised:
        build_loss(*read_params(path, "glyphs", "circle").loss("circle"), 31, 64, f"{path}: losses.circle")
    assert str(raised.value).startswith(f"{path}:") and "losses.circle" in str(raised.value)


def test_a_run_with_random_draws_is_stopped_resumed_and_ends_with_the_same_bytes(project):
    """Also: an unknown setting stops a run before it begins."""
    content = yaml.safe_load(PARAMS.read_text())
    content["recipes"]["glyphs"].update(epochs=4, schedule={"name": "constant"})
    (project.folder / "draws.yaml").write_text(yaml.safe_dump(content))
    command = ["python", "-m", "pipeline.train", "--params", "draws.yaml", "--dataset", "glyphs", "--loss", "margin"]
    command += ["--seed", "0", "--out"]
    try:
        project.run(*command, "scratch/undisturbed")
        key = json.loads((project.folder / "scratch/undisturbed/run.json").read_text())["key"]
        shutil.rmtree(project.folder / "data/store" / key)
        process = subprocess.Popen(
            [*command, "scratch/stopped"],
            cwd=project.folder,
            env=ENVIRONMENT,
            text=True,
            stderr=subprocess.PIPE,
        )
        for line in process.stderr:
            if "epoch 1/4" in line:
                break
        os.kill(process.pid, signal.SIGTERM)
        output = process.stderr.read()
        assert process.wait() == 128 + signal.SIGTERM, output
        assert re.search("goes on from epoch [2-4], step", project.run(*command, "scratch/stopped"))
        for name in ("best_test_epoch.pt", "last_epoch.pt", "history.csv", "run.json"):
            undisturbed, stopped = (project.folder / "scratch" / run / name for run in ("undisturbed", "stopped"))
            assert undisturbed.read_bytes() == stopped.read_bytes(), name
        output = project.run(*command, "scratch/wrong", "--set", "loss.miner=DistanceWeightMiner", fails=2)
        assert "draws.yaml: losses.margin: miner: DistanceWeightMiner is not one of the names that can be" in output
        assert "did you mean DistanceWeightedMiner?" in output
    finally:
        project.run("git", "clean", "-fdq", "scratch", "draws.yaml")
