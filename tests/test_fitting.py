"""What photographs may be made of on their way to the network: fitted into a square, and shrunk as they are decoded."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from pipeline.base import checks
from pipeline.base.config import read_params
from pipeline.data.packed import DecodedImages, PackedImages, SourceImage, pack
from pipeline.training.images import centred, mean_colour
from pipeline.training.loading import CentredImages, training_batches, training_images
from pipeline.training.shrunk import ShrunkImages, open_images
from tests import GRID
from tests.test_images import PROXY_AN, PROXY_GML, photograph

RECIPE = PROXY_AN["cub"].model_copy(update={"input_size": 24, "test_resize": 28})
SIZES = [(300, 400), (400, 300), (500, 90), (40, 60), (64, 64)]


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A dataset of JPEG files of many shapes, and a PNG file."""
    monkeypatch.chdir(tmp_path)

    def source(number, kind, size):
        content = io.BytesIO()
        Image.fromarray(photograph(number, *size)).save(content, kind, **({"quality": 95} if kind == "JPEG" else {}))
        return SourceImage(f"{number}.{kind}", number, str(number), "", content.getvalue())

    sources = [source(number, "JPEG", size) for number, size in enumerate(SIZES)]
    pack([*sources, source(len(SIZES), "PNG", (120, 200))], tmp_path / "data/packed/photos")
    return tmp_path / "data/packed/photos"


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_test_images_are_fitted_as_the_recipe_says(packed, fit):
    recipe = RECIPE.model_copy(update={"test_fit": fit})
    opened = open_images("photos", recipe)
    found = CentredImages(opened, range(len(opened)), 3, recipe, 0)
    for number, (height, width) in enumerate(SIZES):
        pixels, image = opened.decoded(number, 3), found[number]
        assert image.shape == (3, 24, 24) and image.dtype == torch.uint8
        whole = torch.from_numpy(pixels).permute(2, 0, 1)
        if fit == "crop":
            assert torch.equal(image, centred(pixels, 28, 24))
        elif fit == "squash":
            expected = functional.resize(whole, [24, 24], antialias=True)
            assert (image.int() - expected.int()).abs().max() <= 1
        else:
            sides = max(1, 24 * height // max(height, width)), max(1, 24 * width // max(height, width))
            top, left = (24 - sides[0]) // 2, (24 - sides[1]) // 2
            expected = functional.resize(whole, list(sides), antialias=True)
            inside = image[:, top : top + sides[0], left : left + sides[1]]
            assert (inside.int() - expected.int()).abs().max() <= 1
            border = torch.ones(24, 24, dtype=torch.bool)
            border[top : top + sides[0], left : left + sides[1]] = False
            # ImageNet's mean, which becomes zero.
            assert (image[:, border].float().mean(1) == torch.tensor([124.0, 116.0, 104.0])).all() or not border.any()


def test_the_colour_of_the_border_is_the_mean_as_images_are_decoded():
    assert mean_colour(PROXY_GML, 3) == [128, 117, 104]  # its mean is BGR, of 0 to 255
    grey = PROXY_AN["cub"].model_copy(update={"mean": [0.5]})
    assert mean_colour(grey, 1) == [128] and mean_colour(grey, 3) == [128] * 3


def test_images_are_shrunk_as_they_are_decoded(packed):
    shrunk, whole = ShrunkImages(packed, 64), PackedImages(packed)
    assert type(open_images("photos", RECIPE)) is PackedImages
    assert open_images("photos", RECIPE.model_copy(update={"decoded_size": 64})).entries == shrunk.entries
    expected = [(64, 85), (85, 64), (355, 64), (40, 60), (64, 64), (64, 106)]
    for number, (height, width) in enumerate(expected):
        small, large = shrunk.decoded(number, 3), whole.decoded(number, 3)
        assert small.shape == (height, width, 3) and (shrunk.entries[number].height, small.dtype) == (height, np.uint8)
        if large.shape == small.shape:
            assert np.array_equal(small, large)
            continue
        same = functional.resize(torch.from_numpy(large).permute(2, 0, 1), [height, width], antialias=True)
        apart = (torch.from_numpy(small).permute(2, 0, 1).float() - same.float()).abs()
        # These pictures are noise at every scale, the hardest case.
        assert apart.mean() < 6 and apart.max() < 60
        # Of JPEG files other pixels, of others the same.
        assert bool(apart.max() > 1) == (number < len(SIZES))
        assert shrunk.decoded(number, 1).shape == (height, width, 1)
    numbers = range(len(expected))
    sizes = {opened: len(DecodedImages(opened, numbers, 3)._images[0].base) for opened in (shrunk, whole)}
    assert sizes[shrunk] == 3 * sum(height * width for height, width in expected)
    assert sizes[whole] > 6 * sizes[shrunk]


@pytest.mark.parametrize("workers", [0, 1])
def test_training_crops_from_the_shrunk_images(packed, workers, monkeypatch):
    recipe = RECIPE.model_copy(update={"decoded_size": 64, "batch_size": 3, "samples_per_class": None})
    opened = open_images("photos", recipe)
    labels = torch.arange(len(opened))

    class Batches:
        steps = 1

        def epoch(self, epoch):
            return [np.arange(len(opened))]

    loaded = [
        next(iter(training_batches(images, Batches(), range(1, 2), workers, torch.device("cpu"))))[0]
        for images in [training_images(opened, range(len(opened)), labels, 3, recipe, 0)] * 2
    ]
    assert loaded[0].shape == (6, 3, 24, 24) and torch.equal(*loaded)
    whole = training_images(PackedImages(packed), range(len(opened)), labels, 3, recipe, 0)
    (kept, _) = next(iter(training_batches(whole, Batches(), range(1, 2), 0, torch.device("cpu"))))
    # The same draws from smaller pictures: nearly the same crops.
    assert 0 < (loaded[0].float() - kept.float()).abs().mean() < 25


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decoded_size": 27}, "decoded_size: it is less than input_size or test_resize"),
        ({"decoded_size": 64, "test_fit": "stored", "test_resize": None}, "decoded_size: with the test_fit stored"),
        ({"test_fit": "pad"}, "test_resize: with the test_fit pad it has no effect, remove it"),
        ({"test_resize": None}, "test_resize: this key is missing"),
    ],
)
def test_what_cannot_be_is_refused(changes, said):
    lines = checks._contradictions(RECIPE.model_copy(update=changes))
    assert [line for line in lines if line.startswith(said)], lines
    assert read_params(GRID / "params.yaml").recipes["glyphs"].test_fit == "stored"
