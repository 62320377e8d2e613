"""check_loss passes a sound loss and catches unsound ones, each by the check meant for it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import pipeline.losses
from pipeline import check_loss
from pipeline.base import choices, files
from pipeline.base.files import BadInputError
from pipeline.losses import proxy_an, unit

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


class Softmax(nn.Module):
    """A sound loss to be spoiled."""

    def __init__(self, classes, dimension):
        super().__init__()
        self.proxies = nn.Parameter(torch.randn(classes, dimension))

    def logits(self, embeddings):
        return 16 * unit(embeddings) @ unit(self.proxies).T

    def forward(self, embeddings, labels):
        return nn.functional.cross_entropy(self.logits(embeddings), labels)


class WrongGradient(Softmax):
    def forward(self, embeddings, labels):
        return super().forward(embeddings, labels) * (1 + self.proxies.detach().norm())


class Overflows(Softmax):
    def forward(self, embeddings, labels):
        logits = 16 * self.logits(embeddings)
        return (logits.exp().sum(1).log() - logits.gather(1, labels[:, None])[:, 0]).mean()


class NoPositives(Softmax):
    """Not a number for a batch without two images of a class."""

    def forward(self, embeddings, labels):
        same = (labels[:, None] == labels).float().fill_diagonal_(0)
        return super().forward(embeddings, labels) - ((embeddings @ embeddings.T) * same).sum() / same.sum()


class FirstCounts(Softmax):
    def forward(self, embeddings, labels):
        return super().forward(embeddings, labels) + embeddings[0].sum()


class DrawsByPlace(Softmax):
    def forward(self, embeddings, labels):
        return super().forward(embeddings, labels) + torch.rand(()) * 0.01 + embeddings[0].sum()


class Remembers(Softmax):
    """What it has seen is in no state."""

    steps = 0

    def forward(self, embeddings, labels):
        self.steps += 1
        return super().forward(embeddings, labels) * self.steps


class DrawsUnkeyed(Softmax):
    def forward(self, embeddings, labels):
        return super().forward(nn.functional.dropout(embeddings), labels)


class EveryDifference(Softmax):
    """Holds a vector for every image and every proxy."""

    def logits(self, embeddings):
        return -8 * (unit(embeddings)[:, None] - unit(self.proxies)).square().sum(2)


CHECKS = {
    "gradients": check_loss.check_gradients,
    "bfloat16": check_loss.check_bfloat16,
    "extremes": check_loss.check_extremes,
    "order": check_loss.check_order,
    "repeats": check_loss.check_repeats,
}
CAUGHT = [
    (WrongGradient, "gradients", "in proxies"),
    (Overflows, "bfloat16", "off by"),
    (Overflows, "extremes", "not finite: "),
    (NoPositives, "extremes", "not finite: a batch of one image, a batch without two of a class"),
    (FirstCounts, "order", "changes by"),
    (DrawsByPlace, "order", "standard errors"),
    (Remembers, "repeats", "other bits resumed"),
    (DrawsUnkeyed, "repeats", "other bits resumed"),
]


@pytest.mark.parametrize(("loss", "check", "message"), CAUGHT)
def test_an_unsound_loss_is_caught(loss, check, message, one_thread):
    well, found = CHECKS[check](lambda: loss(100, 16), CPU)
    assert not well and message in found, found


@pytest.mark.parametrize("check", CHECKS)
def test_sound_losses_pass(check, one_thread):
    for build in (lambda: Softmax(100, 16), lambda: proxy_an.Loss(100, 16, alpha=32.0, margin=0.1)):
        well, found = CHECKS[check](build, CPU)
        assert well, found


def test_memory_for_every_image_and_proxy_is_caught(one_thread):
    well, found = check_loss.check_cost(EveryDifference, "CUB", CPU)
    assert not well and float(found.split(" and ")[1].split()[0]) > 10, found
    well, found = check_loss.check_cost(Softmax, "CUB", CPU)
    assert well, found


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (lambda value: value * torch.ones(3), r"a tensor of shape \(3,\)"),
        (lambda value: value.detach(), "one that does not depend on them"),
        (lambda value: value.item(), "a value of type float"),
        (lambda value: None, "a value of type NoneType"),
    ],
)
def test_what_is_no_loss_is_one_line(returned, found):
    class Returns(Softmax):
        def forward(self, embeddings, labels):
            return returned(super().forward(embeddings, labels))

    with pytest.raises(
        BadInputError, match=r"tests/test_check_loss\.py: forward must return a scalar .* found " + found
    ):
        check_loss.Tried(lambda: Returns(100, 16)).gradients(*check_loss.batch(8, 3, 100, 16, CPU))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Lost: ...", r"pipeline/losses/tried\.py has no Loss: a loss is a class or function of this name"),
        (
            "class Loss:\n def __init__(self, classes, dimension, *, scale=1.0): ...",
            "argument scale of Loss has no annot",
        ),
        ("x = (", r"tried\.py line 1: '\(' was never closed: correct this file"),
    ],
)
def test_a_file_that_is_no_loss_is_one_line(text, message, tmp_path, monkeypatch):
    (tmp_path / "tried.py").write_text(text)
    monkeypatch.setattr(pipeline.losses, "__path__", [str(tmp_path)])
    monkeypatch.setattr(files, "module_file", lambda package, name: tmp_path / f"{name}.py")
    monkeypatch.delitem(sys.modules, "pipeline.losses.tried", raising=False)
    with pytest.raises(BadInputError, match=message):
        choices.settings_model(choices.chosen("loss", "tried"))


def test_the_command_prints_each_check_and_exits_with_its_verdict():
    def run(name, code):
        command = [sys.executable, "-m", "pipeline.check_loss", name]
        command += ["--params", "papers/comparison_glyphs/params.yaml"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    checks = ["gradients", "bfloat16", "extremes", "order of a batch", "the same again"]
    checks += ["cost at CUB's size", "cost at SOP's size"]
    lines = run("proxy_an", 0).stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"ok    {check}" for check in checks]
    assert "fail  order of a batch: changes by" in run("n_pair", 1).stdout
    assert "losses.proxy_am: there are no settings" in run("proxy_am", 2).stderr


def test_a_loss_that_is_not_a_number_passes_nothing(monkeypatch, capsys, one_thread):
    class NotANumber(Softmax):
        def forward(self, embeddings, labels):
            return super().forward(embeddings, labels) * float("nan")

    monkeypatch.setattr(
        check_loss, "build_loss", lambda module, settings, classes, dimension, source: NotANumber(100, 16)
    )
    monkeypatch.setattr(sys, "argv", ["check_loss", "proxy_an", "--params", str(ROOT / "params.yaml")])
    with pytest.raises(SystemExit, match="1"):
        check_loss.main()
    torch.set_deterministic_debug_mode("default")
    broken = "value, embeddings, proxies"
    assert capsys.readouterr().out == f"fail  an ordinary batch: not finite: {broken}; nothing else was checked\n"
