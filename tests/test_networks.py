"""Networks against the values of the papers' own code, their names against the published files, and their switches.

The golden values are of weights made by a rule from each entry's name, so that the wiring is checked without the
published files.
"""

import json
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d, batch_norm, layer_norm

from pipeline.base.config import read_params
from pipeline.base.files import BadInputError, sha256
from pipeline.base.precision import use_tf32
from pipeline.networks import weights
from pipeline.networks.backbones import deit_small_distilled, resnet50, small
from pipeline.networks.network import EmbeddingNetwork, computing, initial_network, load_network, pooled
from pipeline.networks.published import file_name
from pipeline.training.embedding import embed
from tests import GRID

ROOT = Path(__file__).parent.parent
GOLDEN = np.load(ROOT / "tests/golden/networks.npz")
PUBLISHED_NAMES = json.loads((ROOT / "tests/golden/bn_inception_keys.json").read_text())
DEFAULT = read_params(GRID / "params.yaml").recipes["glyphs"]
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
POOLINGS = {
    "small": "none",
    "bn_inception": "average_and_maximum",
    "resnet50": "average_and_maximum",
    "deit_small_distilled": "none",
    "mobilenet_v2": "average",
    "efficientnet_lite0": "average_and_maximum",
}
CLASSIFIERS = {"bn_inception": ["last_linear"], "resnet50": ["fc"], "deit_small_distilled": ["head", "head_dist"]}


pytestmark = pytest.mark.usefixtures("one_thread")


def recipe(backbone, **changes):
    return DEFAULT.model_copy(update={"backbone": backbone, "pooling": POOLINGS[backbone], **changes})


def generator(name):
    return np.random.default_rng(zlib.crc32(f"public{name}".encode()))


def entry(name, shape):
    """The value that the rule gives an entry of a state dict."""
    draw = generator(name)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        value = draw.uniform(0.5, 1.5, shape)
    elif name.endswith("running_mean"):
        value = draw.normal(0, 0.1, shape)
    elif len(shape) == 1:
        value = draw.uniform(0.8, 1.2, shape) if name.endswith("weight") else draw.normal(0, 0.05, shape)
    else:
        value = draw.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    return torch.from_numpy(value.astype(np.float32))


def by_rule(module):
    return {name: entry(name, value.shape) for name, value in module.state_dict().items()}


IMAGES = torch.from_numpy(generator("input").normal(0, 1, (2, 3, 224, 224)).astype(np.float32))


def assert_golden(found, name):
    expected = GOLDEN[name]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def publish(network, state, monkeypatch, folder):
    """Put `state` in the place of a network's published weights."""
    monkeypatch.chdir(folder)
    weights.FOLDER.mkdir(parents=True, exist_ok=True)
    path = weights.FOLDER / weights.FILES[network].name
    torch.save(state, path)
    monkeypatch.setitem(weights.FILES, network, weights.FILES[network]._replace(sha256=sha256(path)))
    return path


def test_bn_inception_loads_the_published_names_and_is_the_papers(tmp_path, monkeypatch):
    file = {name: entry(name, shape) for name, shape in PUBLISHED_NAMES.items() if "num_batches" not in name}
    old = {name: value[None] if "_bn." in name else value for name, value in file.items()}
    publish("bn_inception", old, monkeypatch, tmp_path)
    network = initial_network(recipe("bn_inception", pooling="average", pretrained=True, dimension=512)).eval()
    named = {name: list(value.shape) for name, value in network.backbone.state_dict().items()}
    assert named == {name: shape for name, shape in PUBLISHED_NAMES.items() if not name.startswith("last_linear")}
    network.embedding.load_state_dict(
        {name: entry(f"embedding.{name}", value.shape) for name, value in network.embedding.state_dict().items()}
    )
    with torch.inference_mode():
        maps = network.backbone(IMAGES)
        assert_golden(pooled(maps, "average"), "proxygml_features_mean")
        assert_golden(pooled(maps, "average_and_maximum"), "proxyan_pooled")
        assert_golden(network(IMAGES), "proxygml_output")


def test_resnet50_is_the_papers():
    backbone = resnet50.Backbone().eval()
    backbone.load_state_dict(by_rule(backbone))
    with torch.inference_mode():
        assert_golden(pooled(backbone(IMAGES), "average_and_maximum"), "resnet50_pooled")


def test_deit_gives_the_mean_of_timms_class_and_distillation_token():
    backbone, published = deit_small_distilled.Backbone().eval(), timm.create_model("deit_small_distilled_patch16_224")
    backbone.load_state_dict(by_rule(backbone))
    published.load_state_dict(by_rule(published))
    with torch.inference_mode():
        features = backbone(IMAGES[:1])
        assert features.shape == (1, deit_small_distilled.Backbone.features)
        # Without classes timm's own network gives the mean of its two classifiers' inputs.
        without = timm.create_model("deit_small_distilled_patch16_224", num_classes=0).eval()
        without.load_state_dict(by_rule(without))
        torch.testing.assert_close(features, without(IMAGES[:1]))
        # With the same linear layer on both tokens, a classifier's mean output is its output for the mean token.
        published.head_dist.load_state_dict(published.head.state_dict())
        published.set_distilled_training()
        of_class, of_distillation = published.train()(IMAGES[:1])
        torch.testing.assert_close(published.head(features), (of_class + of_distillation) / 2, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(of_class, of_distillation, atol=1e-1)


@pytest.mark.parametrize("momentum", [0.1, 0.9])
def test_the_recipes_momentum_reaches_all_norms_of_the_backbone_and_not_the_heads(momentum):
    network = EmbeddingNetwork(recipe("bn_inception", head="normalised", batch_norm_momentum=momentum))
    norms = [module for module in network.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 69 and {norm.momentum for norm in norms} == {momentum}
    head = [module for module in network.norms if isinstance(module, nn.BatchNorm1d)]
    assert [norm.momentum for norm in head] == [0.1]
    images = torch.randn(2, 3, 64, 64)
    first = network.backbone.conv1_7x7_s2(images).mean((0, 2, 3))
    network(images)
    torch.testing.assert_close(norms[0].running_mean, momentum * first)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_pretrained_weights_are_loaded_whole_or_not_at_all(tmp_path, monkeypatch, name):
    torch.manual_seed(0)
    state = {
        key: torch.rand(value.shape).to(value.dtype)
        for key, value in EmbeddingNetwork(recipe(name)).backbone.state_dict().items()
    }
    classifiers = {f"{classifier}.weight": torch.zeros(1000, 3) for classifier in CLASSIFIERS[name]}
    pretrained = recipe(name, pretrained=True)
    publish(name, state | classifiers, monkeypatch, tmp_path)
    torch.manual_seed(1)
    network = initial_network(pretrained)
    torch.manual_seed(1)
    other = EmbeddingNetwork(pretrained)
    assert torch.equal(network.embedding.weight, other.embedding.weight), "the head is drawn all the same"
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, state[key].to(value.dtype)), key

    missing = next(iter(state))
    extra = {"extra.weight": torch.zeros(1)}
    wrong = {key: value for key, value in state.items() if key != missing} | classifiers | extra
    path = publish(name, wrong, monkeypatch, tmp_path)
    with pytest.raises(BadInputError) as error:
        initial_network(pretrained)
    assert str(error.value).splitlines() == [
        f"{path} does not fit the network:",
        *sorted([f"  {missing} is missing", "  extra.weight is not in the network"]),
    ]
    path.unlink()
    with pytest.raises(BadInputError, match=f"is missing: run `python -m pipeline.download {name}`"):
        initial_network(pretrained)


def test_published_weights_are_of_networks_that_are_here():
    backbones = {path.stem for path in (ROOT / "pipeline/networks/backbones").glob("[!_]*.py")}
    assert weights.FILES.keys() < backbones
    assert {name for name in backbones if file_name(name)} == weights.FILES.keys()


def test_the_default_network_draws_and_names_as_ever():
    torch.manual_seed(7)
    network = initial_network(DEFAULT)
    torch.manual_seed(7)
    backbone, embedding = small.Backbone(), nn.Linear(1024, 64)
    expected = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    expected |= {f"embedding.{name}": value for name, value in embedding.state_dict().items()}
    assert list(network.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


def test_a_run_from_scratch_imports_no_other_networks_library_and_no_weights():
    code = (
        "import sys; from pathlib import Path; import pipeline.train; from pipeline.base.config import read_params; "
        "from pipeline.networks.network import initial_network; "
        "initial_network(read_params(Path('tests/grid/params.yaml'), 'glyphs').recipes['glyphs']); "
        "wanted = ('timm', 'torchvision', 'requests', 'pipeline.networks.weights'); "
        "print([name for name in wanted if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_pooling_is_adaptive_pooling_but_for_ties():
    maps = torch.randn(2, 5, 4, 3, dtype=torch.float64, generator=torch.manual_seed(0), requires_grad=True)

    def with_gradient(value):
        (gradient,) = torch.autograd.grad(value.square().sum(), maps)
        return value, gradient

    average = adaptive_avg_pool2d(maps, 1).flatten(1)
    for pooling, expected in (
        ("average", average),
        ("average_and_maximum", average + adaptive_max_pool2d(maps, 1).flatten(1)),
    ):
        torch.testing.assert_close(with_gradient(pooled(maps, pooling)), with_gradient(expected))
    tied = torch.tensor([[[[2.0, 1.0], [2.0, 0.0]]]], requires_grad=True)
    pooled(tied, "average_and_maximum").sum().backward()
    assert tied.grad.flatten().tolist() == [0.75, 0.25, 0.75, 0.25]


def test_heads():
    torch.manual_seed(0)
    features = torch.randn(6, 1024)
    kinds = ("linear", "normalised", "normalised_orthogonal")
    networks = {head: EmbeddingNetwork(recipe("small", head=head)) for head in kinds}
    for network in networks.values():
        network.backbone = nn.Identity()
    linear, normalised, orthogonal = networks.values()
    weight, bias = linear.embedding.weight, linear.embedding.bias
    torch.testing.assert_close(linear(features), nn.functional.normalize(features @ weight.T + bias))

    each = layer_norm(features, (1024,))
    across = batch_norm(each, None, None, training=True)
    for network in (normalised, orthogonal):
        assert list(network.state_dict()) == [
            *(f"norms.0.{name}" for name in ("weight", "bias")),
            *(f"norms.1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
            *(f"embedding.{name}" for name in ("weight", "bias")),
        ]
        torch.testing.assert_close(network(features), nn.functional.normalize(network.embedding(across)))

    for network, expected in ((normalised, False), (orthogonal, True)):
        weight = network.embedding.weight
        assert torch.allclose(weight @ weight.T, torch.eye(64), atol=1e-5) == expected
        assert (not network.embedding.bias.any()) == expected


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", POOLINGS)
def test_backward_has_deterministic_operations_only(name, device, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(0)
    network = EmbeddingNetwork(recipe(name, head="normalised")).to(device)
    channels, size = network.backbone.channels, {"small": 32, "deit_small_distilled": 224}.get(name, 64)
    images = torch.randn(3, channels, size, size, device=device)

    def gradients():
        network.zero_grad()
        network(images)[:, 0].sum().backward()
        return {key: value.grad.clone() for key, value in network.named_parameters()}

    torch.set_deterministic_debug_mode("error")
    try:
        first, second = gradients(), gradients()
    finally:
        torch.set_deterministic_debug_mode("default")
    for key, value in first.items():
        assert value.isfinite().all() and torch.equal(value, second[key]), key
    assert first["embedding.weight"].any() and next(iter(first.values())).any()


def test_kept_weights_load_without_the_published_ones(tmp_path):
    torch.manual_seed(0)
    kept = recipe("small", head="normalised", pretrained=True)
    network = EmbeddingNetwork(kept)
    torch.save(network.state_dict(), tmp_path / "kept.pt")
    loaded = load_network(kept, tmp_path / "kept.pt", torch.device("cpu"))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in network.state_dict().items())
    with pytest.raises(BadInputError, match=r"kept\.pt does not fit the recipe.*(?s:.*)norms\.0\.weight"):
        load_network(recipe("small"), tmp_path / "kept.pt", torch.device("cpu"))


def test_embedding_leaves_every_module_in_its_mode():
    network = EmbeddingNetwork(DEFAULT)
    network.backbone.blocks[1].eval()
    before = {name: module.training for name, module in network.named_modules()}
    images = torch.zeros(3, 1, 32, 32, dtype=torch.uint8)
    assert embed(network, images, DEFAULT, torch.device("cpu")).shape == (3, 64)
    assert {name: module.training for name, module in network.named_modules()} == before
    assert set(before.values()) == {True, False}


def test_bfloat16_rounds_the_network_and_not_the_length_of_embeddings():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 1, 32, 32), dtype=np.uint8))
    found = {}
    for precision in ("float32", "tf32", "bfloat16"):
        torch.manual_seed(0)
        changed = recipe("small", head="normalised", precision=precision)
        found[precision] = embed(EmbeddingNetwork(changed), images, changed, torch.device("cpu"))
        assert found[precision].dtype == torch.float32
        assert torch.allclose(found[precision].norm(dim=1), torch.ones(20), atol=1e-6)
    assert torch.equal(found["tf32"], found["float32"]), "a CPU has none"
    difference = (found["bfloat16"] - found["float32"]).norm(dim=1)
    assert 1e-4 < difference.max() < 0.05


def test_tf32_is_on_for_the_network_alone():
    def allowed():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    use_tf32(False)  # as at the start of every run
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for precision in ("float32", "tf32", "bfloat16"):
            with pytest.raises(ZeroDivisionError), computing(recipe("small", precision=precision)):
                assert allowed() == (precision == "tf32",) * 2
                raise ZeroDivisionError
            assert allowed() == (False, False)
