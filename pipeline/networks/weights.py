"""Weights pretrained on ImageNet: where they are published, and their loading, which is strict.

A load that passes over missing keys has given wrong published numbers before, so every entry must be there, fit, and be
used; only the classifier is left out. `torch` is imported where it is used: fetching does without.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.files import BadInputError, sha256
from pipeline.data.checksums import DATA, pins
from pipeline.networks.published import CLASSIFIERS, FILES

if TYPE_CHECKING:
    import torch

FOLDER = DATA / "weights"


def load_weights(path: Path, expected: str) -> dict[str, torch.Tensor]:
    """The entries of a weights file on the CPU, none of its code run.

    `expected` is the file's SHA-256 or its first digits. Raises `BadInputError` for a file that is missing, is another
    one, or holds anything but tensors by name.
    """
    import torch

    if not path.is_file():
        raise BadInputError(f"{path} is missing: run `python -m pipeline.download {path.stem}`")
    found = sha256(path)
    if not found.startswith(expected):
        raise BadInputError(f"{path} is not the published file: SHA256 {expected} expected, {found} found: {_FIX}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    # The reader of damaged files runs into many kinds of errors; its message goes on for a page.
    except Exception as error:
        reason = str(error).split("\n", 1)[0]
        raise BadInputError(f"{path} does not hold weights alone ({type(error).__name__}: {reason}): {_FIX}") from None
    if isinstance(loaded, dict) and loaded.keys() == {"model"}:
        loaded = loaded["model"]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise BadInputError(f"{path} does not hold tensors by name: {_FIX}")
    return dict(loaded)


_FIX = "remove it and download it again"


def fitted(
    weights: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], classifier: tuple[str, ...], source: str
) -> dict[str, torch.Tensor]:
    """The entries of `weights` that `wanted`, a network's state dict without its classifier, asks for: all or none.

    Entries whose names begin with one of `classifier` are left out. A leading dimension of 1 that the network does not
    have (batch norms of old files) is dropped, and the batch norms' counters, which old files lack, start at zero as
    PyTorch has it. Raises `BadInputError` that names every entry that is missing, left over, or of another shape;
    `source` is the file's name there.
    """
    import torch

    counters = {name: torch.zeros_like(value) for name, value in wanted.items() if name.endswith("num_batches_tracked")}
    given = counters | {name: value for name, value in weights.items() if not name.startswith(classifier)}
    wrong = [f"{name} is missing" for name in wanted.keys() - given.keys()]
    wrong += [f"{name} is not in the network" for name in given.keys() - wanted.keys()]
    chosen = {}
    for name in wanted.keys() & given.keys():
        value, shape = given[name], wanted[name].shape
        if value.shape != shape and value.shape == (1, *shape):
            value = value[0]
        if value.shape != shape:
            wrong.append(f"{name} is {tuple(value.shape)} where the network has {tuple(shape)}")
        chosen[name] = value
    if wrong:
        raise BadInputError(f"{source} does not fit the network:\n  " + "\n  ".join(sorted(wrong)))
    return {name: chosen[name] for name in wanted}


def pretrained(network: str, wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published weights of `network` (a key of `FILES`), checked and `fitted` to `wanted`."""
    path = FOLDER / FILES[network].name
    expected = pins().get(f"weights/{path.name}") or FILES[network].sha256 or ""
    return fitted(load_weights(path, expected), wanted, CLASSIFIERS[network], str(path))
