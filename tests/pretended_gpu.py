"""A pretended GPU: tensors say that they are on the device `gpu:0`, and hold CPU numbers.

Every operation is checked as CUDA checks it: all tensors that have a dimension must be on one device, and an operation
without a deterministic CUDA implementation raises. Whatever would make the host wait for a GPU is counted, with the
function of the project that asked for it: values and shapes that the host needs, and copies between host and
device that are not asynchronous.

It cannot show bfloat16, for which this kind of device has no autocast; kernels; memory; or anything about time.
Importing this module changes torch for the whole process, so tests use it in a process of its own.
"""

import collections
import re
import sys
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "gpu"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)
CPU = torch.device("cpu")
PROJECT = str(Path(__file__).parents[1] / "pipeline") + "/"

WAITS: collections.Counter[str] = collections.Counter()
"""What would make the host wait -> how often. The text has the file and the function of pipeline/ that asked for it."""
LINES: dict[str, set[int]] = collections.defaultdict(set)
"""The same text -> the lines."""
USED: collections.Counter[str] = collections.Counter()
"""Every operation that was called on the device."""

NOT_DETERMINISTIC = re.compile(
    r"aten::(adaptive_(avg|max)_pool[23]d_backward|_adaptive_avg_pool[23]d_backward|(avg|max)_pool3d(_with_indices)?_backward"
    r"|fractional_max_pool[23]d(_backward)?|max_unpool[23]d|upsample_(linear1d|bilinear2d|bicubic2d|trilinear3d)_backward"
    r"|_upsample_bi(linear|cubic)2d_aa_backward|re(flec|plica)tion_pad[123]d_backward|nll_loss2d_forward"
    r"|_(cudnn_)?ctc_loss_backward|_embedding_bag_dense_backward|put_|histc|median(\.dim)?$|kthvalue|grid_sampler_[23]d_backward)"
)
"""The operations that raise on CUDA with deterministic algorithms (torch.use_deterministic_algorithms)."""

VALUE_NEEDED = re.compile(r"aten::(_local_scalar_dense|is_nonzero|nonzero|equal|masked_select|_?unique|bincount|item)")


class Pretended(torch.Tensor):
    """A tensor on the pretended GPU; `inner` has its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )
        made.inner = inner
        return made

    def __repr__(self):
        return f"Pretended({self.inner!r})"

    def __deepcopy__(self, memo):
        with torch.no_grad():
            return self.detach().clone().requires_grad_(self.requires_grad)

    def tolist(self):
        waits("copy to the host")
        return self.inner.tolist()

    def numpy(self, **settings):
        raise TypeError("can't convert gpu:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *words):
        return self.numpy()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return call(operation, args, kwargs or {})


def waits(what: str) -> None:
    """Note that the host would wait."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(PROJECT):
        frame = frame.f_back
    where = "outside"
    if frame is not None:
        where = f"{frame.f_code.co_filename.removeprefix(PROJECT)} {frame.f_code.co_qualname}"
    WAITS[f"{where}: {what}"] += 1
    if frame is not None:
        LINES[f"{where}: {what}"].add(frame.f_lineno)


def _has_mask(name: str, args) -> bool:
    """Whether an index is a mask, whose places the host must know. One number put where a mask is true is no such
    index."""
    if not name.startswith("aten::index") or len(args) < 2 or not isinstance(args[1], list | tuple):
        return False
    masked = any(index is not None and index.dtype == torch.bool for index in args[1])
    return masked and not ("put" in name and args[2].numel() == 1)


def _check(name: str, args, ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    """Raise as CUDA does, or count a wait, for an operation with tensors on the device and on the host."""
    if NOT_DETERMINISTIC.match(name) and torch.are_deterministic_algorithms_enabled():
        raise RuntimeError(f"{name} does not have a deterministic implementation")
    if name in ("aten::cumsum", "aten::cumsum_") and ours and ours[0].is_floating_point():
        raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation")
    if VALUE_NEEDED.match(name) or _has_mask(name, args):
        waits(name.removeprefix("aten::").partition(".")[0])
    if not any(tensor.dim() for tensor in theirs) or name == "aten::set_.source_Tensor":
        return
    indexed = name.startswith(("aten::index.", "aten::index_put", "aten::_index_put")) and isinstance(
        args[0], Pretended
    )
    if indexed and not any(tensor is value for tensor in theirs for value in args[2:3]):
        waits("index from the host")
        return
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (ours, theirs)]
    raise RuntimeError(
        f"{name}: expected all tensors to be on the same device: {shapes[0]} are on {DEVICE}, {shapes[1]} on the CPU"
    )


def _copies(name: str, args, kwargs) -> bool | None:
    """Whether a copy's result is on the device, after counting the wait; None for what is no copy."""
    if name == "aten::copy_":
        to, asynchronous = isinstance(args[0], Pretended), args[2:3] == (True,) or kwargs.get("non_blocking")
        mixed = isinstance(args[1], Pretended) != to and args[1].numel() > 0
    elif name == "aten::_to_copy" and kwargs.get("device") is not None:
        to, asynchronous = torch.device(kwargs["device"]).type == NAME, kwargs.get("non_blocking")
        mixed = isinstance(args[0], Pretended) != to
    else:
        return None
    if mixed and not asynchronous:
        waits(f"copy to the {'device' if to else 'host'}")
    return to


def call(operation, args, kwargs):
    """Run an operation on the CPU numbers of its tensors, and wrap the result if it is on the device."""
    name = operation.name() if hasattr(operation, "name") else str(operation)
    flat, _ = tree_flatten((args, kwargs))
    tensors = [value for value in flat if isinstance(value, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    theirs = [tensor for tensor in tensors if not isinstance(tensor, Pretended)]
    device = kwargs.get("device")
    on_device = _copies(name, args, kwargs)
    if on_device is None:
        on_device = torch.device(device).type == NAME if device is not None else bool(ours)
        if ours:
            USED[name] += 1
            _check(name, args, ours, theirs)

    def unwrapped(value):
        if isinstance(value, Pretended):
            return value.inner
        return CPU if isinstance(value, torch.device) and value.type == NAME else value

    plain, settings = tree_map(unwrapped, (args, kwargs))
    if device is not None and torch.device(device).type == NAME:
        settings["device"] = CPU
    if settings.get("pin_memory"):
        settings["pin_memory"] = False
    found = operation(*plain, **settings)
    if not on_device:
        return found
    same = {id(tensor.inner): tensor for tensor in ours}  # an operation in place gives the tensor itself

    def wrapped(value):
        if not isinstance(value, torch.Tensor) or isinstance(value, Pretended):
            return value
        return same.get(id(value)) if id(value) in same else Pretended(value)

    return tree_map(wrapped, found)


class Pretend(TorchDispatchMode):
    """While the block runs, operations that make tensors can make them on the device."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return call(operation, args, kwargs or {})


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return Pretended(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return Pretended(torch.empty(size, dtype=dtype, device="cpu"))


LIBRARY = torch.library.Library("aten", "IMPL")
LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
LIBRARY.impl("empty.memory_format", _empty, "PrivateUse1")
getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
_tensor = torch.tensor


def _on_the_host_first(*args, device=None, **kwargs):
    """torch.tensor makes its tensor outside the dispatcher."""
    found = _tensor(*args, **kwargs)
    return found if device is None else found.to(device)


torch.tensor = _on_the_host_first
