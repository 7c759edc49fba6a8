"""A CUDA device that is not there: tensors of the CPU whose place is pretended.

    with PretendedCuda() as device:
        run = SmallRun(..., device="cuda")()
    device.events, device.steps

All values are real, so that a run can be compared with the CPU's, bit for bit. What is pretended is
where a storage lies. PyTorch shows every operation to two modes:

Functions   above autograd: answers `.device`, moves tensors (`to`, `cpu`, `pin_memory`, factories
            with `device=`), and sees values that are read (`tolist`)
Operations  below autograd and torch.func: checks the operands of each ATen operation as a real
            device would (the rules are those of torch._subclasses.FakeTensorMode), and marks where
            the result lies

An operation on tensors of two devices raises Mismatch. What a device would wait for, or would do
slowly, is counted in `events` as (kind, what), and by its line in `sites`:

sync       the host waits for a result: item, bool, tolist, nonzero, a mask as an index, eigh
h2d, d2h   a copy between the device and pageable memory, for which the host waits too
h2d_async  a copy from page-locked memory, without a wait
pin        page-locked memory is made
kernel     an operation on the device that is no view: a lower bound of the launched kernels

What it does not see: autocast keeps the types of the CPU's bfloat16, hooks of autograd run without
`Functions`, and the few waits inside of PyTorch's own kernels that are not in WAITED_FOR.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pretended_graphs
import torch
from pretended_graphs import tensors
from torch import Generator, Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from cl_bench.core import runtime
from cl_bench.engine import step_pattern

PACKAGE = str(Path(runtime.__file__).parents[1])
aten, functorch = torch.ops.aten, getattr(torch._C, "_functorch")  # noqa: B009 (it has no stubs)
COPIES = {aten.copy_, aten._to_copy, aten.copy}
WAITED_FOR = {  # a value is read, the size of the result is only known there, or info is read back
    *(aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.item),
    *(aten.nonzero, aten.masked_select, aten._unique2, aten._unique, aten.unique_dim),
    *(aten.unique_consecutive, aten.bincount, aten.repeat_interleave, aten.histc),
    *(aten._linalg_eigh, aten.linalg_eig, aten._linalg_svd, aten.linalg_lstsq),
    *(aten._linalg_check_errors, aten.linalg_eigvals, aten._linalg_eigvals),
}
READ_AT = {aten.index, aten._unsafe_index}
WRITTEN_AT = {aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index_put}
REFUSED_WHEN_DETERMINISTIC = {
    *(aten.median, aten.put_, aten.put, aten.histc, aten.nll_loss2d_forward, aten.kthvalue),
    *(aten._adaptive_avg_pool2d_backward, aten.adaptive_max_pool2d_backward),
    *(aten.reflection_pad2d_backward, aten.upsample_bilinear2d_backward),
}
NO_KERNEL = {
    *(aten.detach, aten.alias, aten.lift_fresh, aten.is_pinned, aten._has_same_storage_numel),
    *(aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten.new_empty_strided),
    *(aten._local_scalar_dense, aten.set_, aten.is_same_size, aten._make_dual, aten._unpack_dual),
    *(aten._fw_primal, aten._linalg_check_errors),
}


class Mismatch(RuntimeError):
    """What a CUDA device raises for operands on two devices."""


class CpuGenerator(Generator):
    """A generator whose state, as PyTorch requires, comes from the CPU."""

    world: PretendedCuda | None = None

    def set_state(self, state: Tensor) -> Any:  # type: ignore[override]
        if self.world is not None and self.world.is_there(state):
            raise TypeError("RNG state must be a torch.ByteTensor")
        return super().set_state(state)


class CudaGenerator(CpuGenerator):
    """A generator of the CPU that says it is the device's."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        assert self.world is not None
        return self.world.device


class PretendedCuda(contextlib.ExitStack):
    """A context in which there are CUDA devices; see the head of this file.

    devices  how many there are. All work must be on one of them, the last one that was set
    kind     cuda, or mps, which has no float64 and no page-locked memory
    """

    def __init__(self, devices: int = 1, kind: str = "cuda") -> None:
        super().__init__()
        self.devices, self.kind = devices, kind
        self.device = torch.device(kind, 0)  # the current one
        self.events: Counter[tuple[str, str]] = Counter()
        self.sites: Counter[tuple[str, str, str]] = Counter()  # kind, what, file:line
        self.places: dict[int, tuple[str, StorageWeakRef]] = {}  # by storage: cuda, pinned, any
        self.asked: str | None = None  # `device=` of the function that is being called

    def __enter__(self) -> PretendedCuda:
        super().__enter__()
        answers: dict[str, Callable[..., Any]] = {
            "is_available": lambda: self.kind == "cuda",
            "device_count": lambda: self.devices,
            "set_device": self.set_device,
            "get_device_properties": lambda device: mock.Mock(uuid=f"pretended-{device.index}"),
            "synchronize": lambda *_: self.note("sync", "synchronize"),
            "empty_cache": lambda: None,
            "reset_peak_memory_stats": lambda *_: None,
            "max_memory_allocated": lambda *_: 0,
            "get_device_name": lambda *_: "pretended",
        }
        for name, answer in (answers | pretended_graphs.replacements(self)).items():
            self.enter_context(mock.patch.object(torch.cuda, name, answer))
        autocast, load, deepcopy = torch.autocast, torch.load, Tensor.__deepcopy__

        def loaded(file: Any, map_location: Any = None, **options: Any) -> Any:
            found = load(file, map_location="cpu", **options)
            if map_location is not None and self.is_device(map_location):
                for tensor in tensors(found):
                    if self.kind == "mps" and tensor.dtype == torch.float64:
                        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
                    self.put(tensor, "cuda")
            return found

        def copied(tensor: Tensor, memo: Any) -> Tensor:
            place = self.place_of(tensor)
            found = deepcopy(tensor, memo)
            self.put(tensor, place)  # whose storage was seen without it
            return self.put(found, place)

        nowhere, kind = mock.Mock(return_value=None), self.kind
        for owner, name, value in (
            (torch.accelerator, "current_accelerator", nowhere),
            (torch.backends.mps, "is_available", lambda: self.kind == "mps"),
            (torch.mps, "synchronize", lambda: self.note("sync", "synchronize")),
            (runtime, "Generator", self.generator),
            (torch, "load", loaded),
            (Tensor, "__deepcopy__", copied),
            (step_pattern, "device_type", lambda t: "cpu" if self.place_of(t) == "cpu" else kind),
            (torch, "autocast", lambda kind, **options: autocast("cpu", **options)),
        ):
            self.enter_context(mock.patch.object(owner, name, value))
        self.enter_context(Operations(self))
        self.enter_context(Functions(self))
        return self

    def set_device(self, device: torch.device) -> None:
        """What torch.cuda.set_device does."""
        self.device = device

    def is_device(self, named: Any) -> bool:
        """Whether `named` is the current device; raises Mismatch for another one than the CPU."""
        named = torch.device(named)
        if named.type == "cpu":
            return False
        if named.type != self.kind or named.index not in (None, self.device.index):
            self.note("mismatch", str(named))
            raise Mismatch(f"{named} is asked for, where {self.device} is in use")
        return True

    def generator(self, device: Any = "cpu") -> Generator:
        """A generator of this device, or of the CPU."""
        made = CudaGenerator() if self.is_device(device) else CpuGenerator()
        made.world = self
        return made

    def place_of(self, tensor: Tensor) -> str:
        """Where a tensor lies: cpu, cuda or pinned.

        `any` of one that PyTorch made within another operation without operands; it is where the
        tensor is that it is first combined with.
        """
        found = self.places.get(_plain(tensor).untyped_storage()._cdata)
        return "cpu" if found is None or found[1].expired() else found[0]

    def is_there(self, tensor: Tensor) -> bool:
        """Whether a tensor lies on the device."""
        return self.place_of(tensor) == "cuda"

    def put(self, tensor: Tensor, place: str) -> Tensor:
        """Note that a tensor lies there from now on, and return it."""
        storage = _plain(tensor).untyped_storage()
        if place == "cpu":
            self.places.pop(storage._cdata, None)
            return tensor
        self.places[storage._cdata] = place, StorageWeakRef(storage)
        if len(self.places) > 20_000:
            self.places = {k: v for k, v in self.places.items() if not v[1].expired()}
        return tensor

    def note(self, kind: str, what: str) -> None:
        """Count an event."""
        self.events[kind, what] += 1
        self.sites[kind, what, _site()] += 1

    def count(self, *kinds: str) -> int:
        """The number of events of these kinds so far."""
        return sum(number for (kind, _), number in self.events.items() if kind in kinds)

    @contextlib.contextmanager
    def each_call(self, owner: type, name: str) -> Iterator[list[Counter[tuple[str, str]]]]:
        """The events of each call of a method of a class, in the list that is given out."""
        calls: list[Counter[tuple[str, str]]] = []
        plain = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            before = self.events.copy()
            try:
                return plain(*args, **kwargs)
            finally:
                calls.append(self.events - before)

        with mock.patch.object(owner, name, counted):
            yield calls


def _plain(tensor: Tensor) -> Tensor:
    """The tensor within the wrappers of torch.func."""
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def _site() -> str:
    """file:line of the innermost frame of this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


class Kind(NamedTuple):
    """What is known of an operation, whatever its operands."""

    waits: bool  # for some operands the host waits
    refused: bool  # where algorithms have to be deterministic
    kernel: tuple[str, str] | None  # the event of its kernel; None without one


_kinds: dict[int, Kind] = {}  # by the id of the operation, which PyTorch keeps


def _kind_of(func: Any) -> Kind:
    found = _kinds.get(id(func))
    if found is None:
        packet = func.overloadpacket
        has_kernel = not func.is_view and packet not in NO_KERNEL
        found = _kinds[id(func)] = Kind(
            packet in WAITED_FOR | READ_AT | WRITTEN_AT,
            packet in REFUSED_WHEN_DETERMINISTIC,
            ("kernel", str(packet)) if has_kernel else None,
        )
    return found


class Operations(TorchDispatchMode):
    """Checks and marks each ATen operation."""

    def __init__(self, device: PretendedCuda) -> None:
        super().__init__()
        self.world = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            return self.carried_out(func, args, kwargs or {})

    def carried_out(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The result of an operation, marked with its place."""
        world, operands = self.world, tensors(args, kwargs)
        place = self.place_of_result(func, args, operands)
        if place == "cpu":
            return func(*args, **kwargs)
        if place == "cuda":
            self.note_launch(func, args, kwargs)
        before = {_plain(t).untyped_storage()._cdata for t in operands}
        out = func(*args, **kwargs)
        if world.kind == "mps" and place == "cuda":
            assert all(t.dtype != torch.float64 for t in tensors(out)), (
                f"{func}: mps has no float64"
            )
        for tensor in tensors(out):
            if tensor.untyped_storage()._cdata not in before:
                world.put(tensor, place)
        return out

    def note_launch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Count an operation on the device and its waits; raise where CUDA refuses it."""
        known = _kind_of(func)
        if known.waits:
            self.note_waits(func, args, kwargs)
        if known.refused and torch.are_deterministic_algorithms_enabled():
            self.world.note("nondeterministic", str(func))
            raise RuntimeError(f"{func} does not have a deterministic implementation on CUDA")
        if known.kernel:
            self.world.events[known.kernel] += 1

    def place_of_result(self, func: Any, args: Any, operands: list[Tensor]) -> str:
        """cpu, cuda, or `any`; raises Mismatch where operands lie on both."""
        world, packet = self.world, func.overloadpacket
        if not operands:
            return world.asked or "any"
        tags = [world.place_of(t) for t in operands]
        places = {"cuda" if tag == "cuda" else "cpu" for tag in tags if tag != "any"}
        if len(places) < 2:
            place = places.pop() if places else "any"
            for tensor, tag in zip(operands, tags, strict=True):
                if place == "cuda" and tag == "any":  # it is where the other operands are
                    world.put(tensor, "cuda")
            return place
        own = "cuda" if tags[0] == "cuda" else "cpu"
        if packet in COPIES:
            pinned = tags[1] == "pinned" and bool(args[2:] and args[2])
            world.note("h2d_async" if pinned else "h2d" if own == "cuda" else "d2h", str(packet))
            return own
        if (
            own == "cuda"
            and packet in READ_AT | WRITTEN_AT
            and self._index_alone_is_elsewhere(packet, args)
        ):
            world.note("h2d", f"{packet} by an index of the CPU")
            return own
        elsewhere = [t for t, tag in zip(operands, tags, strict=True) if tag != "cuda"]
        if self._takes_numbers(func, args, elsewhere):
            return "cuda"
        shown = ", ".join(
            f"{tuple(t.shape)} on {tag}" for t, tag in zip(operands, tags, strict=True)
        )
        world.note("mismatch", str(func))
        raise Mismatch(f"Expected all tensors to be on the same device: {func} of {shown}")

    def _takes_numbers(self, func: Any, args: Any, elsewhere: list[Tensor]) -> bool:
        """Whether the kernel takes the value of the only tensor of the CPU, which it only reads."""
        if torch.Tag.pointwise not in func.tags or func.overloadpacket is aten.clamp:
            return False
        written = [
            arg
            for arg, said in zip(args, func._schema.arguments, strict=False)
            if said.alias_info is not None and said.alias_info.is_write
        ]
        if len(elsewhere) != 1 or elsewhere[0].dim() or any(w is elsewhere[0] for w in written):
            return False
        if func.overloadpacket is aten.where:
            self.world.note("h2d", "where with a number of the CPU")
        return True

    def _index_alone_is_elsewhere(self, packet: Any, args: Any) -> bool:
        if packet in READ_AT:
            return True
        return self.world.is_there(args[2]) or args[2].dim() == 0

    def note_waits(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Count what the host waits for."""
        packet = func.overloadpacket
        if packet in WAITED_FOR:
            sized = packet is aten.repeat_interleave and kwargs.get("output_size") is not None
            if not sized:
                self.world.note("sync", str(packet))
        elif packet in READ_AT | WRITTEN_AT:
            indices = [i for i in args[1] if i is not None]
            masked = any(i.dtype in (torch.bool, torch.uint8) for i in indices)
            filled = (
                packet in WRITTEN_AT and args[2].numel() == 1 and not self.world.is_there(args[2])
            )
            if masked and not filled:  # a mask that is filled with a number becomes masked_fill
                self.world.note("sync", f"{packet} by a mask")


PROPERTIES = (Tensor.device, Tensor.is_cuda, Tensor.is_cpu)
MOVES: dict[Any, tuple[str, ...]] = {Tensor.to: (), Tensor.cpu: ("cpu",), Tensor.cuda: ("cuda",)}
READS = (Tensor.numpy, Tensor.__array__, Tensor.new_tensor, Tensor.tolist)


class Functions(TorchFunctionMode):
    """Answers where tensors are, and moves them."""

    def __init__(self, device: PretendedCuda) -> None:
        super().__init__()
        self.world = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        world, kwargs = self.world, kwargs or {}
        if getattr(func, "__name__", "") == "__get__" and func.__self__ in PROPERTIES:
            there = world.is_there(args[0])
            if func.__self__ is Tensor.device:
                return world.device if there else torch.device("cpu")
            return there == (func.__self__ is Tensor.is_cuda) and world.kind == "cuda"
        if func in MOVES:
            return self.moved(args[0], *MOVES[func], *args[1:], **kwargs)
        if func is Tensor.pin_memory:
            if world.kind != "cuda":
                raise RuntimeError("Cannot access accelerator device when none is available.")
            if world.is_there(args[0]):
                raise Mismatch("cannot pin a tensor of cuda: only dense CPU tensors can be pinned")
            world.note("pin", "pin_memory")
            return world.put(args[0].clone(), "pinned")
        if func in READS and world.is_there(args[0]):
            return self.read(func, args, kwargs)
        return self.called(func, args, kwargs)

    def read(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What reads the values of a tensor on the device, or copies values to it."""
        if func in (Tensor.numpy, Tensor.__array__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is Tensor.new_tensor:
            self.world.note("h2d", "new_tensor")
            return self.world.put(func(*args, **kwargs), "cuda")
        self.world.note("sync", "tolist")
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            return func(*args)

    def called(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Any other function; a factory makes its tensor where it is told to, or on the CPU."""
        world = self.world
        told = kwargs.get("device")
        target = "cuda" if told is not None and world.is_device(told) else "cpu"
        rng = kwargs.get("generator")
        if rng is not None and isinstance(rng, CudaGenerator) != (target == "cuda"):
            name = getattr(func, "__name__", func)
            world.note("mismatch", f"{name}: generator")
            raise Mismatch(
                f"Expected a '{target}' device type for generator but found '{rng.device}'"
            )
        if told is None and (world.asked is not None or tensors(args, kwargs)):
            return func(*args, **kwargs)
        from_values = func in (torch.tensor, torch.as_tensor, torch.asarray)
        if target == "cuda" and from_values and not isinstance(args[0], Tensor):
            world.note("h2d", "from values")
        before, world.asked = world.asked, target
        try:
            found = func(*args, **(kwargs if told is None else {**kwargs, "device": "cpu"}))
        finally:
            world.asked = before
        if told is None or not isinstance(found, Tensor):
            return found
        given = {_plain(t).untyped_storage()._cdata for t in tensors(args)}
        shared = _plain(found).untyped_storage()._cdata in given
        return world.put(found.clone() if shared else found, target)

    def moved(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`Tensor.to`, with any of its arguments."""
        world, given = self.world, list(args)
        target, options = None, {k: v for k, v in kwargs.items() if v is not None}
        other = options.pop("other", None)
        if given and isinstance(given[0], Tensor):
            other = given.pop(0)
        if other is not None:
            target, options["dtype"] = world.place_of(other), other.dtype
        elif given and isinstance(given[0], str | int | torch.device):
            target = "cuda" if world.is_device(given.pop(0)) else "cpu"
            if given:
                options["dtype"] = given.pop(0)
        elif given:
            options["dtype"] = given.pop(0)
        elif "device" in options:
            target = "cuda" if world.is_device(options["device"]) else "cpu"
        options.pop("device", None)
        options |= dict(zip(("non_blocking", "copy"), given, strict=False))
        waits, place = not options.pop("non_blocking", False), world.place_of(x)
        found = x.to(**options) if options else x
        there = place == "cuda"
        if target is None or (target == "cuda") == there:
            return found
        asynchronous = place == "pinned" and not waits
        world.note("d2h" if there else "h2d_async" if asynchronous else "h2d", "to")
        same = _plain(found).untyped_storage()._cdata == _plain(x).untyped_storage()._cdata
        return world.put(found.clone() if same else found, target)
