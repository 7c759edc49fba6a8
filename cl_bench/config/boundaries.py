"""Refuses streams without clean boundaries, and tests along the way, where they do not fit."""

from __future__ import annotations

from pathlib import Path
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
    files = {file.stem: file for file in folders.option_files("method")}
    targets = ((name, _target(name, files)) for name in files)
    return [name for name, target in targets if target and get_object(target).task_free]


def _target(name: str, files: dict[str, Path]) -> str | None:
    """The `_target_` in an option's file, or in that of the option that it is based on.

    None for an option that chooses its own stream, as joint does.
    """
    node = OmegaConf.load(files[name])
    defaults = OmegaConf.select(node, "defaults") or ()
    if any("/stream" in str(base) for base in defaults):
        return None
    own = OmegaConf.select(node, "_target_") or OmegaConf.select(node, "method._target_")
    bases = [base.partition("@")[0] for base in defaults if isinstance(base, str)]
    found = (_target(base, files) for base in bases if base in files)
    return own or next(filter(None, found), None)


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
    options = plain["method"].get("buffer")
    idle = "method.buffer" in method.unused(plain)
    if options and not idle and not get_object(options["_target_"]).task_free:
        raise UserError(
            f"{hidden}: the buffer must be told where a task ends; use buffer=reservoir or balanced"
        )
    for key, value in NEEDED.items():
        given = plain["schedule"][key]
        if given != value:
            raise UserError(
                f"schedule.{key}={given}: {hidden} shows each image once and no boundary; use "
                f"schedule.{key}={value}"
            )
