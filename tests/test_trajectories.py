"""Whole trajectories: the trainer's parts, in the papers' recipes, against a slow and plain statement of the same.

What each paper does is said here a second time, from docs/protocols.md and not from params.yaml: Adam in tensor
arithmetic, losses in loops, batch norms in their formulas, and what trains when. Both sides get the same weights and
the same batches, in float64; losses, weights, running statistics and proxies must agree after every step.
"""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pipeline.base.checks import with_values
from pipeline.base.config import read_params
from pipeline.networks import network as networks
from pipeline.networks.backbones import bn_inception, deit_small_distilled, resnet50
from pipeline.networks.freezing import set_trainable
from pipeline.networks.network import EmbeddingNetwork
from pipeline.training.optimiser import build_optimiser, build_schedule, set_learning_rates
from pipeline.training.parts import build_loss
from pipeline.training.step import training_step

PAPERS = Path(__file__).parent.parent / "papers"
GML, AN = (read_params(PAPERS / paper / "params.yaml") for paper in ("proxygml", "proxy_an"))
CLASSES, DIMENSION, PROXIES, RATIO = 6, 5, 3, 0.4
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


class Maps(nn.Module):
    """Images to maps, with batch norms, in place of the large convolutional networks."""

    features, size = 6, 9

    def __init__(self):
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4)
        self.second, self.second_norm = nn.Conv2d(4, self.features, 2, bias=False), nn.BatchNorm2d(self.features)

    def forward(self, images):
        maps = self.first_norm(self.first(images)).relu()
        return self.second_norm(self.second(maps)).relu()


class Vectors(nn.Module):
    """Images to vectors, without batch norms, in place of DeiT."""

    features, size = 6, 4

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.GELU(), nn.Linear(8, self.features))

    def forward(self, images):
        return self.layers(images)


class ResNet50(resnet50.Backbone):
    """With one block in each of its four layers."""

    size = 33

    def __init__(self):
        super().__init__()
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            layer[:1] for layer in (self.layer1, self.layer2, self.layer3, self.layer4)
        )


class BNInception(bn_inception.Backbone):
    size = 64


class DeiT(deit_small_distilled.Backbone):
    """With one block of its twelve."""

    size = 224

    def __init__(self):
        super().__init__()
        self.blocks = self.blocks[:1]


class PlainNorm(nn.Module):
    """A batch norm over all but the second dimension, with the weights of torch's `norm`."""

    def __init__(self, norm, momentum):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(value.detach().clone()) for value in (norm.weight, norm.bias))
        self.register_buffer("running_mean", norm.running_mean.clone())
        self.register_buffer("running_var", norm.running_var.clone())
        self.momentum, self.by_batch = momentum, True

    def forward(self, values):
        mean, variance = self.running_mean, self.running_var
        if self.by_batch:
            flat = values.transpose(0, 1).flatten(1)
            mean = flat.sum(1) / flat.shape[1]
            variance = ((flat - mean[:, None]) ** 2).sum(1) / flat.shape[1]
            unbiased = variance.detach() * flat.shape[1] / (flat.shape[1] - 1)
            self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mean.detach()
            self.running_var = (1 - self.momentum) * self.running_var + self.momentum * unbiased
        mean, variance, weight, bias = (
            value.view(-1, *[1] * (values.dim() - 2)) for value in (mean, variance, self.weight, self.bias)
        )
        return (values - mean) / (variance + 1e-5).sqrt() * weight + bias


def unit(vectors: Tensor) -> Tensor:
    return vectors / (vectors**2).sum(-1, keepdim=True).sqrt()


def proxy_gml(embeddings, proxies, labels, weight):
    """Facts, loss, 1 to 5; `weight` is lambda."""
    proxies = unit(proxies).flatten(0, 1)
    per_class, kept = len(proxies) // CLASSES, math.ceil(RATIO * len(proxies))
    terms = []
    for embedding, label in zip(embeddings, labels.tolist(), strict=True):
        similarities = [(embedding * proxy).sum() for proxy in proxies]
        scores = [s.item() + 1000 * (place // per_class == label) for place, s in enumerate(similarities)]
        best = sorted(range(len(scores)), key=lambda place: -scores[place])[:kept]
        logits = {}
        for place in best:
            owner = place // per_class
            logits[owner] = logits.get(owner, 0) + similarities[place]
        denominator = 1e-8 + sum(logit.exp() for logit in logits.values())
        terms.append(-(logits[label].exp() / denominator + 1e-20).log())
    loss = sum(terms) / len(terms)
    if weight:
        terms = []
        for place, proxy in enumerate(proxies):
            similarities = proxies @ proxy
            logits = [similarities[c * per_class : (c + 1) * per_class].sum() for c in range(CLASSES)]
            terms.append(sum(logit.exp() for logit in logits).log() - logits[place // per_class])
        loss = loss + weight * sum(terms) / len(terms)
    return loss


def anchored_positives(cosines, labels):
    """Proxy-Anchor's and Proxy-AN's positive term, alpha 32 and margin 0.1."""
    present = sorted(set(labels))
    sums = [
        sum((-32 * (row[c] - 0.1)).exp() for row, y in zip(cosines, labels, strict=True) if y == c) for c in present
    ]
    return sum((1 + total).log() for total in sums) / len(present)


def proxy_an(embeddings, proxies, labels):
    cosines, labels = embeddings @ unit(proxies).T, labels.tolist()
    terms = [
        (1 + sum((32 * (row[c] + 0.1)).exp() for c in range(CLASSES) if c != y)).log()
        for row, y in zip(cosines, labels, strict=True)
    ]
    return anchored_positives(cosines, labels) + sum(terms) / len(terms)


def proxy_anchor(embeddings, proxies, labels):
    cosines, labels = embeddings @ unit(proxies).T, labels.tolist()
    terms = [
        (1 + sum((32 * (row[c] + 0.1)).exp() for row, y in zip(cosines, labels, strict=True) if y != c)).log()
        for c in range(CLASSES)
    ]
    return anchored_positives(cosines, labels) + sum(terms) / CLASSES


def proxy_nca(embeddings, proxies, labels):
    terms = []
    for embedding, y in zip(3 * embeddings, labels.tolist(), strict=True):
        distances = [((embedding - proxy) ** 2).sum() for proxy in 3 * unit(proxies)]
        terms.append(distances[y] + sum((-distances[c]).exp() for c in range(CLASSES) if c != y).log())
    return sum(terms) / len(terms)


class ProxyGML:
    """ProxyGML's recipe on one dataset (docs/protocols.md), with the Adam of torch 1.2."""

    head_only, rests, clip, pooling, head, momentum = {2}, False, None, "average", "linear", 0.1

    def __init__(self, name):
        self.fixed_statistics, self.proxy_rate = (False, 0.3) if name == "sop" else (True, 0.03)
        self.weight = 0.0 if name == "sop" else 0.3

    def rates(self, epoch):
        factor = 0.1 if 20 <= epoch < 40 else 0.01 if epoch >= 40 else 1.0
        return 1e-4 * factor, self.proxy_rate * factor

    def loss(self, embeddings, proxies, labels):
        return proxy_gml(embeddings, proxies, labels, self.weight)

    def move(self, value, gradient, state, rate):
        gradient = gradient + 1e-4 * value
        state["t"] += 1
        state["m"] = 0.9 * state["m"] + 0.1 * gradient
        state["v"] = 0.999 * state["v"] + 0.001 * gradient**2
        size = rate * math.sqrt(1 - 0.999 ** state["t"]) / (1 - 0.9 ** state["t"])
        value -= size * state["m"] / (state["v"].sqrt() + 0.01)


# Facts: the network's learning rate, the proxies' times that, epochs from one decay to the next, statistics fixed.
RATES = {
    "cub": (1.5e-4, 500, 5, True),
    "cars": (1e-4, 100, 5, True),
    "sop": (5e-4, 100, 20, False),
    "inshop": (5e-4, 100, 10, False),
}


class ProxyAN:
    """Proxy-AN's recipe on one dataset with one of its networks and losses."""

    head_only, rests, clip = {1, 2}, True, 10.0

    def __init__(self, name, loss):
        self.rate, self.times, self.every, self.fixed_statistics = RATES[name.rsplit("_", 1)[-1]]
        self.pooling = "none" if "deit" in name else "average and maximum"
        self.head = "normalised"
        self.momentum = 0.9 if "bn_inception" in name else 0.1
        self.loss = {"proxy_an": proxy_an, "proxy_anchor": proxy_anchor, "proxy_nca": proxy_nca}[loss]

    def rates(self, epoch):
        rate = self.rate
        for begun in range(2, epoch + 1):
            if (begun - 1) % self.every == 0:
                rate *= 0.5
        return rate, rate * self.times

    def move(self, value, gradient, state, rate):
        value *= 1 - rate * 1e-4
        state["t"] += 1
        state["m"] = 0.9 * state["m"] + 0.1 * gradient
        state["v"] = 0.999 * state["v"] + 0.001 * gradient**2
        mean, square = state["m"] / (1 - 0.9 ** state["t"]), state["v"] / (1 - 0.999 ** state["t"])
        value -= rate * mean / (square.sqrt() + 1e-8)


class Plain:
    """The plain statement of a training that starts with copies of `network`'s and `criterion`'s weights."""

    def __init__(self, facts, network, criterion):
        self.facts, self.clipped = facts, 0
        self.backbone = copy.deepcopy(network.backbone)
        self.norms = []
        for name, module in list(self.backbone.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                parent, _, own = name.rpartition(".")
                self.norms.append(PlainNorm(module, facts.momentum))
                setattr(self.backbone.get_submodule(parent), own, self.norms[-1])
        self.head = {
            name: value.detach().clone().requires_grad_()
            for name, value in network.named_parameters()
            if not name.startswith("backbone.")
        }
        self.head_norm = PlainNorm(network.norms[1], 0.1) if facts.head == "normalised" else None
        if self.head_norm:
            self.head |= {"norms.1.weight": self.head_norm.weight, "norms.1.bias": self.head_norm.bias}
        self.proxies = criterion.proxies.detach().clone().requires_grad_()
        self.states: dict[Tensor, dict] = {}
        self.had_gradients = False

    def values(self) -> dict[str, Tensor]:
        found = {f"backbone.{name}": value for name, value in self.backbone.state_dict().items()} | self.head
        if self.head_norm:
            found |= {f"norms.1.{name}": value for name, value in self.head_norm.state_dict().items()}
        return found | {"proxies": self.proxies}

    def embed(self, images):
        features = self.backbone(images)
        if self.facts.pooling != "none":
            places = features.flatten(2)
            features = places.sum(2) / places.shape[2]
            if self.facts.pooling == "average and maximum":
                features = features + places.max(2).values
        if self.head_norm:
            centred = features - features.mean(1, keepdim=True)
            scaled = centred / ((centred**2).mean(1, keepdim=True) + 1e-5).sqrt()
            features = self.head_norm(scaled * self.head["norms.0.weight"] + self.head["norms.0.bias"])
        return unit(features @ self.head["embedding.weight"].T + self.head["embedding.bias"])

    def step(self, epoch, images, labels):
        """Take a step and give the loss."""
        facts, frozen = self.facts, epoch in self.facts.head_only
        for norm in self.norms:
            norm.by_batch = not facts.fixed_statistics
        loss = facts.loss(self.embed(images), self.proxies, labels)
        backbone, rest = list(self.backbone.parameters()), [*self.head.values(), self.proxies]
        moving = rest if frozen else [*backbone, *rest]
        gradients = dict(zip(moving, torch.autograd.grad(loss, moving), strict=True))
        if frozen and not facts.rests and self.had_gradients:
            gradients |= {value: torch.zeros_like(value) for value in backbone}
        self.had_gradients |= not frozen
        rates = facts.rates(epoch)
        with torch.no_grad():
            for value, gradient in gradients.items():
                if facts.clip:
                    self.clipped += int((gradient.abs() > facts.clip).sum())
                    gradient = gradient.clamp(-facts.clip, facts.clip)
                state = self.states.setdefault(
                    value, {"t": 0, "m": torch.zeros_like(value), "v": torch.zeros_like(value)}
                )
                facts.move(value, gradient, state, rates[1] if value is self.proxies else rates[0])
        return loss.item()


def deit_forward(backbone, images):
    """The mean of class and distillation token, after the last norm."""
    patches = backbone.patch_embed(images)
    first = torch.cat([backbone.cls_token, backbone.dist_token], 1).expand(len(images), -1, -1)
    tokens = backbone.norm(backbone.blocks(torch.cat([first, patches], 1) + backbone.pos_embed))
    return (tokens[:, 0] + tokens[:, 1]) / 2


def batches(paper, epoch, size):
    """An epoch's batches, from its number: images of noise and labels; one of large images, two of small ones, the
    last of them smaller."""
    generator = torch.Generator().manual_seed(epoch)
    for images in (4,) if size > 9 else (6, 4):
        if paper == "proxygml":
            labels = torch.randint(CLASSES, (images,), generator=generator)
        else:
            labels = torch.randperm(CLASSES, generator=generator)[: images // 2].repeat_interleave(2)
        # Of a class's own colour, so that there is something to learn.
        noise = torch.randn(images, 3, size, size, generator=generator, dtype=torch.float64)
        yield noise + torch.stack([labels, labels % 2, labels % 3], 1)[:, :, None, None] / 2, labels


@torch.no_grad()
def pretrain_statistics(backbone, images):
    """Give batch norms the running statistics of a batch, as pretrained ones have some that fit."""
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    backbone(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


class Trajectories:
    """Our parts and the plain statement, side by side."""

    def __init__(self, paper, name, loss, backbone, monkeypatch, **changes):
        params = {"proxygml": GML, "proxy_an": AN}[paper]
        self.paper, self.size = paper, backbone.size
        self.recipe = with_values(params.recipes[name], {"dimension": DIMENSION} | changes)
        monkeypatch.setattr(networks, "submodule", lambda package, name: SimpleNamespace(Backbone=backbone))
        torch.manual_seed(0)
        self.network = EmbeddingNetwork(self.recipe).double()
        module, settings = params.loss(loss)
        if paper == "proxygml":
            settings = settings | {"proxies_per_class": min(settings["proxies_per_class"], PROXIES), "ratio": RATIO}
        self.criterion = build_loss(module, settings, CLASSES, DIMENSION, "test").double()
        with torch.no_grad():
            # Short vectors before they are scaled to unit length have gradients large enough to be clipped.
            self.network.embedding.weight.mul_(0.3)
        pretrain_statistics(self.network.backbone, next(batches(paper, 0, self.size))[0])
        self.optimiser = build_optimiser(self.recipe, self.network, self.criterion)
        facts = ProxyGML(name) if paper == "proxygml" else ProxyAN(name, loss)
        self.plain = Plain(facts, self.network, self.criterion)
        if backbone is DeiT:
            self.plain.backbone.forward = lambda images: deit_forward(self.plain.backbone, images)

    def differences(self, epochs) -> Iterator[float]:
        """After each step the largest difference of loss, weights, running statistics and proxies.

        The LayerNorm's bias, which the head's batch norm takes away again, has no gradient but for rounding, and Adam
        divides that by its size; so this bias, and the running mean that it shifts, count a thousandth.
        """
        idle = {"norms.0.bias", "norms.1.running_mean"}
        for epoch in epochs:
            set_learning_rates(self.optimiser, self.recipe, build_schedule(self.recipe, 1)(epoch, 1))
            set_trainable(self.network, self.recipe, epoch)
            for images, labels in batches(self.paper, epoch, self.size):
                loss = training_step(
                    self.recipe,
                    self.network,
                    self.criterion,
                    self.optimiser,
                    images,
                    labels,
                    CPU,
                    prepare=lambda pixels, recipe, device: pixels,
                )
                assert loss.dtype == torch.float64
                found = [abs(loss.item() - self.plain.step(epoch, images, labels))]
                ours = self.network.state_dict() | {"proxies": self.criterion.proxies}
                plain = self.plain.values()
                counted = {name for name in ours if not name.endswith("num_batches_tracked")}
                assert counted == plain.keys()
                apart = {name: (ours[name] - plain[name]).abs().max().item() for name in counted}
                yield max(found + [apart[name] / (1000 if name in idle else 1) for name in counted])


CASES = [
    *(("proxygml", name, f"proxy_gml_{name}") for name in GML.recipes),
    *(("proxy_an", name, loss) for name in AN.recipes for loss in AN.losses if loss == "proxy_an" or "_" not in name),
]


LARGE = [
    ("proxygml", "cub", "proxy_gml_cub", BNInception),
    ("proxy_an", "cars", "proxy_an", ResNet50),
    ("proxy_an", "bn_inception_cub", "proxy_anchor", BNInception),
    ("proxy_an", "deit_small_distilled_cub", "proxy_nca", DeiT),
]


def eventful(recipe):
    """The first epochs, with freezing and thawing, and the last one before each decay and the first one after."""
    every = recipe.schedule["every"]
    decays = recipe.schedule["at"] or range(1 + every, recipe.epochs + 1, every)
    return sorted({1, 2, 3, 4, *decays, *(epoch - 1 for epoch in decays), recipe.epochs})


@pytest.mark.parametrize(("paper", "name", "loss"), CASES)
def test_every_recipe_trains_as_the_paper_says(paper, name, loss, monkeypatch):
    both = Trajectories(paper, name, loss, Vectors if "deit" in name else Maps, monkeypatch)
    found = list(both.differences(eventful(both.recipe)))
    assert max(found) < 1e-9
    assert bool(both.plain.clipped) == (paper == "proxy_an")


@pytest.mark.parametrize(("paper", "name", "loss", "backbone"), LARGE)
def test_the_papers_networks_train_as_the_paper_says(paper, name, loss, backbone, monkeypatch):
    both = Trajectories(paper, name, loss, backbone, monkeypatch)
    first = next(both.network.backbone.parameters())
    before = first.detach().clone()
    found = list(both.differences((1, 2, 3, both.recipe.epochs)))
    assert max(found) < 1e-9
    assert (first - before).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("paper", "name", "key", "value"),
    [
        ("proxygml", "cub", "optimiser.epsilon_added", "after_correction"),
        ("proxygml", "cub", "optimiser.epsilon", 0.011),
        ("proxygml", "cub", "optimiser.name", "adamw"),
        ("proxygml", "cub", "optimiser.weight_decay", 0.0),
        ("proxygml", "cub", "frozen_gradients", "none"),
        ("proxygml", "cub", "head_only_epochs", [1]),
        ("proxygml", "cub", "head_only_epochs", []),
        ("proxygml", "cub", "batch_norm", "trained"),
        ("proxygml", "cub", "batch_norm", "fixed"),
        ("proxygml", "sop", "batch_norm", "fixed_statistics"),
        ("proxygml", "sop", "batch_norm_momentum", 0.9),
        ("proxygml", "cub", "clip_value", 0.01),
        ("proxygml", "cub", "schedule.at", [21, 40]),
        ("proxygml", "cub", "schedule.at", [20, 41]),
        ("proxygml", "cub", "pooling", "average_and_maximum"),
        ("proxy_an", "cub", "optimiser.epsilon_added", "before_correction"),
        ("proxy_an", "cub", "optimiser.name", "adam"),
        ("proxy_an", "cub", "head_only_epochs", [1]),
        ("proxy_an", "cub", "batch_norm", "trained"),
        ("proxy_an", "cub", "batch_norm", "fixed"),
        ("proxy_an", "sop", "batch_norm", "fixed_statistics"),
        ("proxy_an", "bn_inception_sop", "batch_norm_momentum", 0.1),
        ("proxy_an", "cub", "clip_value", None),
        ("proxy_an", "cub", "clip_value", 9.0),
        ("proxy_an", "cub", "schedule", {"name": "steps", "at": [5], "factor": 0.5}),
        ("proxy_an", "cub", "schedule.factor", 0.51),
        ("proxy_an", "cub", "pooling", "average"),
    ],
)
def test_no_key_is_without_effect(paper, name, key, value, monkeypatch):
    loss = f"proxy_gml_{name}" if paper == "proxygml" else "proxy_an"
    both = Trajectories(paper, name, loss, Maps, monkeypatch, **{key: value})
    assert any(difference > 1e-6 for difference in both.differences(eventful(both.recipe)))
