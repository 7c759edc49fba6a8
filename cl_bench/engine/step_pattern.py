"""Finds what all training steps of a task have in common, so that they can be planned ahead.

A step can be planned where it differs from the next one in nothing but its batch, its decisions
(`core.decisions`), its learning rate and the values of tensors that stay where they are. Whether
that holds is seen by watching two steps. Otherwise there is a reason, in a few words.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cl_bench.core.decisions import Draw, RecordedDecisions, decisions_from
from cl_bench.core.memory import Buffer
from cl_bench.engine.step_state import Changed, changes, has_tensors, leaves
from cl_bench.methods.base import Method

aten = torch.ops.aten
# operations whose result, or its size, the CPU must know to go on
READ = {
    *(aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.item, aten.nonzero),
    *(aten.masked_select, aten._unique2, aten._unique, aten.unique_dim, aten.unique_consecutive),
    *(aten.bincount, aten.repeat_interleave, aten.histc, aten._linalg_check_errors),
    *(aten._linalg_eigh, aten.linalg_eig, aten.linalg_eigvals, aten._linalg_eigvals),
    *(aten._linalg_svd, aten.linalg_lstsq),
}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


@dataclass
class Pattern:
    """What all steps of a task have in common."""

    draws: list[Draw]  # its decisions, in their order
    shapes: list[torch.Size]  # and their shapes
    renewed: list[Changed]  # attributes with a new tensor of the same shape after each step
    gradients: int  # that a step adds to `Learner.sample_gradients`

    def equals(self, other: Pattern) -> bool:
        """Whether two steps make the same decisions and change the same things."""
        one, two = ([(id(o), n) for o, n in each.renewed] for each in (self, other))
        same = self.shapes == other.shapes and self.gradients == other.gradients
        return same and one == two


def watched(method: Method, step: Callable[[], Tensor]) -> tuple[Tensor, Pattern | str]:
    """Take a step; returns its loss, and its pattern, or why the next step may be another."""
    learner = method.learner
    decisions = RecordedDecisions(learner.rng, lambda: _counts(method))
    before, gradients, draws = leaves(method), learner.sample_gradients, _global_draws()
    reads = ReadValues(decisions)
    with decisions_from(decisions), reads, _counts_are_not_read(method, decisions):
        loss = step()
    decisions.check_rest()
    if draws != _global_draws():
        decisions.refuse("it draws from a generator of Python, NumPy or PyTorch; use learner.rng")
    renewed, changed = changes(before, leaves(method))
    reason = decisions.refusal or reads.found or changed
    if reason is not None:
        return loss, reason
    gradients = learner.sample_gradients - gradients
    return loss, Pattern(decisions.draws, decisions.shapes, renewed, gradients)


class ReadValues(TorchDispatchMode):
    """Notes an operation that the CPU waits for, or that takes a value from the CPU."""

    def __init__(self, decisions: RecordedDecisions) -> None:
        super().__init__()
        self.found: str | None = None
        self.decisions = decisions  # in which the CPU may read its own values

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.found is None and not self.decisions.deciding:
            self._check(func.overloadpacket, args, [args, kwargs, result])
        return result

    def _check(self, name: Any, args: Any, everything: Any) -> None:
        devices = {device_type(t) for t in tree_leaves(everything) if isinstance(t, Tensor)}
        if name in READ:
            self.found = f"it reads a value in each step, at {_place_in_code()}"
        elif name in INDEXED and _depends_on_a_mask(args):
            self.found = f"it takes rows by a mask in each step, at {_place_in_code()}"
        elif len(devices) > 1 and name not in INDEXED:
            self.found = f"it takes a value from the CPU in each step, at {_place_in_code()}"


def device_type(tensor: Tensor) -> str:
    """cpu or cuda."""
    return tensor.device.type


def _depends_on_a_mask(args: Any) -> bool:
    """Whether a mask is an index of more than a number from the CPU, which is filled in."""
    masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
    number = len(args) > 2 and args[2].numel() == 1 and device_type(args[2]) == "cpu"
    return bool(masks) and not number


def _place_in_code() -> str:
    """file:line of the innermost frame outside of PyTorch and this module."""
    frame = sys._getframe(1)
    outside = str(Path(torch.__file__).parent), __file__
    while frame.f_back is not None and frame.f_code.co_filename.startswith(outside):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def _global_draws() -> Any:
    """The states of the generators that a method must not draw from."""
    numpy = sys.modules.get("numpy")
    own = numpy.random.get_state()[1].tolist() if numpy is not None else None
    return random.getstate(), torch.get_rng_state().tolist(), own


def _buffers(method: Method) -> list[Buffer]:
    return [value for value in vars(method).values() if isinstance(value, Buffer)]


def _counts_of(buffer: Buffer) -> dict[str, str]:
    return {k: repr(v) for k, v in vars(buffer).items() if not has_tensors(v)}


def _counts(method: Method) -> list[dict[str, str]]:
    """The plain values of the method's buffers, which change in their decisions alone."""
    return [_counts_of(buffer) for buffer in _buffers(method)]


@contextmanager
def _counts_are_not_read(method: Method, decisions: RecordedDecisions) -> Iterator[None]:
    """Refuse a step that reads, outside of its decisions, what its decisions change."""
    seen = [(each, type(each), _counts_of(each), set[str]()) for each in _buffers(method)]
    for buffer, kind, _, names in seen:
        buffer.__class__ = _noting(kind, names, decisions)
    try:
        yield
    finally:
        for buffer, kind, _, _ in seen:
            buffer.__class__ = kind
    for buffer, _, before, names in seen:
        after = _counts_of(buffer)
        changed = {name for name in names & after.keys() if before.get(name) != after[name]}
        if changed:
            reason = f"it reads {min(changed)} of its memory, which changes while steps are planned"
            decisions.refuse(f"{reason}; `memory.empty` may be read")


def _noting(kind: type[Buffer], names: set[str], decisions: RecordedDecisions) -> type[Buffer]:
    """The same class, whose attributes are noted when they are read outside of a decision."""

    def read(self: Buffer, name: str) -> Any:
        if not decisions.deciding:
            names.add(name)
        return object.__getattribute__(self, name)

    return type(kind.__name__, (kind,), {"__getattribute__": read})
