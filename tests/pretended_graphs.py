"""CUDA graphs on a pretended device (`pretended_cuda`): what a captured step does, and only that.

While a graph is captured, its operations are recorded, and then undone: nothing has been computed.
A replay carries out the recorded operations, with the tensors and numbers of the capture: Python
does not run again, and results lie where they lay. What a real graph refuses is refused: an
operation for which the host waits, a copy from or to the CPU, a draw from a generator that is not
registered. A replay counts as one launch in the device's `events`: ("graph", "replay").
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from pretended_cuda import PretendedCuda

REFUSED = ("sync", "h2d", "d2h", "h2d_async", "pin")


class NotPermitted(RuntimeError):
    """What PyTorch raises for an operation that a graph cannot hold."""


class PretendedGraph:
    """In place of torch.cuda.CUDAGraph."""

    def __init__(self, world: PretendedCuda) -> None:
        self.world = world
        self.generators: list[Any] = []
        self.calls: list[tuple[Any, Any, Any, Any]] = []  # function, args, kwargs, result

    def register_generator_state(self, generator: Generator) -> None:
        self.generators.append(generator)

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """Record the operations of the block, and undo them."""
        states = [generator.get_state() for generator in self.generators]
        events = self.world.events.copy()
        with _Recorder(self) as recorder:
            yield
        new, self.world.events = self.world.events - events, events
        refused = [what for kind, what in new if kind in REFUSED]
        if refused:
            raise NotPermitted(f"operation not permitted when stream is capturing: {refused}")
        with torch.no_grad(), _disable_current_modes():
            for tensor, before in recorder.written.values():
                tensor.copy_(before)
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)

    def replay(self) -> None:
        """Carry out the recorded operations, each with its result where that lay."""
        with torch.no_grad(), _disable_current_modes():  # Python sees one call, as of a real graph
            for func, args, kwargs, kept in self.calls:
                found = func(*args, **kwargs)
                for old, new in zip(tensors(kept), tensors(found), strict=True):
                    if _address(old) != _address(new) and not old._is_zerotensor():
                        old.copy_(new)
        self.world.events["graph", "replay"] += 1


# the types of most values without tensors, which are passed over first
NO_TENSORS = {int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size}


class _Recorder(TorchDispatchMode):
    """Records each operation but views, and keeps what it is the first to overwrite."""

    def __init__(self, graph: PretendedGraph) -> None:
        super().__init__()
        self.graph = graph
        self.written: dict[int, tuple[Tensor, Tensor]] = {}  # by storage: all of it, and a copy

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rng = kwargs.get("generator")
        if rng is not None and rng._cdata not in {known._cdata for known in self.graph.generators}:
            raise NotPermitted(f"{func} draws from a generator that the graph does not know")
        for arg, said in zip(args, func._schema.arguments, strict=False):
            if said.alias_info is not None and said.alias_info.is_write:
                self._keep(arg)
        for said in func._schema.arguments:
            if said.alias_info is not None and said.alias_info.is_write and said.name in kwargs:
                self._keep(kwargs[said.name])
        if func.overloadpacket is torch.ops.aten.native_batch_norm:  # its schema does not say so
            self._keep(args[3:5])
        found = func(*args, **kwargs)
        if not func.is_view:
            self.graph.calls.append((func, *map(self._as_they_are, (args, kwargs, found))))
        return found

    @staticmethod
    def _as_they_are(value: Any) -> Any:
        """The same memory as other tensors, which keep their shapes (`squeeze_` changes one)."""
        with _disable_current_modes():
            return tree_map_only(Tensor, lambda t: t if t._is_zerotensor() else t.detach(), value)

    def _keep(self, written: Any) -> None:
        """Copy the storage of what an operation is about to overwrite, once."""
        with _disable_current_modes():
            for tensor in tensors(written):
                if _address(tensor)[0] not in self.written:
                    whole = torch.empty(0, dtype=torch.uint8)
                    whole.set_(tensor.untyped_storage())
                    self.written[_address(tensor)[0]] = whole, whole.clone()


def tensors(*values: Any) -> list[Tensor]:
    """The tensors among values and in their lists, tuples and dicts.

    It does what PyTorch's `tree_leaves` does in a tenth of the time: each operation of a test calls
    it three times.
    """
    found: list[Tensor] = []
    for value in values:
        if type(value) in NO_TENSORS:
            continue
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            if value:
                found += tensors(*value)
        elif isinstance(value, dict) and value:
            found += tensors(*value.values())
    return found


def _address(tensor: Tensor) -> tuple[Any, Any]:
    return tensor.untyped_storage()._cdata, tensor.storage_offset()


class Stream:
    """In place of torch.cuda.Stream: the device does one thing after the other."""

    def __init__(self, device: Any = None) -> None:
        self.device = device

    def wait_stream(self, other: Stream) -> None:
        """Nothing to wait for."""


def replacements(world: PretendedCuda) -> dict[str, Any]:
    """What stands in torch.cuda while a device is pretended."""

    @contextlib.contextmanager
    def graph(made: PretendedGraph, stream: Stream) -> Iterator[None]:
        with made.captured():
            yield

    return {
        "CUDAGraph": lambda: PretendedGraph(world),
        "graph": graph,
        "Stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": Stream,
    }
