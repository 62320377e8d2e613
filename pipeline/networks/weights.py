"""Weights pretrained on ImageNet: where they are published, and how they are loaded.

Loading is strict, because loads that ignore missing keys have led to wrong published numbers before: every entry must
exist, fit and be used, and only the classifier is left out. `torch` is imported inside functions, because fetching does
not need it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.files import BadInputError, sha256, submodule
from pipeline.data.checksums import DATA, pins
from pipeline.networks.published import BY_ORDER, CLASSIFIERS, FILES, file_name

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.base.recipe import Recipe, Weights

LONGEST_HEADER = 100 * 10**6
"""Bytes of a safetensors file's header; the library's own limit."""

FOLDER = DATA / "weights"


def load_weights(path: Path, expected: str, own: bool = False) -> dict[str, torch.Tensor]:
    """The entries of a weights file, on the CPU. No code in the file is run.

    `expected` is the file's SHA-256 or its first digits. `own` says that the file is the user's own, not a published
    one. Raises `BadInputError` for a file that is missing, has another SHA-256, or holds anything but tensors by name.
    """
    import torch

    name = path.stem.replace(".", "/", 1)  # the reverse of `file_name`
    fix = "put the right one there, or correct the recipe's weights" if own else "remove it and download it again"
    if not path.is_file():
        get = fix if own else f"run `python -m pipeline.download {name}`, or put it there"
        raise BadInputError(f"{path} is missing: {get}")
    found = sha256(path)
    if not found.startswith(expected):
        meant = "the file that the recipe means" if own else "the published file"
        raise BadInputError(f"{path} is not {meant}: SHA256 {expected} expected, {found} found: {fix}")
    try:
        if path.suffix == ".safetensors":
            _check_header(path)
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    # Damaged files lead to many kinds of errors in the reader, with messages as long as a page.
    except Exception as error:
        reason = str(error).split("\n", 1)[0]
        raise BadInputError(
            f"{path} is damaged, or holds more than weights ({type(error).__name__}: {reason}): {fix}"
        ) from None
    if isinstance(loaded, dict) and loaded.keys() in ({"model"}, {"state_dict"}):
        (loaded,) = loaded.values()
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise BadInputError(f"{path} does not hold tensors with names: {fix}")
    return dict(loaded)


def _check_header(path: Path) -> None:
    """Raise `ValueError` unless a safetensors file names each tensor once, and every byte after the header belongs to
    one tensor. The library takes a key that comes twice, and tensors that share bytes, without a word."""

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in pairs]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{min(twice)} comes twice in the header")
        return dict(pairs)

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(LONGEST_HEADER, path.stat().st_size):
            raise ValueError(f"its header has {length:,} bytes")
        header: dict[str, Any] = json.loads(file.read(length), object_pairs_hook=once)
    header.pop("__metadata__", None)
    end = 0
    for start, after, name in sorted((*tensor["data_offsets"], name) for name, tensor in header.items()):
        if start != end or after < start:
            raise ValueError(f"{name} lies at the bytes {start:,} to {after:,}, where {end:,} was expected")
        end = after
    if end != path.stat().st_size - 8 - length:
        raise ValueError(f"it has {path.stat().st_size:,} bytes where its header tells of {8 + length + end:,}")


def _misfit(value: torch.Tensor, wanted: torch.Tensor) -> str:
    """Why a tensor of a file cannot be an entry of a network, of the right shape or not; empty if it can."""
    shape = wanted.shape
    if tuple(value.shape) not in (tuple(shape), (1, *shape)):
        return f"{tuple(value.shape)} where the network has {tuple(shape)}"
    if value.is_complex() or value.is_floating_point() != wanted.is_floating_point():
        names = (str(tensor.dtype).removeprefix("torch.") for tensor in (value, wanted))
        return " where the network has ".join(names)
    if value.is_floating_point() and not value.to(wanted.dtype).isfinite().all():
        return "not finite: it holds NaN or infinity"
    return ""


def fitted(
    weights: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], classifier: tuple[str, ...], source: str
) -> dict[str, torch.Tensor]:
    """The entries of `weights` for all names in `wanted`, which is a network's state dict without its classifier.

    Entries whose names begin with one of `classifier` are left out. A leading dimension of 1 that the network does not
    have (batch norms of old files) is dropped. The counters of batch norms, which old files lack, start at zero, as in
    PyTorch. Raises `BadInputError` that names every entry that is missing, left over, or of another shape. `source` is
    the file's name for this message.
    """
    import torch

    counters = {name: torch.zeros_like(value) for name, value in wanted.items() if name.endswith("num_batches_tracked")}
    given = counters | {name: value for name, value in weights.items() if not name.startswith(classifier)}
    wrong = [f"{name} is missing" for name in wanted.keys() - given.keys()]
    wrong += [f"{name} is not in the network" for name in given.keys() - wanted.keys()]
    chosen = {}
    for name in wanted.keys() & given.keys():
        value = given[name]
        if problem := _misfit(value, wanted[name]):
            wrong.append(f"{name} is {problem}")
        chosen[name] = value if value.shape == wanted[name].shape else value[0]
    if wrong:
        raise BadInputError(f"{source} does not fit the network:\n  " + "\n  ".join(sorted(wrong)))
    return {name: chosen[name] for name in wanted}


def in_order(
    weights: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], classifier: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    """The entries of `weights`, renamed by their position to the names in `wanted`. Entries that are left over keep
    their names. Counters of batch norms, which some files lack, are ignored."""
    given = [
        (name, value)
        for name, value in weights.items()
        if not name.startswith(classifier) and not name.endswith("num_batches_tracked")
    ]
    names = [name for name in wanted if not name.endswith("num_batches_tracked")]
    renamed = {name: value for name, (_, value) in zip(names, given, strict=False)}
    return renamed | dict(given[len(names) :])


def pretrained(
    network: str,
    wanted: Mapping[str, torch.Tensor],
    own: Weights | None = None,
    converted: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]] = dict,
) -> dict[str, torch.Tensor]:
    """The user's own weights if given, otherwise the published ones of `network`, checked and `fitted` to `wanted`.
    `converted` turns a file's names into the network's."""
    if own is not None:
        path, expected, classifier = FOLDER / own.file, own.sha256, tuple(own.drop)
    else:
        path, classifier = FOLDER / (file_name(network) or ""), classifier_of(network)
        expected = pins().get(f"weights/{path.name}") or (FILES[network].sha256 if network in FILES else "") or ""
    weights = load_weights(path, expected, own is not None)
    if own is None and network in BY_ORDER:
        return fitted(in_order(weights, wanted, classifier), wanted, (), str(path))
    return fitted(converted(weights), wanted, classifier, str(path))


def load_pretrained(recipe: Recipe, backbone: nn.Module) -> None:
    """Load the recipe's pretrained weights into its backbone, all or none. Raises `BadInputError` for a file that is
    missing, is another file, or does not fit in every name and shape."""
    target: nn.Module = getattr(backbone, "trunk", backbone)
    converted = getattr(backbone, "converted", dict)
    target.load_state_dict(pretrained(recipe.backbone, target.state_dict(), recipe.weights, converted))


def classifier_of(network: str) -> tuple[str, ...]:
    """The beginnings of the names of the classifier's entries in a network's published weights."""
    if network in FILES:
        return CLASSIFIERS.get(network, ())
    file, _, variant = network.partition("/")
    beginnings: tuple[str, ...] = submodule("networks.backbones", file).published(variant)[1]
    return beginnings
