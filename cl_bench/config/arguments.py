"""Refuses command lines to which Hydra would answer with a traceback, or not at all."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import hydra.errors
from antlr4.error.Errors import RecognitionException
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override

from cl_bench.base.exceptions import UserError, one_line
from cl_bench.base.files import absolute
from cl_bench.config import folders
from cl_bench.config.nodes import OPTIONAL

MAY_BE_NULL = (*OPTIONAL, "experiment", "backbone")
LISTABLE = ("experiment",)  # groups of which several options may be chosen at once
MULTIRUN = ("-m", "--multirun")
FOLDERS = ("--config-path", "-cp")  # options that name a folder, beside --config-dir
SHELLS = ("bash", "zsh", "fish")


def checked_arguments(words: list[str]) -> list[str]:
    """The words of a command line, as Hydra accepts them.

    A `-m` between two overrides is moved behind them, since Hydra would refuse it there.
    `--config-dir` is left out, since this package reads it (`config.folders`). Beside a sweep over
    options, values are written as `_as_choices` says. Raises UserError for an unknown option, an
    argument without a key, an unknown option of a group, a sweep without values, or a missing
    folder of configs.
    """
    words = folders.take_options(words)
    parser = get_args_parser()
    known = sorted(o for a in parser._actions for o in a.option_strings)
    for word in words:
        if not word.strip():
            raise UserError("'': an argument is empty; each is <key>=<value> or an option")
        option = word.partition("=")[0]
        short = any(option.startswith(o) for o in known if len(o) == 2) and option[1] != "-"
        if word.startswith("-") and option not in known and not short:
            raise UserError(f"{option}: no such option; there are {', '.join(known)}")
        if word.startswith("=") or option.strip() != option:
            raise UserError(f"{word}: no key before the =; each argument is <key>=<value>")
        _check_choice(option, word.partition("=")[2])
        _check_sweep(word)
    _check_folders(words)
    for flag in {*MULTIRUN} & {*words}:
        place = words.index(flag)
        if "=" in "".join(words[:place]):
            words = [*words[:place], *words[place + 1 :], flag]
    _check_options(parser, words)
    return _as_choices(words) if {*MULTIRUN} & {*words} else words


def _as_choices(words: list[str]) -> list[str]:
    """The words of a sweep, with `method.strength=3` as a choice of one value.

    Only where an option of a group is swept over. Hydra composes a config without the swept options
    first, and would refuse a key that only these have: `-m method=ewc,osla method.strength=3`.
    """
    parsed = [_parsed(word) for word in words]
    swept = [o for o in parsed if o is not None and o.is_sweep_override()]
    if not any(folders.is_group(override.key_or_group) for override in swept):
        return words
    return [
        word if override is None else _as_choice(word, override)
        for word, override in zip(words, parsed, strict=True)
    ]


def _as_choice(word: str, override: Override) -> str:
    key, _, value = word.partition("=")
    fixed = override.is_sweep_override() or override.is_hydra_override()
    plain = re.fullmatch(r"\w+(\.\w+)+", key) is not None  # of no group, and neither + nor ~
    return word if fixed or not plain else f"{key}=choice({value})"


def _parsed(word: str) -> Override | None:
    """An override; None for another word, and for one that Hydra will refuse."""
    try:
        return OverridesParser.create().parse_override(word)
    except (hydra.errors.HydraException, RecognitionException):
        return None


def _check_options(parser: ArgumentParser, words: list[str]) -> None:
    """Raise UserError for options that argparse or Hydra would refuse in several lines."""

    def refuse(message: str) -> NoReturn:
        place = "; options stand before all overrides or behind them"
        raise UserError(message + (place if message.startswith("unrecognized") else ""))

    parser.error = refuse  # type: ignore[method-assign]
    if "--version" in words:
        return
    found = parser.parse_args(words)
    actions = ("run", "multirun", "cfg", "info", "shell_completion")
    given = [f"--{action.replace('_', '-')}" for action in actions if getattr(found, action)]
    if len(given) > 1:
        raise UserError(f"{' '.join(given)}: a command takes only one of them")
    if found.resolve and not (found.cfg or found.help):
        raise UserError("--resolve: needs --cfg or --help")
    if found.experimental_rerun and not Path(found.experimental_rerun).is_file():
        raise UserError(f"--experimental-rerun {found.experimental_rerun}: no such file")
    shell = next(iter(found.overrides), "").partition("=")[2]
    if found.shell_completion and shell not in SHELLS:
        raise UserError(f"--shell-completion {shell}: no such shell; there are {', '.join(SHELLS)}")


def _check_choice(group: str, value: str) -> None:
    """Raise UserError where the value of a group cannot be the name of one of its options.

    Hydra's own message for a number, a list, true, false or null would not name the group.
    """
    known = folders.is_group(group)
    if not known and not ("/" in group and value == "null"):
        return
    several = value.startswith("[") and group in LISTABLE
    if not several and re.fullmatch(r"[-+]?[\d.]+(e\d+)?|[\[{].*|true|false|null", value, re.I):
        without = f"; for none leave it out, or ~{group}" if group in MAY_BE_NULL else ""
        raise UserError(f"{group}={value}: no such {group}{_known_options(group)}{without}")


def _check_sweep(word: str) -> None:
    """Raise UserError where a sweep has no values: Hydra would end without running a job."""
    override = _parsed(word)
    if override is None:
        return  # Hydra's own refusal follows
    try:
        values = _swept(override)
    except Exception as error:
        raise UserError(f"{word}: no values to sweep over ({one_line(error)})") from None
    if values is not None and not values:
        raise UserError(f"{word}: has no values; a sweep needs at least one")
    if override.is_choice_sweep():
        for each in values or []:
            _check_choice(override.key_or_group, each)


def _swept(override: Override) -> list[Any] | None:
    """The values that an override sweeps over (of a range the first); None where it has one."""
    value = override.value()
    if isinstance(value, Glob):
        return value.filter(folders.option_names(override.key_or_group))
    if override.is_choice_sweep():
        return list(override.sweep_string_iterator())
    if override.is_range_sweep():
        return list(islice(override.sweep_iterator(), 1))
    return None


def _known_options(group: str) -> str:
    options = folders.option_names(group)
    return f"; there are {', '.join(options)}" if options else ""


def _check_folders(words: list[str]) -> None:
    """Raise UserError where a folder of configs does not exist: Hydra would ignore it."""
    for place, word in enumerate(words):
        option, assigned, value = word.partition("=")
        if option in FOLDERS:
            value = value if assigned else next(iter(words[place + 1 :]), "")
            if not absolute(value).is_dir():
                raise UserError(f"{option} {value}: no such folder")
