"""What a training step may use and change: the tensors and plain values of method and learner."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.state import PLAIN, Stateful, is_state
from cl_bench.methods.base import Method

MADE = "is made or dropped in a step"  # which the next step may not do any more
COUNTERS = {"sample_gradients", "lr_factor"}  # of a learner; what a plan takes care of
Changed = tuple[Any, str]  # an object and the name of its attribute


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


def has_tensors(value: Any) -> bool:
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
        return [(key, item) for key, item in vars(value).items() if has_tensors(item)]
    if isinstance(value, Stateful):
        return [(key, item) for key, item in vars(value).items() if is_state(item)]
    if isinstance(value, dict):
        return value.items()
    if is_dataclass(value):
        return [(each.name, getattr(value, each.name)) for each in fields(value)]
    return enumerate(value if isinstance(value, list | tuple | set) else ())


def changes(before: dict[str, Leaf], after: dict[str, Leaf]) -> tuple[list[Changed], str | None]:
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
