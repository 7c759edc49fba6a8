"""Finds what all training steps of a task have in common, so that they can be planned ahead.

A step can be planned where it differs from the next one in nothing but its batch, its decisions
(`core.decisions`), its learning rate and the values of tensors that stay where they are. Whether
that holds is seen by watching two steps. Otherwise there is a reason, in a few words.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cl_bench.core.buffer import Buffer
from cl_bench.core.decisions import Draw, Noted, decisions_from
from cl_bench.core.state import PLAIN, Stateful, is_state
from cl_bench.methods.base import Method

aten = torch.ops.aten
# operations whose result, or its size, the CPU must know to go on
READ = {
    *(aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.item, aten.nonzero),
    *(aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive),
    *(aten.bincount, aten.repeat_interleave, aten._linalg_eigh, aten._linalg_svd),
}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
COPIES = {aten.copy_, aten._to_copy}


@dataclass
class Pattern:
    """What all steps of a task have in common."""

    draws: list[Draw]  # its decisions, in their order
    shapes: list[torch.Size]  # and their shapes
    renewed: list[tuple[Stateful, str]]  # attributes with a new tensor of the same shape each step
    gradients: int  # that a step adds to `Learner.sample_gradients`

    def equals(self, other: Pattern) -> bool:
        """Whether two steps ask for the same decisions and change the same things."""
        one, two = ([(id(o), n) for o, n in each.renewed] for each in (self, other))
        same = self.shapes == other.shapes and self.gradients == other.gradients
        return same and one == two


@dataclass
class Leaf:
    """A tensor or a plain value of a method's state, and the object whose attribute it is."""

    value: Any
    owner: Stateful | None
    name: str


def watched(method: Method, step: Callable[[], Tensor]) -> tuple[Tensor, Pattern | str]:
    """Take a step; returns its loss, and its pattern, or why the next step may be another."""
    learner = method.learner
    notes, reads = Noted(learner.rng), ReadValues()
    before, gradients = leaves(method), learner.sample_gradients
    reads.notes = notes
    with decisions_from(notes), reads:
        loss = step()
    notes.look()
    renewed, changed = _changes(before, leaves(method))
    reason = notes.refused or reads.found or changed
    if reason is not None:
        return loss, reason
    gradients = learner.sample_gradients - gradients
    return loss, Pattern(notes.draws, notes.shapes, renewed, gradients)


class ReadValues(TorchDispatchMode):
    """Notes an operation for which the CPU waits, or that brings a value from it to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: str | None = None
        self.notes: Noted | None = None  # while it decides, the CPU may read its own values

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if self.notes is None or not self.notes.deciding:
            self._look(func, args, found)
        return found

    def _look(self, func: Any, args: Any, found: Any) -> None:
        name = func.overloadpacket
        if name in READ:
            self.found = f"it reads a value in each step, at {_place_in_code()}"
        elif name in INDEXED and _depends_on_a_mask(args):
            self.found = f"it takes rows by a mask in each step, at {_place_in_code()}"
        elif name in COPIES:
            devices = {t.device.type for t in (*args[:2], found) if isinstance(t, Tensor)}
            if len(devices) > 1:
                self.found = f"it copies to or from the device in each step, at {_place_in_code()}"


def _depends_on_a_mask(args: Any) -> bool:
    """Whether a mask is an index, of more than a number: that is filled in."""
    masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
    return bool(masks) and (len(args) < 3 or args[2].numel() > 1)


def _place_in_code() -> str:
    """file:line of the innermost frame outside of PyTorch and this module."""
    frame = sys._getframe(1)
    outside = str(Path(torch.__file__).parent), __file__
    while frame.f_back is not None and frame.f_code.co_filename.startswith(outside):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def leaves(method: Method) -> dict[str, Leaf]:
    """All tensors and plain values of a method and its optimizer, by their path."""
    found = dict(_walk(type(method).__name__, method, None, ""))
    optimizer = method.learner.optimizer.state_dict()
    for group in optimizer.get("param_groups", ()):
        group.pop("lr", None)  # of this step
    return found | dict(_walk("optimizer", optimizer, None, ""))


def _walk(path: str, value: Any, owner: Stateful | None, name: str) -> Iterator[tuple[str, Leaf]]:
    """The leaves under `value`, which is the attribute `name` of `owner`, if that is an object."""
    if isinstance(value, PLAIN):
        yield path, Leaf(value, owner, name)
        return
    above = value if isinstance(value, Stateful) else None
    for key, item in _items(value):
        yield from _walk(f"{path}.{key}", item, above, str(key))


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    """What an object or a container holds; of a buffer its rows, as its draws change the rest."""
    if isinstance(value, Buffer):
        return [("rows", value.rows)]
    if isinstance(value, Stateful):
        return [(key, item) for key, item in vars(value).items() if is_state(item)]
    if isinstance(value, dict):
        return value.items()
    if is_dataclass(value):
        return [(each.name, getattr(value, each.name)) for each in fields(value)]
    return enumerate(value if isinstance(value, list | tuple | set) else ())


def _changes(
    before: dict[str, Leaf], after: dict[str, Leaf]
) -> tuple[list[tuple[Stateful, str]], str | None]:
    """The attributes that have a new tensor, and what else has changed, if anything."""
    other = before.keys() ^ after.keys()
    if other:
        return [], f"{min(other)} is made or dropped in a step"
    renewed = []
    for path, now in after.items():
        old = before[path].value
        if not isinstance(now.value, Tensor) or not isinstance(old, Tensor):
            if type(now.value) is not type(old) or now.value != old:
                return [], f"{path} changes with each step"
        elif _place(now.value) != _place(old):
            if now.owner is None or _kind(now.value) != _kind(old):
                return [], f"{path} is another tensor after each step; write into it in place"
            renewed.append((now.owner, now.name))
    return renewed, None


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.stride(), *_kind(tensor)


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device
