"""Refuses streams without clean boundaries, and tests along the way, where they do not fit."""

from __future__ import annotations

from typing import Any

from hydra.utils import get_object
from omegaconf import OmegaConf

from cl_bench.base.exceptions import UserError
from cl_bench.config import folders
from cl_bench.data.boundaries import blurry, online

NEEDED = {"epochs": 1, "warm_up": "none", "batch_norm": "train"}  # where no boundary is told


def check(plain: dict[str, Any]) -> None:
    """Raise UserError where a resolved config asks for boundaries that its stream does not have."""
    stream, scenario = plain["stream"], plain["scenario"]["name"]
    kind = get_object(stream["_target_"])
    if kind is blurry and scenario != "class":
        raise UserError(
            f"stream=blurry: classes come in several tasks, which scenario={scenario} cannot "
            "tell apart; use scenario=class"
        )
    if kind is online or (kind is blurry and not stream["boundaries"]):
        hidden = "stream.boundaries=false" if kind is blurry else "stream=online"
        _check_hidden(plain, hidden)


def require_tests(every: int | None, images: int) -> None:
    """Raise UserError where fewer images are learned than lie between two tests along the way."""
    if every is not None and every > images:
        raise UserError(
            f"evaluation.every={every}: no test would be made, because at most {images} training "
            "images are learned in all; use a smaller number"
        )


def _task_free_methods() -> list[str]:
    """The options of the group `method` whose class needs no boundary, on any stream."""
    names = [name for name in folders.option_names("method") if not _chooses_stream(name)]
    return [name for name in names if (kind := method_class(name)) and kind.task_free]


def method_class(name: str) -> Any:
    """The class of an option of the group `method`, read without composing; None for none."""
    keys = ("_target_", "method._target_")
    found = [OmegaConf.select(node, key) for node in reversed(_nodes(name)) for key in keys]
    target = next(filter(None, found), None)
    return target and get_object(target)


def _chooses_stream(method: str) -> bool:
    """Whether an option chooses its own stream, as joint does."""
    bases = [base for node in _nodes(method) for base in OmegaConf.select(node, "defaults") or ()]
    return any("/stream" in str(base) for base in bases)


def _nodes(method: str) -> list[Any]:
    """An option's YAML file, after those of the options that it is derived from."""
    return [OmegaConf.create(text) for text in folders.texts_with_bases("method", method)]


def _check_hidden(plain: dict[str, Any], hidden: str) -> None:
    """Refuse what uses the boundaries of tasks; `hidden` is the option that hides them."""
    if plain["scenario"]["name"] == "task":
        raise UserError(
            f"{hidden}: scenario=task tells the task of each image, and with it the boundaries; "
            "use scenario=class or data"
        )
    method = get_object(plain["method"]["_target_"])
    if not method.task_free:
        raise UserError(
            f"{hidden}: the method {method.__name__} must be told where a task ends; use one that "
            f"says task_free = True: {', '.join(_task_free_methods())}"
        )
    if plain["method"].get("adapt") is True:
        raise UserError(
            f"method.adapt=true: the network is trained until the first task ends, which {hidden} "
            "does not tell; use method.adapt=false"
        )
    options = plain["method"].get("buffer")
    idle = "method.buffer" in method.unused(plain)
    if options and not idle and not get_object(options["_target_"]).task_free:
        raise UserError(
            f"{hidden}: the buffer must be told where a task ends; use buffer="
            + ("scored" if method.gives_scores else "reservoir, balanced or greedy")
        )
    for key, value in NEEDED.items():
        given = plain["schedule"][key]
        if given != value:
            raise UserError(
                f"schedule.{key}={given}: {hidden} shows each image once and no boundary; use "
                f"schedule.{key}={value}"
            )
