"""Checks whether a device is fit for training. `pipeline.doctor` reports them."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.base.precision import use_tf32
from pipeline.training.resident import problem

CPU = torch.device("cpu")

State = Literal["ok", "warn", "fail"]
Finding = tuple[str, State, str, str]

APART = 1e-3
"""The largest allowed difference between the float32 numbers of a device and of the CPU, as a share of the largest
number. They differ because sums are in another order. TF32 would differ 10 times as much."""


def lines(device: torch.device) -> Iterator[Finding]:
    """The lines of the report on a device: name, state, what was found, and the fix."""
    if device.type == "cuda":
        yield tf32(torch.cuda.get_device_capability(device))
        why = problem(device)
        fix = "install requirements.lock again, whose nvidia-cuda-nvrtc compiles them, or let the loader make the crops"
        if why:
            yield "Crops", "warn", f"made on the CPU, because the GPU cannot make them: {why}", fix
        else:
            yield "Crops", "ok", f"made on {device}, equal to the CPU's", ""
    yield from bits(device)


def tf32(capability: tuple[int, int]) -> Finding:
    """Whether a GPU of this compute capability has TF32."""
    has = capability >= (8, 0)
    name = f"capability {capability[0]}.{capability[1]}"
    if has:
        return "TF32", "ok", f"{name} has TF32, which recipes with precision tf32 use", ""
    return "TF32", "warn", f"{name} lacks TF32", "recipes with precision tf32 compute in float32 here"


def step(device: torch.device) -> list[Tensor]:
    """The embeddings, gradients and weights of a small network after a step on a device, copied to the CPU."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten()
    network = nn.Sequential(*layers, nn.Linear(32 * 31 * 31, 128))
    images = torch.randn(16, 3, 64, 64)
    network.to(device)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, fused=True)
    embeddings = network(images.to(device))
    (embeddings @ embeddings.T / 128).logsumexp(1).mean().backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    values = [embeddings.detach().clone(), *(gradient.clone() for gradient in gradients)]
    optimiser.step()
    return [value.detach().cpu() for value in (*values, *network.parameters())]


def bits(device: torch.device) -> Iterator[Finding]:
    """Whether a small step with deterministic algorithms gives the same bits twice, and the same numbers as on the CPU
    to `APART`."""
    torch.set_deterministic_debug_mode("error")
    use_tf32(False)
    try:
        first, second = step(device), step(device)
    except RuntimeError as error:
        yield (
            "Same bits",
            "fail",
            str(error).splitlines()[0],
            f"PyTorch cannot compute on {device}: see the line Driver",
        )
        return
    if all(map(torch.equal, first, second)):
        yield "Same bits", "ok", f"a small step on {device} gives the same bits twice", ""
    else:
        fix = "results would not repeat here: check the hardware"
        yield "Same bits", "fail", f"a small step on {device} gives other bits the second time", fix
    if device.type == "cpu":
        return
    expected = step(CPU)
    # The gradient of the bias before a batch norm is only rounding error. So differences are compared with at least
    # 1e-3 of the largest number of all.
    largest = max(float(value.abs().max()) for value in expected)
    apart = max(
        float((one - other).abs().max()) / max(float(other.abs().max()), 1e-3 * largest)
        for one, other in zip(first, expected, strict=True)
    )
    found = f"a small step differs from the CPU's by {apart:.1e} of the largest number"
    if apart < APART:
        yield "As on the CPU", "ok", found, ""
    else:
        yield "As on the CPU", "fail", found, "its numbers are wrong: check the driver and the hardware"
