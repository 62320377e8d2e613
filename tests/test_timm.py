"""Networks of timm by their names: features, heads, freezing, repeatable steps, weights from the hub and one's own."""

import json
import re
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline import download
from pipeline.base.config import read_params
from pipeline.base.files import BadInputError, sha256
from pipeline.base.recipe import Weights
from pipeline.data.checksums import pins
from pipeline.networks import network as networks
from pipeline.networks import weights
from pipeline.networks.backbones.timm import input_of, published
from pipeline.networks.freezing import set_trainable
from pipeline.networks.network import EmbeddingNetwork, initial_network, make_backbone
from pipeline.networks.outline import backbone_problems
from pipeline.runs.key import training_key
from pipeline.runs.run import Run
from tests import GRID
from tests.server import Served, serve

DEFAULT = read_params(GRID / "params.yaml").recipes["glyphs"]
pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = {
    "resnet18": ("none", "average", "average_and_maximum"),
    "vit_tiny_patch16_224": ("none", "class_token", "average"),
    "deit_small_distilled_patch16_224": ("none", "class_token"),
    "convnext_atto": ("none", "average"),
    "mobilenetv2_100": ("none",),
    "tf_efficientnet_lite0": ("average",),
    "mobilenetv3_small_050": ("none", "average"),
    "swin_tiny_patch4_window7_224": ("average",),
}
MODERN = [
    "vit_small_patch16_224.dino",
    "vit_base_patch16_224.dino",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_base_patch14_reg4_dinov2.lvd142m",
    "vit_small_patch16_dinov3.lvd1689m",
    "vit_base_patch16_dinov3.lvd1689m",
    "convnext_small.dinov3_lvd1689m",
    "vit_base_patch16_clip_224.openai",
    "vit_base_patch32_clip_224.laion2b",
    "vit_base_patch16_siglip_224.webli",
    "vit_base_patch16_siglip_224.v2_webli",
    "vit_small_patch16_224.augreg_in21k_ft_in1k",
]


def recipe(name, pooling="none", **changes):
    size = 64 if name.startswith("swin") else 32
    values = {"backbone": f"timm/{name}", "pooling": pooling, "input_size": size}
    values |= {"mean": [0.5] * 3, "std": [0.5] * 3, "head": "normalised", "dimension": 8}
    return DEFAULT.model_copy(update=values | changes)


def as_timm_has_them(trunk, images, pooling):
    """The features of a pooling, by timm's own functions."""
    if pooling == "none":
        return trunk.forward_head(trunk.forward_features(images), pre_logits=True)
    features = trunk.forward_features(images)
    if pooling == "class_token":
        return features[:, 0]
    if features.dim() == 3:
        return timm.layers.global_pool_nlc(features, "avg", num_prefix_tokens=trunk.num_prefix_tokens)
    channels = 3 if getattr(trunk, "output_fmt", "") == "NHWC" else 1
    places = tuple({1, 2, 3} - {channels})
    average = features.mean(places)
    return average + features.amax(places) if pooling == "average_and_maximum" else average


@pytest.mark.parametrize(("name", "pooling"), [(name, pooling) for name, of in NAMES.items() for pooling in of])
def test_features_are_timms_and_steps_repeat(name, pooling):
    wanted = recipe(name, pooling)
    has_norms = name not in ("vit_tiny_patch16_224", "deit_small_distilled_patch16_224", "convnext_atto")
    has_norms = has_norms and not name.startswith("swin")
    fixed = wanted.model_copy(update={"batch_norm": "fixed_statistics", "head_only_epochs": [1]})
    assert backbone_problems(wanted) == []
    assert bool(backbone_problems(fixed)) == (not has_norms)
    torch.manual_seed(0)
    network = EmbeddingNetwork(wanted)
    images = torch.randn(2, 3, wanted.input_size, wanted.input_size)
    # Every layer is in evaluation mode but the head, so that both sides see the same statistics.
    backbone = network.backbone.eval()
    with torch.inference_mode():
        found = networks.pooled(backbone(images), pooling)
        torch.testing.assert_close(found, as_timm_has_them(backbone.trunk, images, pooling))
    assert found.shape == (2, backbone.features) and found.std() > 0

    set_trainable(network, fixed if has_norms else wanted, 1)
    assert all(parameter.requires_grad == (not has_norms) for parameter in network.backbone.parameters())
    set_trainable(network, fixed if has_norms else wanted, 2)
    statistics = [norm.running_mean.clone() for norm in networks.batch_norms(backbone)]
    assert bool(statistics) == has_norms

    def gradients():
        network.zero_grad()
        network(images)[:, 0].sum().backward()
        return {key: value.grad.clone() for key, value in network.named_parameters() if value.grad is not None}

    torch.set_deterministic_debug_mode("error")
    try:
        first, second = gradients(), gradients()
    finally:
        torch.set_deterministic_debug_mode("default")
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert next(iter(first.values())).any() and first["embedding.weight"].any()
    norms = networks.batch_norms(backbone)
    assert all(torch.equal(norm.running_mean, was) for norm, was in zip(norms, statistics, strict=True))


@pytest.mark.parametrize("name", MODERN)
def test_modern_names_resolve_without_a_download(name):
    ((address,), classifier) = published(name)
    assert address == f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors" and classifier
    small = name.startswith("vit_small")
    size = 224 // 14 * 14 if "patch14" in name else 224
    wanted = recipe(name, input_size=size, pretrained=True, **input_of(name))
    assert backbone_problems(wanted) == []
    assert [line.split(":")[0] for line in backbone_problems(wanted.model_copy(update={"mean": [9.0] * 3}))] == ["mean"]
    backbone = networks.outlined(wanted)
    assert backbone.features == (384 if small else 768)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone": "timm/resnet19"}, r"backbone: timm \S+ has no network resnet19: did you mean resnet18"),
        ({"backbone": "timm/tv_resnet50"}, r"backbone: timm/tv_resnet50 is an old name: write timm/resnet50\.tv_in1k"),
        ({"backbone": "timm/resnet18.nobody"}, r"has no weights resnet18\.nobody, choose among resnet18\.a1_in1k"),
        ({"backbone": "timm"}, "backbone: timm holds several networks: add the name"),
        ({"backbone": "mobilenet_v2/1"}, "backbone: mobilenet_v2 has no variants: write mobilenet_v2"),
        ({"pooling": "class_token"}, r"pooling class_token: it has no class token: use another pooling"),
        ({"backbone": "timm/coat_tiny", "pooling": "average"}, "its features are several maps: use pooling none"),
        ({"backbone": "timm/legacy_seresnet50.in1k", "pretrained": True}, "timm names no file on the hub"),
        ({"pretrained": True}, "timm/resnet18 does not say which weights: choose among timm/resnet18.a1_in1k"),
        (
            {"backbone": "timm/resnet18.a1_in1k", "pretrained": True, "pixel_maximum": 255.0},
            r"mean: timm/resnet18.a1_in1k was trained with \[123.675, 116.28, 103.53\] at pixel_maximum 255.0",
        ),
        (
            {"backbone": "timm/resnet18.a1_in1k", "pretrained": True, "channel_order": "bgr"},
            "channel_order: timm/resnet18.a1_in1k was trained with rgb",
        ),
        ({"backbone": "timm/vit_tiny_patch16_224", "input_size": 40}, "patches of 16 pixels: use a multiple"),
    ],
)
def test_what_does_not_fit_is_one_line(changes, said):
    lines = backbone_problems(recipe("resnet18", **changes))
    assert any(re.search(said, line) for line in lines), lines
    assert all("\n" not in line for line in lines)


def hub_file(path, name, **changes):
    """A file as the hub has it, with a classifier: random weights of timm's network."""
    torch.manual_seed(3)
    state = {key: value.contiguous() for key, value in timm.create_model(name).state_dict().items()} | changes
    save_file({key: value for key, value in state.items() if value is not None}, path)
    return state


def test_weights_come_from_the_hub_are_pinned_and_load_strictly(tmp_path, monkeypatch):
    name = "test_vit.r160_in1k"
    state = hub_file(tmp_path / "good", name)
    hub_file(tmp_path / "lacking", name, **{"blocks.0.norm1.weight": None})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["download", f"timm/{name}"])
    file = Path(f"data/weights/timm.{name}.safetensors")

    def fetch(content):
        with serve({f"/weights/{file.name}": Served(Path(content).read_bytes())}) as base:
            monkeypatch.setenv("PIPELINE_MIRRORS", base)
            download.main()

    with pytest.raises(BadInputError, match=r"blocks\.0\.norm1\.weight is missing"):
        fetch("lacking")
    assert not file.exists()
    fetch("good")
    assert pins() == {f"weights/{file.name}": sha256(Path("good"))}
    file.unlink()
    with pytest.raises(BadInputError, match=r"\(pinned in data/checksums\)"):
        fetch("lacking")
    fetch("good")

    size = timm.get_pretrained_cfg(name).input_size[-1]
    wanted = recipe(name, pretrained=True, input_size=size, **input_of(name))
    loaded = initial_network(wanted).backbone.trunk.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())
    # At another size the position embeddings are resampled and all else stays.
    other = initial_network(wanted.model_copy(update={"input_size": size // 2})).backbone.trunk.state_dict()
    assert {key for key in loaded if loaded[key].shape != other[key].shape} == {"pos_embed"}
    assert all(torch.equal(value, loaded[key]) for key, value in other.items() if key != "pos_embed")
    file.write_bytes(b"other")
    with pytest.raises(BadInputError, match="is not the published file"):
        initial_network(wanted)


def key_of(wanted):
    return training_key(Run("glyphs", wanted, "proxy_nca", {}, 0), "cpu")


def test_weights_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("packed/glyphs/index.csv", *(f"splits/glyphs/{part}.csv" for part in ("train", "test"))):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(name)
    weights.FOLDER.mkdir()
    state = hub_file(weights.FOLDER / "ours.safetensors", "resnet18")
    torch.save({"state_dict": state}, weights.FOLDER / "ours.pth")
    files = {name: sha256(weights.FOLDER / name) for name in ("ours.pth", "ours.safetensors")}
    own = {name: Weights(file=name, sha256=digest, drop=["fc."]) for name, digest in files.items()}
    wanted = {name: recipe("resnet18", pretrained=True, weights=of) for name, of in own.items()}
    for of in wanted.values():
        assert backbone_problems(of) == []
        loaded = initial_network(of).backbone.trunk.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in loaded.items())
    whole = own["ours.pth"].model_copy(update={"drop": []})
    with pytest.raises(BadInputError, match=r"ours\.pth does not fit(?s:.*)fc\.bias is not in the network"):
        initial_network(wanted["ours.pth"].model_copy(update={"weights": whole}))
    with pytest.raises(BadInputError, match=r"ours\.pth is not the file that the recipe means: SHA256 0000"):
        wrong = own["ours.pth"].model_copy(update={"sha256": "0" * 64})
        initial_network(wanted["ours.pth"].model_copy(update={"weights": wrong}))
    absent = own["ours.pth"].model_copy(update={"file": "none.pth"})
    with pytest.raises(BadInputError, match=r"none\.pth is missing: put the right one there, or correct the recipe's"):
        initial_network(wanted["ours.pth"].model_copy(update={"weights": absent}))
    # The key has their hash and what is left out, not the file's name; and the version of timm.
    key = key_of(wanted["ours.pth"])
    assert key.content["data"]["pretrained"] == {"sha256": files["ours.pth"], "without": ["fc."]}
    assert "ours" not in json.dumps(key.content)
    assert key.content["packages"]["timm"] == timm.__version__
    renamed = own["ours.pth"].model_copy(update={"file": "theirs.pth"})
    assert key_of(wanted["ours.pth"].model_copy(update={"weights": renamed})).digest == key.digest
    others = {
        key_of(wanted["ours.safetensors"]).digest,
        key_of(recipe("resnet18")).digest,
        key_of(recipe("resnet34")).digest,
    }
    assert len(others | {key.digest}) == 4


class Own(nn.Module):
    """A network in a file of one's own."""

    channels, features, spatial, input_size = 3, 4, False, None

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.layer(images).mean((2, 3))


class Maps(Own):
    def forward(self, images):
        return self.layer(images)


class Wide(Own):
    features = 5


class Lacking(nn.Module):
    channels, features, spatial = 3, 4, False


class Broken(Own):
    def __init__(self):
        raise RuntimeError("no such layer\nand a page more")


class Random(Own):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)


class Strict(Own):
    def forward(self, images):
        return super().forward(images.view(2, 3, 7, 7))


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        (Own, None),
        (Maps, r"own promises vectors \(2, 4\) and gives \(2, 4, 30, 30\): correct its attributes"),
        (Wide, r"own promises vectors \(2, 5\) and gives \(2, 4\)"),
        (Lacking, "own lacks the attribute input_size, add it to its class"),
        (Broken, "own cannot be built with pooling none and input_size 32: no such layer$"),
        (Random, r"own draws random numbers in training \(layer drop\)"),
        (Strict, "own does not take images of 32 x 32 with pooling none: "),
    ],
)
def test_a_network_of_ones_own_is_tried_before_any_image(backbone, said, monkeypatch):
    class Module:
        Backbone = backbone

    monkeypatch.setattr(networks, "submodule", lambda package, name: Module)
    lines = backbone_problems(recipe("", backbone="own"))
    assert (lines == []) if said is None else (len(lines) == 1 and re.search(f"^backbone: {said}", lines[0])), lines
    if said is None:
        assert make_backbone("own", "none", 32)(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
