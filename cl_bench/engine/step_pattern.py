"""Finds what all training steps of a task have in common, so that they can be planned ahead.

A step can be planned where it differs from the next one in nothing but its batch, its decisions
(`core.decisions`), its learning rate and the values of tensors that stay where they are. Whether
that holds is seen by watching two steps. Otherwise there is a reason, in a few words.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cl_bench.core.buffer import Buffer
from cl_bench.core.decisions import Draw, RecordedDecisions, decisions_from
from cl_bench.core.learner import Learner
from cl_bench.core.state import PLAIN, Stateful, is_state
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
MADE = "is made or dropped in a step"  # which the next step may not do any more
COUNTERS = {"sample_gradients", "lr_factor"}  # of a learner; what a plan takes care of
Changed = tuple[Any, str]  # an object and the name of its attribute


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


@dataclass
class Leaf:
    """A tensor or a plain value of a run's state, and the object whose attribute it is, if any."""

    value: Any
    owner: Any
    name: str

    def __post_init__(self) -> None:
        """Note where a tensor lies now: its `data` may be replaced."""
        tensor = self.value
        if isinstance(tensor, Tensor):
            self.kind = tensor.shape, tensor.dtype, tensor.device
            self.place = tensor.data_ptr(), tensor.stride()


def watched(method: Method, step: Callable[[], Tensor]) -> tuple[Tensor, Pattern | str]:
    """Take a step; returns its loss, and its pattern, or why the next step may be another."""
    learner = method.learner
    decisions = RecordedDecisions(learner.rng, lambda: _counts(method))
    before, gradients, draws = leaves(method), learner.sample_gradients, _global_draws()
    reads = ReadValues(decisions)
    with decisions_from(decisions), reads:
        loss = step()
    decisions.check_rest()
    if draws != _global_draws():
        decisions.refuse("it draws from a generator of Python, NumPy or PyTorch; use learner.rng")
    renewed, changed = _changes(before, leaves(method))
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


def places(method: Method) -> dict[str, Any]:
    """Where each tensor lies that a step may use, and the plain values beside them."""
    return {
        path: leaf.place if isinstance(leaf.value, Tensor) else leaf.value
        for path, leaf in leaves(method).items()
    }


def leaves(method: Method) -> dict[str, Leaf]:
    """The tensors and plain values of method, optimizer, learner and network, by their path."""
    learner = method.learner
    found = dict(_walk(type(method).__name__, method, None, ""))
    optimizer = learner.optimizer.state_dict()
    for group in optimizer.get("param_groups", ()):
        group.pop("lr", None)  # of this step
    found |= dict(_walk("optimizer", optimizer, None, ""))
    parts: list[tuple[str, Any]] = [(f"network.{n}", m) for n, m in learner.net.named_modules()]
    parts += [("learner", learner), ("criterion", learner.criterion)]
    for path, part in [*parts, ("transform", learner.transform)]:
        found |= {f"{path}.{leaf.name}": leaf for leaf in _own(part)}
    return found


def _own(part: Any) -> Iterator[Leaf]:
    """Tensors and plain values that are attributes of a module, or of a part of the learner."""
    own = {**vars(part), **(part._buffers if isinstance(part, nn.Module) else {})}
    for name, value in own.items():
        if isinstance(value, PLAIN) and not (isinstance(part, Learner) and name in COUNTERS):
            yield Leaf(value, part, name)


def _counts(method: Method) -> list[Any]:
    """The plain values of the method's buffers, which change in their decisions alone."""
    found = [value for value in vars(method).values() if isinstance(value, Buffer)]
    return [repr({k: v for k, v in vars(b).items() if not _has_tensors(v)}) for b in found]


def _has_tensors(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def _walk(path: str, value: Any, owner: Any, name: str) -> Iterator[tuple[str, Leaf]]:
    """The leaves under `value`, which is the attribute `name` of `owner`, if that is an object."""
    if isinstance(value, PLAIN):
        yield path, Leaf(value, owner, name)
        return
    above = value if isinstance(value, Stateful) else None
    for key, item in _items(value):
        yield from _walk(f"{path}.{key}", item, above, str(key))


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    """What an object or a container holds; of a buffer its tensors: decisions change the rest."""
    if isinstance(value, Buffer):
        return [(key, item) for key, item in vars(value).items() if _has_tensors(item)]
    if isinstance(value, Stateful):
        return [(key, item) for key, item in vars(value).items() if is_state(item)]
    if isinstance(value, dict):
        return value.items()
    if is_dataclass(value):
        return [(each.name, getattr(value, each.name)) for each in fields(value)]
    return enumerate(value if isinstance(value, list | tuple | set) else ())


def _changes(before: dict[str, Leaf], after: dict[str, Leaf]) -> tuple[list[Changed], str | None]:
    """The attributes that have a new tensor, and what else has changed, if anything."""
    other = before.keys() ^ after.keys()
    if other:
        return [], f"{min(other)} {MADE}"
    renewed = []
    for path, now in after.items():
        old = before[path]
        if not isinstance(now.value, Tensor) or not isinstance(old.value, Tensor):
            if type(now.value) is not type(old.value) or now.value != old.value:
                return [], f"{path} changes with each step"
        elif now.value is not old.value or now.place != old.place:
            if now.place == old.place and now.kind == old.kind:
                continue  # another view of the same memory
            if now.value is old.value or now.owner is None or now.kind != old.kind:
                return [], f"{path} is another tensor after each step; write into it in place"
            renewed.append((now.owner, now.name))
    return renewed, None
