"""Pixels: crops against torchvision's and Pillow's, what the networks take against the papers' transforms, and the
datasets that give them in batches."""

import io
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp, kstest
from torchvision import transforms
from torchvision.transforms import functional

from pipeline.base.config import read_params
from pipeline.base.files import BadInputError
from pipeline.data.packed import DecodedImages, PackedImages, SourceImage, pack
from pipeline.networks.network import MEMORY_FORMATS
from pipeline.training import loading
from pipeline.training.augmentations.random_resized_crop import ATTEMPTS, CROP_DRAWS, boxes
from pipeline.training.batches import ClassBalanced, Shuffled
from pipeline.training.images import centred, cropped, normalise
from pipeline.training.loading import CentredImages, CroppedImages, test_images, training_batches, training_images
from tests import GRID

ROOT = Path(__file__).parent.parent
PROXY_GML = read_params(ROOT / "papers/proxygml/params.yaml").recipes["cub"]
PROXY_AN = read_params(ROOT / "papers/proxy_an/params.yaml").recipes
SMALL = PROXY_GML.model_copy(update={"input_size": 24, "test_resize": 28})
CPU = torch.device("cpu")
test_images.__test__ = False  # a stage's word, not a test


def photograph(seed, height, width):
    """Noise at every scale, uint8 (height, width, 3)."""
    generator = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for scale in (1, 4, 16, 64):
        shape = (height // scale + 1, width // scale + 1, 3)
        coarse = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
        pixels += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 4
    return pixels.astype(np.uint8)


def draws_of(count, seed=0):
    return np.random.default_rng(seed).random((count, CROP_DRAWS))


def torchvision_boxes(height, width, count, smallest=0.08):
    torch.manual_seed(0)
    image = torch.empty(0, height, width)
    crop = transforms.RandomResizedCrop
    return np.array([crop.get_params(image, (smallest, 1.0), (3 / 4, 4 / 3)) for _ in range(count)])


@pytest.mark.parametrize(
    ("height", "width"), [(375, 500), (500, 333), (90, 300), (300, 70)], ids=["photograph", "tall", "wide", "narrow"]
)
def test_boxes_are_distributed_as_torchvisions(height, width):
    ours = boxes(np.tile([height, width], (4000, 1)), draws_of(4000), 0.08)
    theirs = torchvision_boxes(height, width, 4000)
    features = {
        "area": lambda found: found[:, 2] * found[:, 3],
        "aspect": lambda found: found[:, 3] / found[:, 2],
        "top": lambda found: found[:, 0] / np.maximum(1, height - found[:, 2]),
        "left": lambda found: found[:, 1] / np.maximum(1, width - found[:, 3]),
    }
    for name, feature in features.items():
        # Two samples of 4000 differ by 0.044 in one test of a thousand.
        assert ks_2samp(feature(ours), feature(theirs)).statistic < 0.044, name


def test_a_box_has_a_uniform_share_of_the_area_and_a_log_uniform_aspect():
    """Where every draw fits: a square image and at most half of its area."""
    draws = draws_of(4000)
    draws[:, :ATTEMPTS] /= 2
    found = boxes(np.tile([1000, 1000], (4000, 1)), draws, 0.08)
    share = found[:, 2] * found[:, 3] / 1e6
    assert kstest((share - 0.08) / 0.46, "uniform").statistic < 0.03
    aspect = np.log(found[:, 3] / found[:, 2]) / np.log(4 / 3)
    assert kstest((aspect + 1) / 2, "uniform").statistic < 0.03


@settings(max_examples=200)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.01, 1), st.integers(0, 2**32))
def test_boxes_lie_inside_images_of_any_size(height, width, smallest, seed):
    top, left, tall, wide = boxes(np.array([[height, width]] * 20), draws_of(20, seed), smallest).T
    assert (top >= 0).all() and (left >= 0).all() and (tall >= 1).all() and (wide >= 1).all()
    assert (top + tall <= height).all() and (left + wide <= width).all()


@settings(max_examples=200)
@given(st.integers(1, 400), st.integers(1, 400))
def test_where_no_draw_fits_the_box_is_torchvisions_central_one(height, width):
    """Four times the area, which both have to take, fits nowhere."""
    draws = draws_of(1)
    draws[:, :ATTEMPTS] = 0
    found = boxes(np.array([[height, width]]), draws, 4.0)[0].tolist()
    crop = transforms.RandomResizedCrop
    assert found == list(crop.get_params(torch.empty(0, height, width), (4.0, 4.0), (3 / 4, 4 / 3)))


def test_the_first_draw_that_fits_is_taken():
    draws = np.full((1, CROP_DRAWS), 0.5)
    draws[0, :3] = 0.999, 0.999, 0.1  # whole areas, of
    draws[0, ATTEMPTS : ATTEMPTS + 2] = 0.0, 1 - 1e-9  # aspects that do not fit
    draws[0, -2:] = 0.0, 1 - 1e-9
    # 0.08 + 0.92 * 0.1 = 0.172 of the area, square: 0.415 of each side, at the top right.
    assert boxes(np.array([[100, 100]]), draws, 0.08).tolist() == [[0, 59, 41, 41]]


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(("height", "width"), [(375, 500), (301, 453), (60, 47)])
def test_crops_are_within_two_levels_of_pillows(height, width, channels):
    pixels = photograph(height, height, width)[..., :channels]
    image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
    for top, left, tall, wide in boxes(np.tile([height, width], (20, 1)), draws_of(20), 0.08):
        theirs = np.asarray(functional.resized_crop(image, top, left, tall, wide, [224, 224])).reshape(224, 224, -1)
        ours = cropped(pixels, (top, left, tall, wide), 224).permute(1, 2, 0).numpy()
        difference = np.abs(ours.astype(int) - theirs)
        # Each of two passes, along rows and columns, may round one level otherwise.
        assert difference.max() <= 2 and (difference == 0).mean() > 0.9 and (difference < 2).mean() > 0.999


@pytest.mark.parametrize(
    ("height", "width", "resize", "size"),
    [
        (375, 500, 256, 224),
        (500, 333, 256, 224),
        (256, 341, 256, 224),
        (301, 453, 72, 64),
        (97, 55, 256, 224),
        (40, 40, 256, 255),
        (225, 226, 225, 224),
        (224, 224, 224, 224),
        (9, 200, 33, 32),
    ],
)
def test_central_crops_have_torchvisions_size_and_place(height, width, resize, size):
    pixels = photograph(1, height, width)
    ours = centred(pixels, resize, size).permute(1, 2, 0).numpy()
    theirs = np.asarray(functional.center_crop(functional.resize(Image.fromarray(pixels), resize), size))
    assert ours.shape == theirs.shape == (size, size, 3)
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 2 and (difference == 0).mean() > 0.9
    if min(height, width) == resize:
        assert not difference.any(), "nothing is resized"
    # One pixel beside it is another picture, so the place is right too.
    assert np.abs(np.roll(ours, 1, 0).astype(int) - theirs).mean() > 4 * difference.mean() + 0.5


def paper_transforms():
    """The papers' transforms behind crop and flip, as the fact files tell them, and the recipe of each."""
    swap = transforms.Lambda(lambda tensor: tensor[[2, 1, 0]])
    whole_levels = transforms.Lambda(lambda tensor: tensor * 255)
    to_tensor = transforms.ToTensor()
    return {
        "ProxyGML": (
            PROXY_GML,
            [to_tensor, swap, whole_levels, transforms.Normalize([104.0, 117.0, 128.0], [1.0, 1.0, 1.0])],
        ),
        "Proxy-AN": (
            PROXY_AN["cub"],
            [to_tensor, transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])],
        ),
        "Proxy-AN, BN-Inception": (
            PROXY_AN["bn_inception_sop"],
            [to_tensor, swap, transforms.Normalize([0.4078, 0.4588, 0.502], [0.0039, 0.0039, 0.0039])],
        ),
        "Proxy-AN, DeiT": (
            PROXY_AN["deit_small_distilled_inshop"],
            [to_tensor, transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])],
        ),
    }


@pytest.mark.parametrize("name", paper_transforms())
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_networks_take_what_the_papers_give_them(name, memory_format):
    recipe, steps = paper_transforms()[name]
    pixels = [photograph(seed, 30, 40) for seed in range(3)]
    batch = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in pixels])
    ours = normalise(batch, recipe.model_copy(update={"memory_format": memory_format}), CPU)
    theirs = torch.stack([transforms.Compose(steps)(Image.fromarray(image)) for image in pixels])
    assert ours.dtype == torch.float32 and ours.is_contiguous(memory_format=MEMORY_FORMATS[memory_format])
    # Values of up to 150; theirs went to 0..1 and back.
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=5e-5)


def test_grey_images_are_normalised_by_one_number():
    recipe = read_params(GRID / "params.yaml").recipes["glyphs"]
    batch = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.allclose(normalise(batch, recipe, CPU), (batch / 255 - 0.3) / 0.4)


def encoded(pixels, format="JPEG", mode="RGB"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format)
    return buffer.getvalue()


def pack_twelve(folder):
    """Twelve images of three classes, of many sizes; one is a grey JPEG, one a palette PNG, one smaller than a crop."""
    sizes = [(50, 40), (33, 61), (20, 18), (45, 45)] * 3
    kinds = {4: ("JPEG", "L"), 5: ("PNG", "P")}
    sources = [
        SourceImage(
            f"{place}.jpg", place % 3, str(place % 3), "", encoded(photograph(place, *size), *kinds.get(place, ()))
        )
        for place, size in enumerate(sizes)
    ]
    pack(sources, folder)
    return PackedImages(folder)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_twelve(tmp_path_factory.mktemp("images") / "packed")


LABELS = torch.arange(12) % 3
ORDER = list(range(12))


def loaded(packed, batches, workers=0, epochs=2, recipe=SMALL):
    """Pixels and labels of all batches, one image after another."""
    given = training_images(packed, ORDER, LABELS, 3, recipe, 5)
    assert isinstance(given, CroppedImages)
    loader = training_batches(given, batches, range(1, epochs + 1), workers, CPU)
    return [torch.cat(parts) for parts in zip(*loader, strict=True)]


def test_crops_do_not_depend_on_batch_size_workers_or_memory(packed, monkeypatch):
    pixels, labels = loaded(packed, Shuffled(12, 4, 5))
    assert pixels.shape == (24, 3, 24, 24) and pixels.dtype == torch.uint8
    for batch_size, workers in ((12, 0), (5, 2), (1, 1)):
        again = loaded(packed, Shuffled(12, batch_size, 5), workers)
        assert torch.equal(again[0], pixels) and torch.equal(again[1], labels)
    assert not torch.equal(pixels[labels == 0][:4], pixels[labels == 0][4:]), "another crop in another epoch"
    # Where they do not fit into the memory they are decoded as they are read.
    assert isinstance(training_images(packed, ORDER, LABELS, 3, SMALL, 5).source, DecodedImages)
    monkeypatch.setattr(loading, "available_memory", lambda: 1000)
    assert training_images(packed, ORDER, LABELS, 3, SMALL, 5).source is packed
    for workers in (0, 2):
        again = loaded(packed, Shuffled(12, 4, 5), workers)
        assert torch.equal(again[0], pixels) and torch.equal(again[1], labels)


def test_class_balanced_crops_do_not_depend_on_workers(packed):
    found = [loaded(packed, ClassBalanced(LABELS.numpy(), 6, 3, 5, 2), workers) for workers in (0, 2)]
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert all(len(three.unique()) == 1 for three in found[0][1].view(-1, 3))


def test_every_image_is_its_own_crop_mirrored_or_not(packed):
    """Whole images, so that nothing but the mirroring is random."""
    crop = [{"name": "random_resized_crop", "smallest": 1.0}]
    recipe = SMALL.model_copy(update={"augment": [*crop, {"name": "flip"}]})
    mirrored = 0
    square = [3, 7, 11]  # 45 x 45: no other box than the whole has its area, where the aspect is near 1
    given = training_images(packed, square, LABELS[square], 3, recipe, 5)
    for epoch in range(1, 40):
        pixels, _ = given.finish(given.__getitems__((epoch, np.arange(3), np.arange(3))), CPU)
        for place, image in zip(square, pixels, strict=True):
            whole = cropped(packed.decoded(place, 3), np.array([0, 0, 45, 45]), 24).float()
            straight, turned = ((image.float() - side).abs().mean() for side in (whole, whole.flip(-1)))
            mirrored += bool(turned < straight)
    # 117 fair coins: mean 58.5, standard deviation 5.4.
    assert 40 < mirrored < 77
    still = training_images(packed, square, LABELS[square], 3, recipe.model_copy(update={"augment": crop}), 5)
    for epoch in range(1, 10):
        ours, theirs = (
            images.finish(images.__getitems__((epoch, np.arange(3), np.arange(3))), CPU)[0] for images in (still, given)
        )
        assert all(
            torch.equal(one, other) or torch.equal(one, other.flip(-1)) for one, other in zip(ours, theirs, strict=True)
        ), "only the mirroring differs"


def test_test_images_in_memory_equal_those_made_anew(packed, monkeypatch):
    whole = test_images(packed, ORDER, 3, SMALL, 0)
    assert isinstance(whole, torch.Tensor) and whole.shape == (12, 3, 24, 24)
    for number, image in enumerate(whole):
        assert torch.equal(image, centred(packed.decoded(number, 3), 28, 24))
    assert torch.equal(whole[4, 0], whole[4, 1]) and torch.equal(whole[4, 1], whole[4, 2]), "grey, in RGB"
    monkeypatch.setattr(loading, "available_memory", lambda: 1000)
    for workers in (0, 2):
        anew = test_images(packed, ORDER, 3, SMALL, workers)
        assert isinstance(anew, CentredImages)
        parts = list(anew.split(5))
        assert [len(part) for part in parts] == [5, 5, 2] and torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_in_one_line_whoever_decodes_it(packed, tmp_path, monkeypatch, workers):
    shutil.copytree(packed.folder, tmp_path / "packed")
    store = tmp_path / "packed/images.bin"
    content = bytearray(store.read_bytes())
    content[packed.entries[5].offset + 40] ^= 1
    store.write_bytes(content)
    damaged = PackedImages(tmp_path / "packed")
    message = f"{store}: image 5, 5.jpg: its bytes are not those that were packed: run the convert stage again"
    monkeypatch.setattr(loading, "available_memory", lambda: 1000)
    for read in (
        lambda: loaded(damaged, Shuffled(12, 4, 5), workers),
        lambda: list(test_images(damaged, ORDER, 3, SMALL, workers).split(5)),
    ):
        with pytest.raises(BadInputError) as error:
            read()
        assert str(error.value) == message


def test_no_image_makes_pytorch_warn(packed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in ORDER:
            for channels in (1, 3):
                centred(packed.decoded(number, channels), 28, 24)
