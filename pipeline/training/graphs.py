"""CUDA graphs of the network's forward and backward pass: one launch of the same kernels instead of hundreds.

A graph is used only if a check finds the same bits as without it: the same weights, running statistics, proxies and
moments after three steps. The check is repeated whenever other parameters train. So no result depends on the graph; it
only makes a run faster.
"""

import copy
import gc
import inspect
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.base.config import Recipe
from pipeline.networks.network import computing
from pipeline.training.images import normalise
from pipeline.training.step import training_step

CHECKED_STEPS = 3

Forward = Callable[[Tensor], Tensor]


class GraphsFailedError(Exception):
    """CUDA graphs were too large, could not be captured, or gave other bits.

    What a failed capture leaves behind (memory that nobody frees, a stream that still captures) cannot be undone in
    PyTorch. So the process has to end. The run goes on from its checkpoint in a new process, without graphs.
    """


def capture(network: nn.Module, images: Tensor) -> Forward:
    """The network's forward and backward pass as CUDA graphs, for its current training state and for images of this
    shape (batch, channels, height, width).

    PyTorch's function replaces the network's `forward`, and its runs before the capture change the running statistics
    of batch norms. Both are undone, so the network stays as it was. Raises `RuntimeError` if it cannot be captured.
    """
    mode: dict[str, Any] = {"capture_error_mode": "thread_local"}
    if "capture_error_mode" not in inspect.signature(torch.cuda.make_graphed_callables).parameters:
        # The capture then forbids all threads to allocate memory, and the thread that pins batches would stop the run.
        if any("_pin_memory" in thread.name for thread in threading.enumerate()):
            raise RuntimeError(
                "this PyTorch cannot capture graphs while loader processes work: set machine.workers to 0"
            )
        mode = {}
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        # The sample becomes the graph's input, which every call writes to.
        torch.cuda.make_graphed_callables(network, (images.clone(),), allow_unused_input=True, **mode)
        return network.forward
    finally:
        vars(network).pop("forward", None)
        for buffer, before in buffers:
            buffer.copy_(before)


def _bytes(value: Any) -> Any:
    """A state, converted so that two states are equal only if all bits are equal: 0 and -0 differ, and NaN equals
    itself."""
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: _bytes(part) for key, part in value.items()}
    return [_bytes(part) for part in value] if isinstance(value, list | tuple) else value


class GraphedNetwork:
    """A training step calls this instead of the network. It calls the graphs if graphs are `wanted` and work, otherwise
    the network. It also calls the network for a batch with another shape than the epoch's first batch, such as a
    smaller last batch."""

    def __init__(
        self,
        recipe: Recipe,
        network: nn.Module,
        criterion: nn.Module,
        optimiser: torch.optim.Optimizer,
        device: torch.device,
        wanted: bool,
    ):
        self.recipe, self.network, self.criterion, self.optimiser = recipe, network, criterion, optimiser
        self.device, self.wanted = device, wanted
        self.found: dict[str, str] = {}
        """The epoch from which on graphs were used -> what the check found; or "never" -> why. made.json records it."""
        self._phase: Any = None
        self._graphed: Forward | None = None
        self._shape: torch.Size | None = None
        self._own: dict[nn.Parameter, Tensor] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Embeddings (batch, dimension) of normalised images (batch, channels, height, width)."""
        if self._graphed is None or images.shape != self._shape:
            embeddings: Tensor = self.network(images)
            return embeddings
        if self.recipe.frozen_gradients == "zero":
            self._own_gradients()
        return self._graphed(images)

    @property
    def in_use(self) -> bool:
        """Whether graphs are used now."""
        return self._graphed is not None

    def _own_gradients(self) -> None:
        """Move gradients out of the graph's own memory. PyTorch uses the graph's memory for the first gradients without
        a copy. If they were zeroed in place and added to, they would be counted twice."""
        for parameter in self._parameters():
            if parameter.grad is not None and parameter.grad is not self._own.get(parameter):
                self._own[parameter] = parameter.grad = parameter.grad.clone()

    def _parameters(self) -> Iterable[nn.Parameter]:
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]

    def begin(self, epoch: int, pixels: Tensor, labels: Tensor) -> None:
        """Call this with an epoch's first batch, uint8 pixels (batch, channels, height, width) and int64 labels
        (batch,). If other parameters train than before, or the shape has changed, capture and check the graphs
        again. Raises `GraphsFailedError` if they cannot be used; the process must then end."""
        if not self.wanted:
            return
        trains = tuple(parameter.requires_grad for parameter in self.network.parameters())
        phase = trains, tuple(module.training for module in self.network.modules()), pixels.shape
        if phase == self._phase:
            return
        self._phase, self._graphed = phase, None
        gc.collect()  # the graph of the phase before is part of a reference cycle, and holds its memory
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        before = self._state()
        try:
            with computing(self.recipe):
                images = normalise(pixels, self.recipe, self.device)
                graphed = capture(self.network, images)
            same = self._after_steps(None, images.shape, pixels, labels, before) == self._after_steps(
                graphed, images.shape, pixels, labels, before
            )
        except RuntimeError as error:  # a graph cannot hold an operation, or memory is missing
            raise GraphsFailedError(f"from epoch {epoch}: {str(error).splitlines()[0]}") from error
        if not same:
            raise GraphsFailedError(f"from epoch {epoch}: they gave other bits")
        self._graphed, self._shape = graphed, images.shape
        self.found[f"from epoch {epoch}"] = "used: the same bits"

    def _after_steps(
        self, graphed: Forward | None, shape: torch.Size, pixels: Tensor, labels: Tensor, before: dict[str, Any]
    ) -> Any:
        """The state after `CHECKED_STEPS` steps, as bytes. The state `before` is then restored."""
        self._graphed, self._shape = graphed, shape
        try:
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                for _ in range(CHECKED_STEPS):
                    training_step(
                        self.recipe, self, self.criterion, self.optimiser, pixels, labels, self.device
                    )  # fmt: skip
            return _bytes(self._state())
        finally:
            self._graphed = None
            self._restore(before)

    def _state(self) -> dict[str, Any]:
        """A copy of everything that a step changes."""
        parts: dict[str, Any] = {"network": self.network, "criterion": self.criterion, "optimiser": self.optimiser}
        state = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        gradients = [parameter.grad for parameter in self._parameters()]
        return state | {"gradients": [None if gradient is None else gradient.clone() for gradient in gradients]}

    def _restore(self, state: dict[str, Any]) -> None:
        """Restore a state. `state` itself is not changed by later steps."""
        self.network.load_state_dict(state["network"])
        self.criterion.load_state_dict(state["criterion"])
        self.optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
        for parameter, gradient in zip(self._parameters(), state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
