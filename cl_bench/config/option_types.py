"""Whether a plain value of a config may go where a type is written, and what it must be if not."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Sequence
from functools import cache
from math import isfinite
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union

from pydantic import TypeAdapter, ValidationError

SCALARS = (int, float, bool, str, NoneType)
WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}


LARGEST = 2**31 - 1  # of an integer: a size, or a count of what is in memory
SMALL, LARGE = 1e-30, 1e15  # of a number but 0: products of two of them are numbers of float32


def unusable(value: Any) -> str | None:
    """What a number must be, in words, to be computed with in float32; None where it can be."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not isfinite(number):
            return "finite"
        if isinstance(number, int) and abs(number) > LARGEST:
            return f"between -{LARGEST} and {LARGEST}"
        if isinstance(number, float) and number and not SMALL <= abs(number) <= LARGE:
            return f"0, or between {SMALL:g} and {LARGE:g} in size"
    return None


def fault(value: Any, hint: Any) -> str | None:
    """What a value must be and is not, in words; None: it may go where `hint` is written.

    A node that makes an object may go wherever an object is asked for. An integer may go for a
    number with a fraction, and a list for a tuple of its length.
    """
    own = plain(hint)
    if isinstance(value, dict) and "_target_" in value:
        objects = hint is Any or own != hint
        return None if objects else spelled(hint)
    if own is None:
        return f"a node with a _target_ that makes {spelled(hint)}"
    if unusable(value) == "finite" and "number" in spelled(own):
        return "finite"
    try:
        adapter(own).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        bounds = [found for e in error.errors() if (found := _bound(own, e)) is not None]
        return bounds[0] if bounds else spelled(own)
    return None


def plain(hint: Any) -> Any:
    """What of a type a config can say in plain values; None: only a node with a `_target_` can."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint in SCALARS or origin is Literal:
        return hint
    if origin is Annotated:
        inner = plain(args[0])
        return None if inner is None else Annotated[inner, *args[1:]]
    if origin in (Union, UnionType):
        kept = [own for arg in args if (own := plain(arg)) is not None]
        return Union[tuple(kept)] if kept else None  # noqa: UP007
    if origin in (list, Sequence, tuple, dict):
        own = [arg if arg is Ellipsis else plain(arg) for arg in args]
        generic: Any = origin
        return None if None in own else generic[tuple(own)]
    return None


def adapter(hint: Any) -> TypeAdapter:
    """What checks a value against a type; made once for each type, as that is slow."""
    try:
        return _cached_adapter(hint)
    except TypeError:  # an annotation that cannot be hashed
        return TypeAdapter(hint)


@cache
def _cached_adapter(hint: Any) -> TypeAdapter:
    return TypeAdapter(hint)


def accepts(hint: Any, value: Any) -> bool:
    return hint is not None and fault(value, hint) is None


def _bound(hint: Any, error: Any) -> str | None:
    """The bounds that a number is outside of, in words; None where its type is another one."""
    kinds = ("greater_than", "less_than", "too_short", "pattern")
    if not any(kind in error["type"] for kind in kinds):
        return None
    return next(
        (requirement for requirement in map(_spelled_bounds, _annotated(hint)) if requirement), None
    )


def _annotated(hint: Any) -> Iterator[tuple[Any, ...]]:
    """The annotations of a type and of those within it."""
    if typing.get_origin(hint) is Annotated:
        yield typing.get_args(hint)[1:]
    if typing.get_origin(hint) is not Literal:
        for arg in typing.get_args(hint):
            yield from _annotated(arg)


SIDES = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def _spelled_bounds(annotations: tuple[Any, ...]) -> str:
    """`at least 0 and below 1`; or what the annotation says of itself."""
    for annotation in annotations:
        if requirement := getattr(annotation, "description", None):
            return requirement
        if getattr(annotation, "min_length", None):
            return "a text that is not empty"
    sides = {s: v for a in annotations for s in SIDES if (v := getattr(a, s, None)) is not None}
    if sides.keys() == {"ge", "le"}:
        return f"between {sides['ge']} and {sides['le']}"
    return " and ".join(f"{SIDES[side]} {value}" for side, value in sides.items())


def is_real(hint: Any) -> bool:
    """Whether an integer becomes a number with a fraction here: 1 and 1.0 are one value."""
    args = typing.get_args(hint) if typing.get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [typing.get_args(a)[0] if typing.get_origin(a) is Annotated else a for a in args]
    return float in kinds and int not in kinds


def spelled(hint: Any) -> str:
    """A type in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return spelled(args[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, UnionType):
        return " or ".join(spelled(arg) for arg in args)
    if origin is tuple:
        return f"a list of {len(args)} values, each {spelled(args[0])}"
    if origin in (list, Sequence):
        return "a list of " + spelled(args[0])
    return WORDS.get(hint, "null" if hint is NoneType else getattr(hint, "__name__", str(hint)))
