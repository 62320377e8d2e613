"""The files that training writes: weights and history."""

import csv
import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.base.files import whole


def kept(network: nn.Module) -> dict[str, Tensor]:
    """A copy of a network's weights and buffers on the CPU."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}


def weights_hash(weights: dict[str, Tensor]) -> str:
    """The first 16 digits of the SHA-256 of weights. Two runs can be compared by it epoch by epoch."""
    hashed = hashlib.sha256()
    for name, value in weights.items():
        hashed.update(name.encode())
        hashed.update(value.numpy().tobytes())
    return hashed.hexdigest()[:16]


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write weights so that equal weights give equal bytes. They are saved to a buffer first, because torch writes a
    file's name into the file, and a buffer has no name."""
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    path.write_bytes(buffer.getvalue())


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """Write the lines of a history so far as CSV. Values that were not evaluated are empty."""
    columns = list(dict.fromkeys(name for line in history for name in line)) or ["epoch"]
    content = io.StringIO()
    writer = csv.DictWriter(content, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    with whole(path) as temporary:
        temporary.write_text(content.getvalue(), encoding="utf-8")
