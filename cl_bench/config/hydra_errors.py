"""What Hydra and OmegaConf say of a command line, in one line of our words."""

from __future__ import annotations

import re
import shlex
from argparse import ArgumentParser
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import hydra.errors
from antlr4.error.Errors import RecognitionException
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from cl_bench.base.exceptions import UserError
from cl_bench.base.files import absolute
from cl_bench.config.nodes import CONF, EXTRAS, OPTIONAL

MAY_BE_NULL = (*OPTIONAL, "experiment")
SEVERAL = ("experiment",)  # groups of which a list of options may be chosen
MULTIRUN = ("-m", "--multirun")
FOLDERS = ("--config-dir", "-cd", "--config-path", "-cp")  # options that name a folder
SHELLS = ("bash", "zsh", "fish")
KEY = re.compile(r"[+~]{0,2}[A-Za-z_$][\w$-]*([./@:][A-Za-z0-9_$][\w$-]*)*", re.ASCII)
GRAMMAR = re.compile(r"Lexer|mismatched|extraneous|no viable|missing|token")  # its parser's words


def arguments(words: list[str]) -> list[str]:
    """The words of a command line as Hydra takes them; UserError for what it would not explain.

    `-m` is put behind all overrides where it stands between them: Hydra would stop at it.
    """
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
    return words


def _check_options(parser: ArgumentParser, words: list[str]) -> None:
    """UserError for what argparse and Hydra would refuse, with their usage or a traceback."""

    def refuse(message: str) -> NoReturn:
        behind = "; options stand before all overrides or behind them"
        raise UserError(message + (behind if message.startswith("unrecognized") else ""))

    parser.error = refuse  # type: ignore[method-assign]
    if "--version" in words:
        return
    found = parser.parse_args(words)
    kinds = ("run", "multirun", "cfg", "info", "shell_completion")
    typed = [f"--{kind.replace('_', '-')}" for kind in kinds if getattr(found, kind)]
    if len(typed) > 1:
        raise UserError(f"{' '.join(typed)}: only one of them serves in a command")
    if found.resolve and not (found.cfg or found.help):
        raise UserError("--resolve: serves with --cfg or --help only")
    if found.experimental_rerun and not Path(found.experimental_rerun).is_file():
        raise UserError(f"--experimental-rerun {found.experimental_rerun}: no such file")
    shell = next(iter(found.overrides), "").partition("=")[2]
    if found.shell_completion and shell not in SHELLS:
        raise UserError(f"--shell-completion {shell}: no such shell; there are {', '.join(SHELLS)}")


def _check_choice(group: str, value: str) -> None:
    """UserError where a group is given no name of an option: Hydra would not name the group."""
    known = bool(group) and (CONF / group).is_dir()
    if not known and not ("/" in group and value == "null"):
        return
    several = value.startswith("[") and group in SEVERAL
    if not several and re.fullmatch(r"[-+]?[\d.]+(e\d+)?|[\[{].*|true|false|null", value, re.I):
        without = f"; leave it out for none, or ~{group}" if group in MAY_BE_NULL else ""
        raise UserError(f"{group}={value}: no such {group}{_there(group)}{without}")


def _check_sweep(word: str) -> None:
    """UserError where a sweep over a key has no values: Hydra would end without a job."""
    try:
        override = OverridesParser.create().parse_override(word)
    except (hydra.errors.HydraException, RecognitionException):
        return  # told when Hydra reads it
    value = override.value()
    if isinstance(value, Glob):
        files = (CONF / override.key_or_group).glob("*.yaml")
        values = value.filter([file.stem for file in files])
    elif override.is_choice_sweep():
        values = list(override.sweep_string_iterator())
        for each in values:
            _check_choice(override.key_or_group, each)
    elif override.is_range_sweep():
        values = list(islice(override.sweep_iterator(), 1))
    else:
        return
    if not values:
        raise UserError(f"{word}: has no values; a sweep is over one at least")


def _there(group: str) -> str:
    options = sorted(e.stem for e in (CONF / group).glob("*.yaml"))
    return f"; there are {', '.join(options)}" if options else ""


def _check_folders(words: list[str]) -> None:
    """UserError where an option names a folder of configs that is not there: Hydra would go on."""
    for place, word in enumerate(words):
        option, assigned, value = word.partition("=")
        if option in FOLDERS:
            value = value if assigned else next(iter(words[place + 1 :]), "")
            if not absolute(value).is_dir():
                raise UserError(f"{option} {value}: no such folder")


def explain_key(error: BaseException) -> str | None:
    """A line for a key or an option that does not exist; None for another error."""
    if isinstance(error, hydra.errors.MissingConfigException) and error.missing_cfg_file:
        return _absent(error.missing_cfg_file, error.options or [])
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        parent = error.parent_node
        there = sorted(map(str, parent)) if isinstance(parent, DictConfig) else []
        there = [k for k in there if k not in ("_target_", "_partial_", "hydra")]
        known = f"; there are {', '.join(there)}" if there else ""
        missing = isinstance(error, ConfigAttributeError | ConfigKeyError)
        hint = _elsewhere(error.full_key, parent, error.key) if missing else ""
        said = f"no such key{hint}" if missing else first_line(error)
        return f"{error.full_key}: {said}{known}"
    return None


def explain_composition(error: BaseException) -> str | None:
    """A line for another error of the composition; None for what is none."""
    if isinstance(error, hydra.errors.OverrideParseException):
        unknown = re.search(r"Unknown function '\w+'", str(error))
        return _unparsed(error.override, unknown[0] if unknown else lines(error)[-1])
    if isinstance(error, hydra.errors.ConfigCompositionException):
        return _uncomposed(first_line(error))
    return first_line(error) if isinstance(error, hydra.errors.HydraException) else None


def _unparsed(override: str, said: str) -> str:
    """Of an argument that Hydra's grammar does not take: how a value with such characters is typed.

    In Hydra ~ ( ) [ ] { } , : = and spaces have a meaning, and so have letters beyond ASCII not.
    """
    key, assigned, value = override.partition("=")
    wrong = f"{override}: no <key>=<value>, each an argument of its own"
    if not KEY.fullmatch(key):
        return f"{wrong}: a key is letters, digits and _, its parts joined by dots"
    if not assigned or value[:1] in ("", "="):
        return f"{wrong}, {said}"
    reason = "" if GRAMMAR.match(said) else f" ({said})"
    return (
        f"{wrong}{reason}: a value with one of ~ ( ) [ ] {{ }} , : = ^ or with spaces or letters "
        f"beyond ASCII is quoted twice, {quoted(key, value)}"
    )


def quoted(key: str, value: str) -> str:
    """How `key=value` is typed in a shell where the value is a text, whatever is in it.

    Hydra reads double quotes, in which a quote has a backslash before it; the shell single ones.
    """
    text = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + m[2].replace('"', '\\"'), value.strip("'\""))
    return shlex.quote(f'{key}="{text}"')


def _uncomposed(line: str) -> str:
    nested = re.match(r"Could not override '(\w+)/(\S+)'", line)
    if nested:
        return f"{line} {nested[1]}/{nested[2]}=<option> is typed {nested[1]}={nested[2]}/<option>"
    several = re.match(r"Ambiguous value for argument '([^=]+)=(.*)'$", line)
    if several:
        return (
            f"{line}: several values are a sweep; add -m (a list is [a,b], a text with a comma "
            f"{quoted(several[1], several[2])})"
        )
    return line


def _elsewhere(full: str, parent: Any, key: Any) -> str:
    """Where else in the config a key stands: `buffer.size` for `size` or `method.buffer.size`."""
    group, _, own = full.partition(".")[2].partition(".")
    if own and any(own in OmegaConf.load(file) for file in (CONF / group).glob("*.yaml")):
        return f", but {group}.{own}"
    found = parent.items_ex(resolve=False) if isinstance(parent, DictConfig) else []
    places = [
        f"{name}.{key}" for name, node in found if isinstance(node, DictConfig) and key in node
    ]
    return f", but {', '.join(places)}" if places else ""


def _absent(file: str, options: Sequence[str]) -> str:
    group, _, name = file.rpartition("/")
    if not group:
        return f"--config-name {name}: no such config; there is config"
    if group == "hydra/launcher" and name in EXTRAS:
        return f'{group}: {name} is not installed; pip install -e ".[{EXTRAS[name]}]"'
    root, _, part = group.partition("/")  # experiment/halrp=x is typed experiment=halrp/x
    nested = root != "hydra" and bool(part)
    entries = [*(CONF / group).glob("[a-z]*/"), *(CONF / group).glob("*.yaml")]
    there = sorted(f"{e.stem}/" if e.is_dir() else e.stem for e in entries) or options
    where = f"in {part}/ there" if nested and entries else "there"
    typed = f"{root}={part}/{name}" if nested else f"{group}={name}"
    return f"{typed}: no such {root if nested else group}; {where} are {', '.join(there)}"


def first_line(error: BaseException) -> str:
    return lines(error)[0]


def lines(error: BaseException) -> list[str]:
    """What it says, but where to read more, and marks below a line."""
    told = [line for line in str(error).strip().splitlines() if line.strip(" ^")]
    lines = [line for line in told if not line.startswith("See http")]
    return lines or [type(error).__name__]
