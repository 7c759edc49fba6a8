"""What Hydra and OmegaConf say of a command line, in one line of our words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

import hydra.errors
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from cl_bench.base.exceptions import UserError, one_line
from cl_bench.config.nodes import CONF, EXTRAS

KEY = re.compile(r"[+~]{0,2}[A-Za-z_$][\w$-]*([./@:][A-Za-z0-9_$][\w$-]*)*", re.ASCII)
GRAMMAR = re.compile(r"Lexer|mismatched|extraneous|no viable|missing|token")  # its parser's words


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
        reason = f"no such key{hint}" if missing else first_line(error)
        return f"{error.full_key}: {reason}{known}"
    return None


def of_own_options(error: BaseException, words: Sequence[str]) -> str | None:
    """A line for an error that Hydra raised over options of its own, `hydra.<key>=<value>`.

    None where none of them was typed, or where the error was raised by other code.
    """
    typed = [word for word in words if word.lstrip("+~").startswith("hydra")]
    if isinstance(error, UserError | hydra.errors.ConfigCompositionException):
        return None  # which name the key themselves
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    origin = place.tb_frame.f_globals.get("__name__", "") if place is not None else ""
    if not typed or origin.partition(".")[0] not in ("hydra", "hydra_plugins", "omegaconf"):
        return None
    return f"{' '.join(typed)}: Hydra does not take it ({one_line(error)})"


def explain_composition(error: BaseException) -> str | None:
    """A line for another error of the composition; None for what is none."""
    if isinstance(error, hydra.errors.OverrideParseException):
        unknown = re.search(r"Unknown function '\w+'", str(error))
        return _unparsed(error.override, unknown[0] if unknown else lines(error)[-1])
    if isinstance(error, hydra.errors.ConfigCompositionException):
        return _uncomposed(first_line(error))
    return first_line(error) if isinstance(error, hydra.errors.HydraException) else None


def _unparsed(override: str, reason: str) -> str:
    """Of an argument that Hydra's grammar does not take: how a value with such characters is typed.

    Hydra's grammar gives ~ ( ) [ ] { } , : = and spaces a meaning, and has no letters beyond ASCII.
    """
    key, assigned, value = override.partition("=")
    wrong = f"{override}: no <key>=<value>, each an argument of its own"
    if not KEY.fullmatch(key):
        return f"{wrong}: a key is letters, digits and _, its parts joined by dots"
    if not assigned or value[:1] in ("", "="):
        return wrong if GRAMMAR.match(reason) else f"{wrong}, {reason}"
    hint = "" if GRAMMAR.match(reason) else f" ({reason})"
    return (
        f"{wrong}{hint}: a value with one of ~ ( ) [ ] {{ }} , : = ^ or with spaces or letters "
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
    files = [*(CONF / group).glob("*.yaml"), *CONF.glob(f"{group}_base.yaml")]
    if own and any(own in OmegaConf.load(file) for file in files):
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
    given = [line for line in str(error).strip().splitlines() if line.strip(" ^")]
    lines = [line for line in given if not line.startswith("See http")]
    return lines or [type(error).__name__]
