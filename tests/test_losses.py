"""Losses against the values of the papers' own code, against plain slow references, and at their extremes."""

import importlib
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.losses import proxy_gml, register_tensors, unit

GOLDEN = np.load(Path(__file__).parent / "golden" / "losses.npz")
CASES = sorted({name.rsplit("/", 1)[0] for name in GOLDEN.files})
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def build(name, classes, dimension, **settings):
    return importlib.import_module(f"pipeline.losses.{name}").Loss(classes, dimension, **settings)


def with_gradients(loss, embeddings, labels):
    embeddings = embeddings.detach().requires_grad_()
    value = loss(embeddings, labels)
    value.backward()
    return value.detach(), embeddings.grad, loss.proxies.grad


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_papers_own_code(case, device):
    family = case.split("/")[0]
    given = {name: GOLDEN[f"{case}/{name}"] for name in ("embeddings", "proxies", "labels", "loss")}
    embeddings = torch.tensor(given["embeddings"], device=device).requires_grad_()
    labels = torch.tensor(given["labels"], device=device)
    proxies = torch.tensor(given["proxies"], device=device).requires_grad_()
    if family == "proxygml":
        # By its functions: two of the cases are degenerate ones that the class refuses.
        per_class, classes, ratio, weight = (GOLDEN[f"{case}/{name}"].item() for name in ("N", "C", "r", "lam"))
        grouped = unit(proxies).view(classes, per_class, -1)
        kept = math.ceil(ratio * classes * per_class)
        loss = proxy_gml.classification(embeddings, grouped, labels, kept)
        assert loss.item() == pytest.approx(GOLDEN[f"{case}/classification_loss"].item(), rel=1e-5, abs=1e-6)
        loss = loss + weight * proxy_gml.regulariser(grouped)
    else:
        names = () if family == "proxy_nca" else ("alpha", "margin")
        criterion = build(family, *proxies.shape, **{name: GOLDEN[f"{case}/{name}"].item() for name in names})
        criterion.proxies = torch.nn.Parameter(proxies.detach())
        proxies = criterion.proxies
        loss = criterion(embeddings, labels)
    loss.backward()
    assert loss.item() == pytest.approx(given["loss"].item(), rel=1e-5)
    # Of large gradients the file holds every 16th row and the one with the largest entry.
    rows = GOLDEN.get(f"{case}/grad_proxies_rows", slice(None))
    for found, name in ((embeddings.grad, "grad_embeddings"), (proxies.grad[rows], "grad_proxies")):
        expected = GOLDEN[f"{case}/{name}"]
        np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def slow(name, embeddings, proxies, labels, settings):
    """The formulas in plain Python over samples and classes; tensors only to be differentiated."""
    x = [row / row.norm() for row in embeddings]
    samples, classes = range(len(x)), range(len(proxies))
    if name == "proxy_gml":
        p = [[row / row.norm() for row in own] for own in proxies]
        per_class = len(p[0])
        kept = math.ceil(settings["ratio"] * len(p) * per_class)
        total = 0
        for i in samples:
            similarity = {(c, n): x[i] @ p[c][n] for c in classes for n in range(per_class)}
            bonus = 1000 if settings.get("own_class_bonus", True) else 0
            by_score = sorted(similarity, key=lambda key: similarity[key] + bonus * (key[0] == labels[i]), reverse=True)
            nothing = torch.zeros((), dtype=torch.float64)
            logits = {c: sum((similarity[key] for key in by_score[:kept] if key[0] == c), nothing) for c in classes}
            shown = {c: logit for c, logit in logits.items() if logit != 0 or not settings.get("masked_softmax", True)}
            shown = {c: settings.get("scale", 1.0) * logit for c, logit in shown.items()}
            own = shown[labels[i]].exp() if labels[i] in shown else nothing
            probability = own / (1e-8 + sum(logit.exp() for logit in shown.values()))
            total = total - (probability + 1e-20).log()
        loss = total / len(x)
        regulariser = 0
        for c in classes:
            for own in p[c]:
                logits = [sum(own @ other for other in p[d]) for d in classes]
                regulariser = regulariser - logits[c] + sum(logit.exp() for logit in logits).log()
        return loss + settings["regulariser_weight"] * regulariser / (len(p) * per_class)
    p = [row / row.norm() for row in proxies]
    if name == "proxy_nca":
        distance = [[((3 * x[i] - 3 * p[c]) ** 2).sum() for c in classes] for i in samples]
        terms = [
            distance[i][labels[i]] + sum((-distance[i][c]).exp() for c in classes if c != labels[i]).log()
            for i in samples
        ]
        return sum(terms) / len(terms)
    alpha, margin = settings["alpha"], settings["margin"]
    present = sorted(set(labels))
    positive = [
        (1 + sum((-alpha * (x[i] @ p[c] - margin)).exp() for i in samples if labels[i] == c)).log() for c in present
    ]
    if name == "proxy_anchor":
        pairs = [[(i, c) for i in samples if labels[i] != c] for c in classes]
    else:
        pairs = [[(i, c) for c in classes if labels[i] != c] for i in samples]
    negative = [
        torch.log1p(sum(((alpha * (x[i] @ p[c] + margin)).exp() for i, c in group), torch.zeros((), dtype=x[0].dtype)))
        for group in pairs
    ]
    return sum(positive) / len(positive) + sum(negative) / len(negative)


SETTINGS = {
    "proxy_an": {"alpha": 12.0, "margin": 0.1},
    "proxy_anchor": {"alpha": 12.0, "margin": 0.1},
    "proxy_gml": {"proxies_per_class": 3, "ratio": 0.5, "regulariser_weight": 0.3},
    "proxy_nca": {},
}


ABLATIONS = [
    ("proxy_gml", SETTINGS["proxy_gml"] | {"own_class_bonus": bonus, "masked_softmax": masked})
    for bonus, masked in ((False, True), (True, False), (False, False))
] + [("proxy_gml", SETTINGS["proxy_gml"] | {"scale": 20.0})]


@pytest.mark.parametrize(("name", "chosen"), [*SETTINGS.items(), *ABLATIONS])
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 9), classes=st.integers(3, 7))
def test_equal_to_a_slow_reference_in_float64(name, chosen, seed, batch, classes):
    torch.manual_seed(seed)
    criterion = build(name, classes, 5, **chosen).double()
    embeddings = unit(torch.randn(batch, 5, dtype=torch.float64))
    labels = torch.randint(classes, (batch,))
    value, embedding_gradient, proxy_gradient = with_gradients(criterion, embeddings, labels)

    embeddings = embeddings.detach().requires_grad_()
    proxies = criterion.proxies.detach().requires_grad_()
    reference = slow(name, embeddings, proxies, labels.tolist(), chosen)
    reference.backward()
    torch.testing.assert_close(value, reference.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(proxy_gradient, proxies.grad, rtol=1e-10, atol=1e-10)
    if name == "proxy_gml":
        # It takes the embeddings as they come, of unit length; the reference scales them, so only the tangent counts.
        radial = (embedding_gradient * embeddings).sum(1, keepdim=True)
        embedding_gradient = embedding_gradient - radial * embeddings
    torch.testing.assert_close(embedding_gradient, embeddings.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("alpha", [1.0, 32.0, 512.0])
@pytest.mark.parametrize("name", ["proxy_an", "proxy_anchor"])
def test_stable_for_any_alpha_and_in_bfloat16(name, alpha, device):
    torch.manual_seed(0)
    criterion = build(name, 50, 64, alpha=alpha, margin=0.1).to(device)
    embeddings = unit(torch.randn(40, 64, device=device))
    embeddings[:20] = unit(-criterion.proxies[:20])  # as wrong as can be
    labels = torch.arange(40, device=device)
    value, embedding_gradient, proxy_gradient = with_gradients(criterion, embeddings, labels)
    assert value.isfinite() and embedding_gradient.isfinite().all() and proxy_gradient.isfinite().all()
    rough, *gradients = with_gradients(criterion.bfloat16(), embeddings.bfloat16(), labels)
    assert rough.item() == pytest.approx(value.item(), rel=0.02)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["proxy_gml", "proxy_nca"])
def test_stable_in_bfloat16(name, device):
    torch.manual_seed(0)
    criterion = build(name, 50, 64, **SETTINGS[name]).to(device)
    embeddings, labels = unit(torch.randn(40, 64, device=device)), torch.arange(40, device=device)
    value, *_ = with_gradients(criterion, embeddings, labels)
    rough, *gradients = with_gradients(criterion.bfloat16(), embeddings.bfloat16(), labels)
    assert rough.item() == pytest.approx(value.item(), rel=0.02)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_batch_of_one_class_and_the_order_of_a_batch(name):
    torch.manual_seed(0)
    criterion = build(name, 4, 8, **SETTINGS[name]).double()
    embeddings = unit(torch.randn(6, 8, dtype=torch.float64))
    value, *gradients = with_gradients(criterion, embeddings, torch.full((6,), 2))
    assert value.isfinite() and all(gradient.isfinite().all() for gradient in gradients)
    labels = torch.tensor([0, 0, 1, 2, 3, 3])
    order = torch.randperm(6)
    torch.testing.assert_close(criterion(embeddings[order], labels[order]), criterion(embeddings, labels))


def test_proxy_gml_refuses_a_ratio_that_keeps_no_other_proxy():
    with pytest.raises(ValueError, match=r"ceil\(r\*C\*N\) = 12"):
        build("proxy_gml", 20, 8, proxies_per_class=12, ratio=0.05, regulariser_weight=0.3)
    assert build("proxy_gml", 21, 8, proxies_per_class=12, ratio=0.05, regulariser_weight=0.3).kept == 13
    # Without the bonus other classes' proxies are among the kept; and one may ask for the case by name.
    for switch in ({"own_class_bonus": False}, {"masked_softmax": False}, {"own_class_alone": True}):
        settings = {"proxies_per_class": 12, "ratio": 0.05, "regulariser_weight": 0.3}
        assert build("proxy_gml", 20, 8, **settings, **switch).kept == 12


def test_unit_length_and_its_gradient():
    torch.manual_seed(0)
    vectors = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, vectors)
    given, incoming = torch.randn(4, 6), torch.randn(4, 6)
    given[1] = 0
    ours, theirs = given.clone().requires_grad_(), given.clone().requires_grad_()
    found, expected = unit(ours), torch.nn.functional.normalize(theirs, dim=-1)
    assert torch.equal(found, expected)
    found.backward(incoming)
    expected.backward(incoming)
    torch.testing.assert_close(ours.grad, theirs.grad)


class Holds(torch.nn.Module):
    """A loss that holds tensors as others' losses do."""

    def __init__(self, **held):
        super().__init__()
        self.part = torch.nn.Module()
        vars(self.part).update(held)


def test_a_tensor_that_a_loss_holds_moves_with_it():
    loss = Holds(beta=torch.ones(3))
    register_tensors(loss)
    assert loss.part.beta.equal(torch.ones(3)) and loss.to("meta").part.beta.device.type == "meta"
    assert loss.state_dict() == {}, "it is no part of the state, as before"


IMMOVABLE = {
    "list": [torch.ones(3)],
    "dict": {"a": (torch.ones(3),)},
    "object": SimpleNamespace(weights=torch.ones(3)),
}


@pytest.mark.parametrize("held", IMMOVABLE.values(), ids=IMMOVABLE)
def test_a_tensor_that_cannot_move_is_refused_by_name(held):
    with pytest.raises(ValueError, match=r"^part\.beta holds a tensor that \.to\(device\) does not move"):
        register_tensors(Holds(beta=held))
