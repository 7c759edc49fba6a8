"""The state of objects in a checkpoint: plain values under the names of their attributes.

State consists of tensors, numbers, texts, None, and lists, tuples, sets and dicts of these, and of
two kinds of objects that hold them:

- A `Stateful` object (a method, its buffer, its penalty) is built again from the config when a run
  continues, and then loads its state in place. Left out are functions, generators and objects
  marked `Rebuilt`; options that are plain values are stored with the rest.
- An object that a run creates while it trains (the curvature of a task) is a dataclass or a named
  tuple. It is stored under a name that `stored_as` gives its class, so that the class may be moved
  or renamed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from torch import Generator, Tensor, nn

PLAIN = (Tensor, int, float, str, bool, bytes, type(None))
SET = "set"
T = TypeVar("T")
_classes: dict[str, type] = {}
_names: dict[type, str] = {}


class Rebuilt:
    """Marks an object that is built from the config: it is left out of its owner's state."""


class Stateful:
    """An object whose state is its attributes, except those that come from the config."""

    def state_dict(self) -> dict[str, Any]:
        """The state in plain values; raises TypeError for an attribute that cannot be stored."""
        state = {}
        for name, value in vars(self).items():
            if not is_state(value):
                continue
            try:
                state[name] = packed(value)
            except TypeError as error:
                raise TypeError(f"{type(self).__name__}.{name}: {error}") from None
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned; raises KeyError where an attribute is missing."""
        missing = {name for name, value in vars(self).items() if is_state(value)} - state.keys()
        if missing:
            raise KeyError(f"{type(self).__name__}.{min(missing)}")
        for name, value in state.items():
            setattr(self, name, unpacked(value, getattr(self, name, None)))


def stored_as(name: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: the name of a dataclass or a named tuple in checkpoints."""

    def register(cls: type[T]) -> type[T]:
        known = _classes.get(name)
        assert known is None or known.__qualname__ == cls.__qualname__, f"{name} is taken"
        _classes[name], _names[cls] = cls, name
        return cls

    return register


def is_state(value: Any) -> bool:
    """Whether an attribute belongs to the state, and does not come from the config."""
    if isinstance(value, Stateful) or type(value) in _names:
        return True
    if isinstance(value, Rebuilt | Generator):
        return False
    return isinstance(value, nn.Module) or not callable(value)


def packed(value: Any) -> Any:
    """Convert a value to plain types, recursively; raises TypeError where that is not possible."""
    if isinstance(value, PLAIN):
        return value
    if type(value) in (list, tuple):
        return type(value)(packed(item) for item in value)
    if isinstance(value, dict):
        return {key: packed(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return {"kind": SET, "state": sorted(value)}
    if isinstance(value, Stateful):
        return {"kind": "", "state": value.state_dict()}
    if isinstance(value, nn.Module):
        raise TypeError("is a network; keep its parameters: Learner.snapshot(), or tensors")
    cls = type(value)
    if cls in _names and not isinstance(value, nn.Module):
        own = _fields(value)
        return {"kind": _names[cls], "state": {key: packed(item) for key, item in own.items()}}
    raise TypeError(
        f"{cls.__module__}.{cls.__qualname__} cannot go into a checkpoint: keep tensors and plain "
        "values, or a dataclass with a name for it (core.state.stored_as)"
    )


def _fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass or named tuple, by name."""
    names = [f.name for f in fields(value)] if is_dataclass(value) else value._fields
    return {name: getattr(value, name) for name in names}


def unpacked(stored: Any, present: Any) -> Any:
    """Convert a stored value back; a Stateful object is loaded into `present`, the one built anew.

    Raises KeyError where a class was stored under a name that is not known.
    """
    if type(stored) in (list, tuple):
        known = [*present] if isinstance(present, list | tuple) else []
        known += [None] * (len(stored) - len(known))
        return type(stored)(unpacked(*pair) for pair in zip(stored, known, strict=False))
    if not isinstance(stored, dict):
        return stored
    if stored.keys() != {"kind", "state"}:
        known = present if isinstance(present, dict) else {}
        return {key: unpacked(value, known.get(key)) for key, value in stored.items()}
    kind, state = stored["kind"], stored["state"]
    if kind == SET:
        return set(state)
    if kind == "":
        assert isinstance(present, Stateful), "the state of an object that is not there"
        present.load_state_dict(state)
        return present
    if kind not in _classes:
        raise KeyError(f"no class is stored as {kind!r}")
    return _classes[kind](**{key: unpacked(value, None) for key, value in state.items()})
