"""Crops on the device against those of the CPU's path, byte by byte: PyTorch's words, and the CUDA kernel. Without a
GPU, its source runs on the processor: cuda-bindings calls a stand-in for the driver (tests/crop_driver.c)."""

import contextlib
import subprocess
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.training import crop_kernel, loading, resident
from pipeline.training.augmentations.random_resized_crop import CROP_DRAWS, boxes
from pipeline.training.batches import ClassBalanced, Shuffled
from pipeline.training.crops import Crops, plain, plan
from pipeline.training.images import cropped
from pipeline.training.loading import CroppedImages, test_images, training_batches, training_images
from pipeline.training.memory import Memory
from tests.conftest import ROOT
from tests.test_images import LABELS, ORDER, SMALL, pack_twelve, photograph

pytestmark = pytest.mark.usefixtures("one_thread")
test_images.__test__ = False
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
runs_the_kernel = pytest.mark.gpu if GPU else pytest.mark.gcc
BEHIND = 4096
"""The bytes behind the result that the kernel must leave alone."""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """The kernel, as a function of CPU tensors."""
    if GPU:
        yield lambda pixels, crops, *more: by_kernel(
            pixels.to(DEVICE), Crops(*(part.to(DEVICE) for part in crops)), *more
        )
        return
    folder = tmp_path_factory.mktemp("driver")
    (folder / "kernel.c").write_text(crop_kernel.SOURCE.replace('extern "C" ', ""))
    # It ends at once where a number is too large for its type.
    words = ["-O2", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error", f'-DKERNEL="{folder / "kernel.c"}"']
    words += ["-shared", "-fPIC", "-w", "-o", str(folder / "libcuda.so.1"), str(ROOT / "tests/crop_driver.c"), "-ldl"]
    subprocess.run(["gcc", *words], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_LIBRARY_PATH", str(folder))
        with ProcessPoolExecutor(1, get_context("spawn"), in_another_process) as process:
            yield lambda pixels, crops, *more: torch.from_numpy(
                process.submit(with_the_stand_in, pixels.numpy(), *(part.numpy() for part in crops), *more).result()
            )


def in_another_process():
    """Make PyTorch say what it says of a GPU."""
    torch.set_num_threads(1)
    torch.cuda.device = lambda device: contextlib.nullcontext()
    torch.cuda.current_stream = lambda: SimpleNamespace(cuda_stream=0)
    torch.cuda.get_device_capability = lambda device: (9, 0)


def with_the_stand_in(pixels, boxes, tables, size, channels):
    crops = Crops(torch.from_numpy(boxes), torch.from_numpy(tables))
    return by_kernel(torch.from_numpy(pixels), crops, size, channels).numpy()


def by_kernel(pixels, crops, size, channels):
    """The crops, with a check that nothing is written behind them."""
    made, empty = [], torch.empty

    def with_room(*shape, **words):
        made.append(torch.full((int(np.prod(shape)) + BEHIND,), 77, **words))
        return made[0][:-BEHIND].view(shape)

    torch.empty = with_room
    try:
        found = crop_kernel.by_kernel(pixels, crops, size, channels)
    finally:
        torch.empty = empty
    assert (made[0][-BEHIND:] == 77).all(), "written behind the result"
    return found.cpu()


def noise(generator, height, width, channels=3):
    return generator.integers(0, 256, (height, width, channels), dtype=np.uint8)


def planned(images, found, size):
    """Images as one flat tensor, how to crop them, and the CPU path's crops."""
    ends = np.cumsum([image.size for image in images])
    widths = np.array([image.shape[1] for image in images])
    channels = images[0].shape[2]
    crops = plan(np.concatenate([[0], ends[:-1]]), widths, found, channels, size)
    expected = [cropped(image, box, size) for image, box in zip(images, found, strict=True)]
    return torch.from_numpy(np.concatenate([image.ravel() for image in images])), crops, torch.stack(expected)


def assert_equal(found, expected):
    differ = (found != expected).flatten(1).any(1)
    assert not differ.any(), f"{int(differ.sum())} of {len(differ)} crops differ: {differ.nonzero().flatten().tolist()}"


@runs_the_kernel
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("size", [16, 23])
def test_random_boxes_of_any_size(kernel, channels, size):
    """110 boxes each, one in five a whole image: both forms give the CPU's bytes."""
    generator = np.random.default_rng(size)
    images, found = [], []
    for number in range(110):
        height, width = generator.integers(1, 50, 2)
        tall, wide = (height, width) if number % 5 == 0 else (generator.integers(1, n + 1) for n in (height, width))
        images.append(noise(generator, height, width, channels))
        found.append([generator.integers(height - tall + 1), generator.integers(width - wide + 1), tall, wide])
    pixels, crops, expected = planned(images, np.array(found), size)
    assert_equal(plain(pixels, crops, size, channels), expected)
    assert_equal(kernel(pixels, crops, size, channels), expected)


@runs_the_kernel
def test_the_recipes_size_and_boxes(kernel):
    """300 boxes as training draws them, of photographs up to 900 pixels, to 224 pixels; a quarter by PyTorch's words,
    which take longer."""
    generator = np.random.default_rng(0)
    images = [photograph(number, *generator.integers(8, 900, 2)) for number in range(12)] * 25
    sizes = np.array([image.shape[:2] for image in images])
    found = boxes(sizes, generator.random((300, CROP_DRAWS)), 0.08)
    for start in range(0, 300, 12):
        pixels, crops, expected = planned(images[:12], found[start : start + 12], 224)
        if start % 48 == 0:
            assert_equal(plain(pixels, crops, 224, 3), expected)
        assert_equal(kernel(pixels, crops, 224, 3), expected)


@runs_the_kernel
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
def test_extreme_images(kernel, shape, box, size):
    image = noise(np.random.default_rng(1), *shape, 1)
    pixels, crops, expected = planned([image], np.array([box]), size)
    assert_equal(plain(pixels, crops, size, 1), expected)
    assert_equal(kernel(pixels, crops, size, 1), expected)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)])
def test_the_kernel_compiles_for_every_gpu_of_the_locked_wheels(capability):
    """To machine code, by the NVRTC that the wheels bring. Neither a GPU nor a C compiler is needed."""
    code = crop_kernel.compiled(*capability)
    assert code[:4] == b"\x7fELF" and len(code) > 5000 and b"crop" in code


def test_a_gpu_that_nvrtc_does_not_know_gets_code_for_an_older_one_of_its_kind():
    assert crop_kernel.compiled(8, 10) == crop_kernel.compiled(8, 9)
    with pytest.raises(RuntimeError, match="NVRTC cannot compile for a GPU of compute capability 7\\.0"):
        crop_kernel.compiled(7, 0)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_twelve(tmp_path_factory.mktemp("images") / "packed")


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_wherever_the_images_are(packed, monkeypatch, channels, workers):
    for batches in (Shuffled(12, 5, 5), ClassBalanced(LABELS.numpy(), 6, 3, 5, 2)):
        found = []
        for stay in (False, True):
            room = Memory(DEVICE)
            room.left = 10**9 * stay
            monkeypatch.setattr(resident, "DECODED_AHEAD", 5)
            images = training_images(packed, ORDER, LABELS, channels, SMALL, 5, room)
            assert isinstance(images, CroppedImages) and (images.resident is not None) == stay
            found.append(list(training_batches(images, batches, range(1, 4), workers, DEVICE, first_step=1)))
        assert len(found[0]) == len(found[1]) == 3 * batches.steps - 1
        for one, other in zip(*found, strict=True):
            assert torch.equal(one[0], other[0].cpu()) and torch.equal(one[1], other[1])


def test_test_images_are_the_same_wherever_they_are(packed, monkeypatch):
    whole = test_images(packed, ORDER, 3, SMALL, 0)
    room = Memory(DEVICE if GPU else torch.device("meta"))
    room.left = whole.numel()
    monkeypatch.setattr(loading, "available_memory", lambda: 1000)
    stay = test_images(packed, ORDER, 3, SMALL, 0, room)
    assert stay.device.type == (DEVICE.type if GPU else "meta") and stay.shape == whole.shape
    if GPU:
        assert torch.equal(stay.cpu(), whole)


def broken(*arguments):
    raise RuntimeError("CUDA_ERROR_NO_BINARY_FOR_GPU\nmore")


@pytest.mark.parametrize(
    ("crop", "reason"),
    [
        (broken, "RuntimeError: CUDA_ERROR_NO_BINARY_FOR_GPU"),
        (lambda pixels, planned, *more: plain(pixels, planned, *more) ^ 1, "its crops differ from the CPU's"),
    ],
)
def test_a_gpu_that_cannot_crop_leaves_it_to_the_loader(packed, monkeypatch, capsys, crop, reason):
    room = Memory(DEVICE)
    room.left = 10**9
    monkeypatch.setattr(resident, "crop", crop)
    resident.problem.cache_clear()
    images = training_images(packed, ORDER, LABELS, 3, SMALL, 5, room)
    resident.problem.cache_clear()
    assert isinstance(images, CroppedImages) and images.resident is None
    assert capsys.readouterr().err == f"images are cropped on the CPU, because the GPU cannot crop them: {reason}\n"
