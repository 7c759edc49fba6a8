"""Checks the value of an option against its type annotation, and puts such a type into words."""

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
PLURALS = {int: "integers", float: "numbers", str: "texts"}
SIDES = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
LARGEST = 2**31 - 1  # integers are sizes and counts of things in memory
SMALL, LARGE = 1e-30, 1e15  # in size, unless 0: float32 holds the product of two such numbers


def unmet_range(value: Any) -> str | None:
    """What a number must be to be usable in float32, in words; None where it is usable.

    Of a list the first unusable number counts.
    """
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not isfinite(number):
            return "finite"
        if isinstance(number, int) and abs(number) > LARGEST:
            return f"between -{LARGEST} and {LARGEST}"
        if isinstance(number, float) and number and not SMALL <= abs(number) <= LARGE:
            return f"0, or between {SMALL:g} and {LARGE:g} in size"
    return None


def unmet_requirement(value: Any, hint: Any) -> str | None:
    """What a value must be to have the type `hint`, in words; None where it has it.

    A node with a `_target_` is accepted for any type that is more than plain values, an integer for
    a float, and a list for a tuple of its length.
    """
    own = yaml_type(hint)
    if isinstance(value, dict) and "_target_" in value:
        takes_objects = hint is Any or own != hint
        return None if takes_objects else type_in_words(hint)
    if typing.get_origin(hint) is dict and isinstance(value, dict):
        unmet = (unmet_requirement(each, typing.get_args(hint)[1]) for each in value.values())
        return next((f"names with values that are {one}" for one in unmet if one), None)
    if own is None:
        return f"a node with a _target_ that makes {type_in_words(hint)}"
    if unmet_range(value) == "finite" and "number" in type_in_words(own):
        return "finite"
    try:
        type_adapter(own).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        bounds = [bound for e in error.errors() if (bound := _violated_bound(own, e)) is not None]
        return bounds[0] if bounds else type_in_words(own)
    return None


def yaml_type(hint: Any) -> Any:
    """The part of a type that values of YAML can have: of `list[int] | Tensor` the list.

    None where there is no such part, so that only a node with a `_target_` has the type.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint in SCALARS or origin is Literal:
        return hint
    if origin is Annotated:
        inner = yaml_type(args[0])
        return None if inner is None else Annotated[inner, *args[1:]]
    if origin in (Union, UnionType):
        kept = [own for arg in args if (own := yaml_type(arg)) is not None]
        return Union[tuple(kept)] if kept else None  # noqa: UP007
    if origin in (list, Sequence, tuple, dict):
        own = [arg if arg is Ellipsis else yaml_type(arg) for arg in args]
        generic: Any = origin
        return None if None in own else generic[tuple(own)]
    return None


def type_adapter(hint: Any) -> TypeAdapter:
    """Pydantic's validator of a type; cached, since it takes long to build."""
    try:
        return _cached_adapter(hint)
    except TypeError:  # an annotation that cannot be hashed
        return TypeAdapter(hint)


@cache
def _cached_adapter(hint: Any) -> TypeAdapter:
    return TypeAdapter(hint)


def has_type(value: Any, hint: Any) -> bool:
    """Whether a value has the type `hint`."""
    return unmet_requirement(value, hint) is None


def _violated_bound(hint: Any, error: Any) -> str | None:
    """The first bounds of a type, in words, if a validation error is about a bound; else None."""
    about_bounds = ("greater_than", "less_than", "too_short", "pattern")
    if not any(words in error["type"] for words in about_bounds):
        return None
    return next(iter(bounds_in_words(hint)), None)


def bounds_in_words(hint: Any) -> list[str]:
    """The bounds of a type and of the types within it, such as `at least 0 and below 1`."""
    return [words for annotations in _annotations(hint) if (words := _words_of(annotations))]


def _annotations(hint: Any) -> Iterator[tuple[Any, ...]]:
    """The annotations of each `Annotated` type in a type, from the outside to the inside."""
    if typing.get_origin(hint) is Annotated:
        yield typing.get_args(hint)[1:]
    if typing.get_origin(hint) is not Literal:
        for arg in typing.get_args(hint):
            yield from _annotations(arg)


def _words_of(annotations: tuple[Any, ...]) -> str:
    """The bounds in the annotations of one type; empty where they have none."""
    for annotation in annotations:
        if requirement := getattr(annotation, "description", None):
            return requirement
        if getattr(annotation, "min_length", None):
            return "a text that is not empty"
    sides = {s: v for a in annotations for s in SIDES if (v := getattr(a, s, None)) is not None}
    if sides.keys() == {"ge", "le"}:
        return f"between {sides['ge']} and {sides['le']}"
    return " and ".join(f"{SIDES[side]} {value}" for side, value in sides.items())


def is_float(hint: Any) -> bool:
    """Whether a type has floats and no integers, so that 1 and 1.0 mean the same."""
    args = typing.get_args(hint) if typing.get_origin(hint) in (Union, UnionType) else (hint,)
    types = [typing.get_args(a)[0] if typing.get_origin(a) is Annotated else a for a in args]
    return float in types and int not in types


def type_in_words(hint: Any) -> str:
    """A type in words, without its bounds: `a number or null`, `a list of integers`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return type_in_words(args[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, UnionType):
        if any(typing.get_origin(arg) in (list, tuple, Sequence) for arg in args):
            # null comes first, so that it does not read as a value in the list
            args = sorted(args, key=lambda arg: arg is not NoneType)
        return " or ".join(map(type_in_words, args))
    if origin is tuple:
        return f"a list of {len(args)} values, each {type_in_words(args[0])}"
    if origin in (list, Sequence):
        item = typing.get_args(args[0])[0] if typing.get_origin(args[0]) is Annotated else args[0]
        return "a list of " + PLURALS.get(item, f"values, each {type_in_words(item)}")
    return WORDS.get(hint, "null" if hint is NoneType else getattr(hint, "__name__", str(hint)))
