"""A stand-in for a GPU: a device of its own on top of the CPU, and a watch over all that would wait for it.

    with StandIn() as device:
        pipeline.to(device.name)
        ...
    assert not device.waits(within="updates.loss")

Its tensors are `OnDevice`: memory of the CPU, computed by the CPU's kernels, that says it is elsewhere. torch believes it, for the
device is of the backend that torch leaves to others (PrivateUse1). Where tensors of two devices meet in an operation, `DevicesMeet`
is raised where CUDA would refuse; where CUDA makes the host wait (`.item()`, `.cpu()`, `bool(tensor)`, `tensor[mask]`, blocking
copies either way), the line that waits is written down. It needs a torch that lets Python register a device; 2.13 does.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.optim import optimizer
from torch.utils import _foreach_utils
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default, aten.copy.default}
"""May take tensors of two devices, and wait until the source is read unless they are told not to: CUDA does so in both directions."""
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""Take indices from the CPU, by a copy that waits."""
COUNTED = {
    aten._local_scalar_dense.default: "item",
    aten.allclose.default: "allclose",
    aten.equal.default: "equal",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.unique_consecutive.default: "unique",
    aten.unique_dim_consecutive.default: "unique",
    aten.bincount.default: "bincount",
    aten.repeat_interleave.Tensor: "repeat_interleave",
}
"""Cannot go on before the host knows a number that the device computes."""


class DevicesMeet(RuntimeError):
    """Tensors of two devices in one operation."""


class Wait(NamedTuple):
    """The host waited for the device, once."""

    kind: str
    """What made it wait, such as "item" or "to cpu"."""
    place: str
    """folder/file:line of the innermost frame that belongs to no library."""
    within: tuple[str, ...]
    """The functions around it as file.function, the innermost first, libraries apart."""


class OnDevice(Tensor):
    """A tensor on the stand-in, which shares memory, shape and strides with the CPU's tensor that it is made of."""

    home: ClassVar[torch.device]
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, tensor: Tensor) -> Any:
        return Tensor._make_subclass(cls, tensor, False, dispatch_device=True, device_for_backend_keys=cls.home)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return cls.home if func is torch.ops.prim.device.default else StandIn.current.compute(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:
        return self.home

    def plain(self) -> Tensor:
        """Return the same memory as a tensor of the CPU."""
        memory = self.untyped_storage(), self.storage_offset(), self.size(), self.stride()
        return torch.empty(0, dtype=self.dtype).set_(*memory)

    def tolist(self) -> Any:
        StandIn.current.wait("tolist")
        return self.plain().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {self.home} device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = self.detach().clone().requires_grad_(self.requires_grad)
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return memo.setdefault(id(self), twin)

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.dim() == 0 else repr(self), spec)

    def __repr__(self, **_: Any) -> str:
        StandIn.current.wait("print")
        return f"{self.plain()!r} on {self.home}"


class StandIn:
    """The stand-in device, watched while the context lasts; its tensors can be used afterwards.

    Args:
        strict: raise where devices meet; False counts it in `meetings`, and goes on as if all had been on the device.
    """

    name = "standin"
    current: ClassVar[StandIn]

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict
        self.log: list[Wait] = []
        self.meetings: Counter[tuple[str, str]] = Counter()
        """How often what met, and where."""
        self.is_watching = False
        self._pinned: dict[int, Tensor] = {}  # by address; held, so that no other tensor comes to the same place
        self._stack = ExitStack()
        StandIn.current = self
        _register()

    def __enter__(self) -> StandIn:
        self.is_watching, StandIn.current = True, self
        self._stack.enter_context(patch.object(Tensor, "pin_memory", lambda tensor, *_: self._pin(tensor)))
        self._stack.enter_context(patch.object(Tensor, "is_pinned", lambda tensor, *_: self._is_pinned(tensor)))
        # A backward pass on the thread that calls it, so that there is a line to blame.
        self._stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        return self

    def __exit__(self, *error: Any) -> None:
        self.is_watching = False
        self._stack.close()

    def waits(self, within: str = "") -> Counter[tuple[str, str]]:
        """Return how often the host waited, by kind and place.

        Args:
            within: a function as file.function, such as updates.loss: only what it did or called.
        """
        return Counter((wait.kind, wait.place) for wait in self.log if not within or within in wait.within)

    def wait(self, kind: str) -> None:
        """Write down that the host waits here."""
        if self.is_watching:
            places, functions = zip(*_own_frames(), strict=True)
            self.log.append(Wait(kind, places[0], functions))

    def compute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return what an operation gives that has at least one tensor on the device."""
        leaves: list[Any] = []
        _collect(args, leaves)
        _collect(tuple(kwargs.values()), leaves)
        target = kwargs.get("device")
        stays = target is None or torch.device(target).type == self.name
        self._check_devices(func, args, leaves)
        self._note_waits(func, args, kwargs, stays)
        if func is aten._fused_sdp_choice.default:  # the fused kernels are each device's own
            return SDPBackend.MATH.value
        given: dict[int, Any] = {}
        result = func(*_plain(args, given), **{name: _plain(value, given) for name, value in kwargs.items()})

        def placed(tensor: Any) -> Any:
            if not isinstance(tensor, Tensor):
                return type(tensor)(map(placed, tensor)) if type(tensor) in (list, tuple) else tensor
            before = given.get(id(tensor))
            if isinstance(before, OnDevice) and (before.shape, before.stride()) != (tensor.shape, tensor.stride()):
                before.data = OnDevice(tensor)  # resized in place
            return before if before is not None else OnDevice(tensor) if stays else tensor

        return placed(result)

    def copy_here(self, source: Tensor, target: OnDevice, non_blocking: bool = False) -> Tensor:
        """Copy a tensor of the CPU to the device, for `torch.tensor(..., device=...)`."""
        self._note_waits(aten.copy_.default, (target, source, non_blocking), {}, True)
        target.plain().copy_(source)
        return target

    def _check_devices(self, func: Any, args: Any, tensors: list[Tensor]) -> None:
        strangers = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
        if func in INDEXED and isinstance(args[0], OnDevice):
            strangers = [tensor for tensor in args[2:3] if not isinstance(tensor, OnDevice)]
        # A number that lies on the CPU is given to the kernel as a number.
        numbers = func in INDEXED or torch.Tag.pointwise in func.tags
        if func in COPIES or not strangers or (numbers and all(tensor.dim() == 0 for tensor in strangers)):
            return
        named = ", ".join(f"{'device' if isinstance(tensor, OnDevice) else 'cpu'} {list(tensor.shape)}" for tensor in tensors)
        place = next(_own_frames())[0]
        self.meetings[f"{func} of {named}", place] += 1
        if self.strict:
            raise DevicesMeet(f"tensors of two devices meet: {func} of {named}, at {place}")

    def _note_waits(self, func: Any, args: Any, kwargs: dict[str, Any], stays: bool) -> None:
        if func in COPIES:
            # Whatever comes here from the CPU is copied into a tensor that is here.
            source, here = (args[0], stays) if func is aten._to_copy.default else (args[1], isinstance(args[0], OnDevice))
            if isinstance(source, OnDevice) == here:
                return
            if not (kwargs.get("non_blocking") or any(args[2:])):
                self.wait("to device" if here else "to cpu")
            # What is converted, or has gaps, goes through memory that is not pinned.
            elif here and not (self._is_pinned(source) and source.dtype == args[0].dtype and source.is_contiguous()):
                self.wait("to device, not pinned")
        elif func in INDEXED:
            indices = [index for index in args[1] if index is not None]
            # One number for all that a mask picks is filled in without counting.
            fills = func is not aten.index.Tensor and len(indices) == 1 and args[2].numel() == 1
            if not fills and any(isinstance(index, OnDevice) and index.dtype == torch.bool for index in indices):
                self.wait("boolean mask")
            for _ in [index for index in indices if not isinstance(index, OnDevice)]:
                self.wait("index to device")
        elif func in COUNTED and kwargs.get("output_size") is None:
            self.wait(COUNTED[func])

    def _pin(self, tensor: Tensor) -> Tensor:
        pinned = tensor.clone()
        return self._pinned.setdefault(pinned.untyped_storage().data_ptr(), pinned)

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    """What torch asks of a backend."""

    is_built = has_primary_context = lambda *_: True

    def is_available(self) -> bool:
        return StandIn.current.is_watching


class _Module(_DummyBackendModule):
    """`torch.standin`."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


_library = torch.library.Library("aten", "IMPL")


def _register() -> None:
    """Make the device known to torch: once a process, and for good."""
    if hasattr(OnDevice, "home"):
        return
    _setup_privateuseone_for_python_backend(StandIn.name, _Module(), _Hooks(), _Guard())
    OnDevice.home = torch.device(StandIn.name, 0)
    # Optimisers take many tensors at once where they know the type.
    for known in (_foreach_utils._foreach_supported_types, optimizer._foreach_supported_types):
        known.append(OnDevice)

    def empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
        return OnDevice(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))

    def empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
        return OnDevice(torch.empty_strided(size, stride, dtype=dtype))

    # All that makes a tensor of none, or of the CPU's, comes down to these three.
    _library.impl("empty.memory_format", empty, "PrivateUse1")
    _library.impl("empty_strided", empty_strided, "PrivateUse1")
    _library.impl("_copy_from", lambda *args: StandIn.current.copy_here(*args), "PrivateUse1")
    for name in (
        "silu_backward",
        "mish_backward",
    ):  # never called; without them torch takes other formulas, which round otherwise
        _library.impl(name, lambda *_: NotImplemented, "PrivateUse1")


def _collect(values: Any, found: list[Any]) -> None:
    """Add the tensors among an operation's arguments to a list."""
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif type(value) in (list, tuple):
            _collect(value, found)


def _plain(value: Any, given: dict[int, Any]) -> Any:
    """Return an argument as the CPU takes it; `given` learns which tensor stands for which."""
    kind = type(value)
    if kind in (list, tuple):
        return kind([_plain(part, given) for part in value])
    if isinstance(value, Tensor):
        plain = value.plain() if isinstance(value, OnDevice) else value
        given[id(plain)] = value
        return plain
    return torch.device("cpu") if kind is torch.device else value


def _own_frames() -> Iterator[tuple[str, str]]:
    """Yield folder/file:line and file.function of the frames that are no library's and not this file's, the innermost first."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/rlcm/" in file or not file.startswith((__file__, sys.base_prefix, sys.prefix, "<")):
            path = Path(file)
            yield f"{path.parent.name}/{path.name}:{frame.f_lineno}", f"{path.stem}.{frame.f_code.co_name}"
        frame = frame.f_back
