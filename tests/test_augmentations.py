"""Augmentations against torchvision's functions, and the random numbers that they get."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from pipeline.base.recipe import Recipe
from pipeline.training.augment import Augment
from pipeline.training.augmentations import colour_jitter, flip, shift, torchvision
from pipeline.training.batches import Shuffled
from pipeline.training.loading import training_batches, training_images
from tests.test_images import LABELS, ORDER, SMALL, pack_twelve, photograph

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
CROP = {"name": "random_resized_crop", "smallest": 0.3}


def pictures(count=6, size=24):
    return torch.stack([torch.from_numpy(photograph(seed, size, size)).permute(2, 0, 1) for seed in range(count)])


def given(recipe=SMALL, **changes) -> Recipe:
    return recipe.model_copy(update=changes)


def test_flip_and_shift_do_what_their_numbers_say():
    images = pictures()
    found = flip.Augmentation(24)(images, torch.tensor([[0.49], [0.5], [0.0], [0.99], [0.2], [0.8]]))
    for place, (one, image) in enumerate(zip(found, images, strict=True)):
        assert torch.equal(one, image.flip(-1) if place in (0, 2, 4) else image), place
    draws = torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.999, 0.5], [0.5, 0.999], [0.2, 0.8], [0.999, 0.999]])
    found = shift.Augmentation(24, pixels=2)(images, draws)
    down, right = [2, 0, -2, 0, 1, -2], [2, 0, 0, -2, -2, -2]
    for one, image, y, x in zip(found, images, down, right, strict=True):
        expected = torch.zeros_like(image)
        expected[:, max(y, 0) : 24 + min(y, 0), max(x, 0) : 24 + min(x, 0)] = image[
            :, max(-y, 0) : 24 + min(-y, 0), max(-x, 0) : 24 + min(-x, 0)
        ]
        assert torch.equal(one, expected)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("draws", [[0.1, 0.9, 0.3], [1.0, 0.0, 1.0], [0.5, 0.5, 0.5]], ids=str)
def test_colour_jitter_is_torchvisions_in_one_order(channels, draws):
    """Within two levels: torchvision's functions are given floats, and nothing is rounded on the way."""
    images, settings = pictures()[:, :channels], {"brightness": 0.4, "contrast": 0.6, "saturation": 1.5}
    found = colour_jitter.Augmentation(24, **settings)(images, torch.tensor([draws] * 6, dtype=torch.float64))
    factors = [
        max(0.0, 1 - of) + (1 + of - max(0.0, 1 - of)) * draw for of, draw in zip(settings.values(), draws, strict=True)
    ]
    expected = images.float() / 255
    expected = functional.adjust_brightness(expected, factors[0])
    expected = functional.adjust_contrast(expected, factors[1])
    expected = functional.adjust_saturation(expected, factors[2])
    assert found.dtype == torch.uint8 and found.shape == images.shape
    assert (found.float() - expected * 255).abs().max() <= 2
    still = colour_jitter.Augmentation(24)(images, torch.rand(6, 3, dtype=torch.float64))
    assert torch.equal(still, images), "without settings nothing changes"


SETTINGS = {
    "ColorJitter": {"brightness": 0.4, "hue": 0.1},
    "GaussianBlur": {"kernel_size": 5},
    "RandomGrayscale": {"p": 0.7},
    "RandomAdjustSharpness": {"sharpness_factor": 2.0},
    "RandomAffine": {"degrees": 20.0, "translate": [0.2, 0.2]},
    "RandomPosterize": {"bits": 3},
    "RandomRotation": {"degrees": 20.0},
    "RandomSolarize": {"threshold": 128.0},
}


@pytest.mark.parametrize("name", torchvision.NAMES)
def test_torchvisions_transforms_draw_from_the_images_own_numbers(name):
    images = pictures(8)
    transform = torchvision.Augmentation(24, variant=name, **SETTINGS.get(name, {}))
    draws = torch.linspace(0.05, 0.95, 8, dtype=torch.float64)[:, None]
    state = torch.get_rng_state()
    found = transform(images, draws)
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator goes on as it was"
    assert found.dtype == torch.uint8 and found.shape == images.shape and not torch.equal(found, images)
    for rows in ([3], [5, 1]):
        assert torch.equal(transform(images[rows], draws[rows]), found[rows]), "whatever else is in the batch"


def test_each_augmentation_has_random_numbers_of_its_own():
    twice = Augment(given(augment=[{"name": "flip"}, {"name": "flip"}, {"name": "shift", "pixels": 2}]), 3)
    first, second, third = twice.draws(1, np.arange(50))
    assert not torch.equal(first, second) and third.shape == (50, 2)
    assert torch.equal(Augment(given(augment=[CROP, {"name": "flip"}]), 3).draws(1, np.arange(50))[0], first)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_twelve(tmp_path_factory.mktemp("images") / "packed")


@pytest.mark.parametrize(
    "more",
    [
        [
            {"name": "flip"},
            {"name": "colour_jitter", "brightness": 0.4, "saturation": 0.4},
            {"name": "shift", "pixels": 2},
        ],
        [{"name": "torchvision/RandomErasing", "p": 1.0}, {"name": "colour_jitter", "contrast": 0.5}],
    ],
    ids=["ours", "torchvision"],
)
def test_batches_do_not_depend_on_workers_batch_size_or_resuming(packed, more):
    recipe = given(augment=[CROP, *more])

    def loaded(batch_size, workers, first_step=0):
        images = training_images(packed, ORDER, LABELS, 3, recipe, 5)
        batches = Shuffled(12, batch_size, 5)
        loader = training_batches(images, batches, range(1, 3), workers, CPU, first_step=first_step)
        return torch.cat([pixels for pixels, _ in loader])

    whole = loaded(4, 0)
    assert torch.equal(loaded(12, 0), whole) and torch.equal(loaded(5, 2), whole)
    assert torch.equal(loaded(4, 1, first_step=2), whole[8:])
    plain = torch.cat(
        [
            pixels
            for pixels, _ in training_batches(
                training_images(packed, ORDER, LABELS, 3, given(augment=[CROP]), 5),
                Shuffled(12, 4, 5),
                range(1, 3),
                0,
                CPU,
            )
        ]
    )
    assert (whole != plain).flatten(1).any(1).float().mean() > 0.9
