"""Crops on the device against those of the CPU's path, byte by byte: PyTorch's words, and the Triton kernel, which the
interpreter runs where there is no GPU."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined

# ruff: noqa: E402
from pipeline.training import crop_kernel, loading, resident
from pipeline.training.batches import ClassBalanced, Shuffled
from pipeline.training.crops import FIELDS, Crops, plain, plan
from pipeline.training.images import CROP_DRAWS, boxes, cropped
from pipeline.training.loading import CroppedImages, test_images, training_batches, training_images
from tests.test_images import LABELS, ORDER, SMALL, pack_twelve, photograph

pytestmark = pytest.mark.usefixtures("one_thread")
test_images.__test__ = False
DEVICE = torch.device("cuda" if GPU else "cpu")


def kernel(pixels, planned, size, channels, block=4096):
    """The kernel on the GPU, or interpreted; few programs, for the interpreter takes as long for a small block."""
    moved = Crops(*(part.to(DEVICE) for part in planned))
    return crop_kernel.by_kernel(pixels.to(DEVICE), moved, size, channels, block).cpu()


def noise(generator, height, width, channels=3):
    return generator.integers(0, 256, (height, width, channels), dtype=np.uint8)


def planned(images, found, flips, size):
    """Images as one flat tensor, how to crop them, and the CPU path's crops."""
    ends = np.cumsum([image.size for image in images])
    widths = np.array([image.shape[1] for image in images])
    channels = images[0].shape[2]
    crops = plan(np.concatenate([[0], ends[:-1]]), widths, found, flips, channels, size)
    expected = [cropped(image, box, size, flip) for image, box, flip in zip(images, found, flips, strict=True)]
    return torch.from_numpy(np.concatenate([image.ravel() for image in images])), crops, torch.stack(expected)


def assert_equal(found, expected):
    differ = (found != expected).flatten(1).any(1)
    assert not differ.any(), f"{int(differ.sum())} of {len(differ)} crops differ: {differ.nonzero().flatten().tolist()}"


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("size", [16, 23])
def test_random_boxes_of_any_size(channels, size):
    """110 boxes each, one in five a whole image: both forms give the CPU's bytes."""
    generator = np.random.default_rng(size)
    images, found = [], []
    for number in range(110):
        height, width = generator.integers(1, 50, 2)
        tall, wide = (height, width) if number % 5 == 0 else (generator.integers(1, n + 1) for n in (height, width))
        images.append(noise(generator, height, width, channels))
        found.append([generator.integers(height - tall + 1), generator.integers(width - wide + 1), tall, wide])
    pixels, crops, expected = planned(images, np.array(found), generator.random(110) < 0.5, size)
    assert_equal(plain(pixels, crops, size, channels), expected)
    assert_equal(kernel(pixels, crops, size, channels), expected)


def test_the_recipes_size_and_boxes():
    """300 boxes as training draws them, of photographs up to 900 pixels, to 224 pixels; the kernel's on a GPU alone,
    because the interpreter would take minutes."""
    generator = np.random.default_rng(0)
    images = [photograph(number, *generator.integers(8, 900, 2)) for number in range(12)] * 25
    sizes = np.array([image.shape[:2] for image in images])
    found = boxes(sizes, generator.random((300, CROP_DRAWS)), 0.08)
    for start in range(0, 300, 12):
        pixels, crops, expected = planned(images[:12], found[start : start + 12], np.arange(12) % 3 == 0, 224)
        assert_equal(plain(pixels, crops, 224, 3), expected)
        if GPU:
            assert_equal(kernel(pixels, crops, 224, 3), expected)


@pytest.mark.parametrize(
    ("shape", "box", "size"),
    [
        ((1, 1), (0, 0, 1, 1), 1),
        ((1, 1), (0, 0, 1, 1), 24),
        ((24, 7), (0, 0, 24, 7), 24),
        ((65500, 4), (62500, 1, 3000, 3), 224),
        ((65500, 4), (0, 0, 65500, 4), 1024),
        ((4, 65500), (0, 0, 4, 65500), 1024),
    ],
)
def test_extreme_images(shape, box, size):
    image = noise(np.random.default_rng(1), *shape, 1)
    pixels, crops, expected = planned([image], np.array([box]), np.array([True]), size)
    if size <= 224 or GPU:
        assert_equal(plain(pixels, crops, size, 1), expected)
        assert_equal(kernel(pixels, crops, size, 1, 1 << 16), expected)
        return
    # All by PyTorch's words at a smaller size; of the kernel one program, the first rows: the interpreter is slow.
    found = plan(np.array([0]), np.array([shape[1]]), np.array([box]), np.array([True]), 1, 64)
    assert_equal(plain(pixels, found, 64, 1), cropped(image, np.array(box), 64, True)[None])
    out = torch.empty_like(expected)
    crop_kernel._crop[(1, 1)](pixels, crops.boxes, crops.tables, out, size, 1, fields=FIELDS, block=4096)
    assert torch.equal(out.flatten()[:4096], expected.flatten()[:4096])


def test_more_than_one_program_makes_an_image_and_none_writes_over_its_end():
    generator = np.random.default_rng(2)
    images = [noise(generator, 30, 20), noise(generator, 11, 50)]
    found = np.array([[3, 4, 20, 11], [0, 0, 11, 50]])
    pixels, crops, expected = planned(images, found, np.array([True, False]), 13)
    assert_equal(kernel(pixels, crops, 13, 3, 128), expected)


def test_the_kernel_compiles_for_a_gpu_that_is_not_here(tmp_path, monkeypatch):
    """Down to machine code, by the compiler that Triton brings. In a process of its own, which does not interpret."""
    script = """
import pipeline, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pipeline.training import crop_kernel
kinds = dict(pixels="*u8", boxes="*i64", tables="*i32", out="*u8", size="i32", channels="i32")
source = ASTSource(crop_kernel._crop, kinds | dict(fields="constexpr", block="constexpr"), {"fields": 9, "block": 1024})
print(len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]) > 1000)
"""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["True"], done.stderr


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_twelve(tmp_path_factory.mktemp("images") / "packed")


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_wherever_the_images_are(packed, monkeypatch, channels, workers):
    for batches in (Shuffled(12, 5, 5), ClassBalanced(LABELS.numpy(), 6, 3, 5, 2)):
        found = []
        for stay in (False, True):
            monkeypatch.setattr(resident, "fits", lambda device, size, stay=stay: stay)
            monkeypatch.setattr(resident, "DECODED_AHEAD", 5)
            images = training_images(packed, ORDER, LABELS, channels, SMALL, 5, DEVICE)
            assert isinstance(images, CroppedImages) and (images.resident is not None) == stay
            found.append(list(training_batches(images, batches, range(1, 4), workers, pin=False, first_step=1)))
        assert len(found[0]) == len(found[1]) == 3 * batches.steps - 1
        for one, other in zip(*found, strict=True):
            assert torch.equal(one[0], other[0].cpu()) and torch.equal(one[1], other[1])


def test_test_images_are_the_same_wherever_they_are(packed, monkeypatch):
    whole = test_images(packed, ORDER, 3, SMALL, 0)
    monkeypatch.setattr(resident, "fits", lambda device, size: size == whole.numel())
    monkeypatch.setattr(loading, "available_memory", lambda: 1000)
    stay = test_images(packed, ORDER, 3, SMALL, 0, DEVICE if GPU else torch.device("meta"))
    assert stay.device.type == (DEVICE.type if GPU else "meta") and stay.shape == whole.shape
    if GPU:
        assert torch.equal(stay.cpu(), whole)


def broken(*arguments):
    raise RuntimeError("Failed to find C compiler.\nPlease specify")


@pytest.mark.parametrize(
    ("crop", "reason"),
    [
        (broken, "RuntimeError: Failed to find C compiler."),
        (lambda pixels, planned, *more: plain(pixels, planned, *more) ^ 1, "its crops differ from the CPU's"),
    ],
)
def test_a_gpu_that_cannot_crop_leaves_it_to_the_loader(packed, monkeypatch, capsys, crop, reason):
    monkeypatch.setattr(resident, "fits", lambda device, size: True)
    monkeypatch.setattr(resident, "crop", crop)
    resident.problem.cache_clear()
    images = training_images(packed, ORDER, LABELS, 3, SMALL, 5, DEVICE)
    resident.problem.cache_clear()
    assert isinstance(images, CroppedImages) and images.resident is None
    assert capsys.readouterr().err == f"images are cropped on the CPU, because the GPU cannot crop them: {reason}\n"


def test_images_stay_on_a_gpu_alone_and_in_a_share_of_its_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**10, 2 * 10**10))
    assert not resident.fits(torch.device("cpu"), 1)
    assert resident.fits(torch.device("cuda"), 10**9) and not resident.fits(torch.device("cuda"), 3 * 10**9)
