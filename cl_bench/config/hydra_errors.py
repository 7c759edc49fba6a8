"""Explains the errors of Hydra and OmegaConf about a command line, each in one line."""

from __future__ import annotations

import re
import shlex
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import hydra.errors
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from cl_bench.base.exceptions import UserError, one_line
from cl_bench.config import folders
from cl_bench.config.nodes import CONF, EXTRAS

KEY = re.compile(r"[+~]{0,2}[A-Za-z_$][\w$-]*([./@:][A-Za-z0-9_$][\w$-]*)*", re.ASCII)
OPTIONS_OF_YOUR_OWN = (
    f"options of your own are found by {folders.OPTIONS[0]} <folder> or {folders.VARIABLE}"
)
GRAMMAR = re.compile(r"Lexer|mismatched|extraneous|no viable|missing|token")  # in ANTLR's errors


def explain_key(error: BaseException) -> str | None:
    """A line for a key or an option of a group that does not exist; None for another error."""
    if isinstance(error, hydra.errors.MissingConfigException) and error.missing_cfg_file:
        return _no_such_option(error.missing_cfg_file, error.options or [])
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        parent = error.parent_node
        keys = sorted(map(str, parent)) if isinstance(parent, DictConfig) else []
        keys = [k for k in keys if k not in ("_target_", "_partial_", "hydra")]
        known = f"; there are {', '.join(keys)}" if keys else ""
        missing = isinstance(error, ConfigAttributeError | ConfigKeyError)
        hint = _other_places(error.full_key, parent, error.key) if missing else ""
        if missing and not hint:
            near = get_close_matches(str(error.key), keys, n=1, cutoff=0.7)
            hint = f" (did you mean {near[0]}?)" if near else ""
            hint = hint or _more_arguments(error.full_key, parent)
            hint = hint or _in_other_groups(error.full_key, parent)
        owner = _class_of(parent) if missing else ""
        reason = f"no such key{owner}{hint}" if missing else first_line(error)
        return f"{error.full_key}: {reason}{known}"
    return None


def _more_arguments(full_key: str, node: Any) -> str:
    """How an argument is added that the options do not name, to a class that is not ours."""
    if not isinstance(node, DictConfig):
        return ""
    target, is_open = node.get("_target_"), OmegaConf.is_missing(node, "_target_")
    if not is_open and (target is None or str(target).startswith("cl_bench.")):
        return ""
    return f" (an argument of the class or function is added by +{full_key}=<value>)"


def _class_of(node: Any) -> str:
    """` of the class EWC` for a node whose `_target_` is this class; "" for a function, or none."""
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    name = target.rpartition(".")[2] if isinstance(target, str) else ""
    return f" of the class {name}" if name[:1].isupper() else ""


def explain_hydra_keys(error: BaseException, words: Sequence[str]) -> str | None:
    """A line for an error that Hydra raised about its own settings, `hydra.<key>=<value>`.

    None where `words`, the command line, sets none of them, or other code raised the error.
    """
    given = [word for word in words if word.lstrip("+~").startswith("hydra")]
    if isinstance(error, UserError | hydra.errors.ConfigCompositionException):
        return None  # these name the key themselves
    package = module_that_raised(error).partition(".")[0]
    if not given or package not in ("hydra", "hydra_plugins", "omegaconf"):
        return None
    return f"{' '.join(given)}: Hydra refuses it ({one_line(error)})"


def module_that_raised(error: BaseException) -> str:
    """The name of the module whose line raised an error; empty for one that was not raised."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals.get("__name__", "") if frames else ""


def explain_composition(error: BaseException) -> str | None:
    """A line for another error of Hydra's while it composes a config; None for any other error."""
    if isinstance(error, hydra.errors.OverrideParseException):
        unknown = re.search(r"Unknown function '\w+'", str(error))
        return _not_parsed(error.override, unknown[0] if unknown else lines(error)[-1])
    if isinstance(error, hydra.errors.ConfigCompositionException):
        return _not_composed(first_line(error))
    return first_line(error) if isinstance(error, hydra.errors.HydraException) else None


def _not_parsed(override: str, reason: str) -> str:
    """Of an argument that Hydra's grammar does not accept: how its value must be quoted.

    The characters ~ ( ) [ ] { } , : = and spaces have a meaning in Hydra's grammar; letters beyond
    ASCII are not part of it.
    """
    key, assigned, value = override.partition("=")
    wrong = f"{override}: is not one argument <key>=<value>"
    if not KEY.fullmatch(key):
        return f"{wrong}: a key is letters, digits and _, its parts joined by dots"
    if not assigned or value[:1] in ("", "="):
        return wrong if GRAMMAR.match(reason) else f"{wrong}, {reason}"
    hint = "" if GRAMMAR.match(reason) else f" ({reason})"
    return (
        f"{wrong}{hint}: a value with one of ~ ( ) [ ] {{ }} , : = ^, a space or a letter beyond "
        f"ASCII must be quoted twice, {quoted(key, value)}"
    )


def quoted(key: str, value: str) -> str:
    """`key=value` as it is written in a shell, whatever characters are in the value.

    The single quotes are for the shell, the double quotes for Hydra, where a double quote within
    the value has a backslash before it.
    """
    text = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + m[2].replace('"', '\\"'), value.strip("'\""))
    return shlex.quote(f'{key}="{text}"')


def _not_composed(line: str) -> str:
    """Hydra's own line about a group or a value, with the right way to write it."""
    nested = re.match(r"Could not override '(\w+)/(\S+)'", line)
    if nested:
        return (
            f"{line} {nested[1]}/{nested[2]}=<option> is written {nested[1]}={nested[2]}/<option>"
        )
    several = re.match(r"Ambiguous value for argument '([^=]+)=(.*)'$", line)
    if several:
        return (
            f"{line}: several values are a sweep; add -m (a list is [a,b], a text with a comma "
            f"{quoted(several[1], several[2])})"
        )
    return line


def _other_places(full: str, parent: Any, key: Any) -> str:
    """Where else a key is: `buffer.size` for `size`, `stream=blurry has it` for `stream.blur`."""
    group, _, own = full.partition(".")[2].partition(".")
    files = [*folders.option_files(group), *CONF.glob(f"{group}_base.yaml")]
    if own and any(own in OmegaConf.load(file) for file in files):
        return f", but {group}.{own}"
    found = parent.items_ex(resolve=False) if isinstance(parent, DictConfig) else []
    places = [
        f"{name}.{key}" for name, node in found if isinstance(node, DictConfig) and key in node
    ]
    if places:
        return f", but {', '.join(places)}"
    group, _, own = full.rpartition(".")
    group = group.rpartition(".")[2]
    files = folders.option_files(group) if group else []
    options = [f for f in files if own in _own_keys(f, group)]
    names = [f"{group}={file.stem}" for file in options]
    have = "has it" if len(names) == 1 else "have it" if len(names) < 5 else "and others have it"
    return f", but {', '.join(names[:4])} {have}" if names else ""


def _in_other_groups(full: str, node: Any) -> str:
    """Which other groups have a key of a group: `optimizer.lr` for `schedule.lr`.

    `node` is the group. A key that the config has outside of all groups, such as `seed`, is named
    alone.
    """
    group, _, key = full.partition(".")
    root = node._get_parent() if isinstance(node, DictConfig) else None
    if not isinstance(root, DictConfig) or "." in key or key.startswith("_") or group == "hydra":
        return ""
    if key in root:
        return f", but {key}"
    groups = [(name, part) for name, part in root.items_ex(resolve=False) if name != "hydra"]
    places = [
        f"{name}.{key}" for name, part in groups if isinstance(part, DictConfig) and key in part
    ]
    return f", but {', '.join(places[:4])}" if places else ""


def _own_keys(file: Path, group: str) -> Any:
    """The keys of an option of a group, which may stand below the group's name in its file."""
    node = OmegaConf.load(file)
    below = node.get(group) if isinstance(node, DictConfig) else None
    return {*node, *below} if isinstance(below, DictConfig) else node


def _no_such_option(file: str, options: Sequence[str]) -> str:
    """Of a file that a group does not have: the group as it is written, and its options."""
    group, _, name = file.rpartition("/")
    if not group:
        return f"--config-name {name}: no such config; there is config"
    if group == "hydra/launcher" and name in EXTRAS:
        return f'{group}: {name} is not installed; pip install -e ".[{EXTRAS[name]}]"'
    root, _, part = group.partition("/")  # experiment/halrp=x is written experiment=halrp/x
    nested = root != "hydra" and bool(part)
    entries = [*(CONF / group).glob("[a-z]*/"), *folders.option_files(group)]
    known = sorted(f"{e.stem}/" if e.is_dir() else e.stem for e in entries) or options
    where = f"in {part}/ there" if nested and entries else "there"
    written = f"{root}={part}/{name}" if nested else f"{group}={name}"
    names, spelled = [entry.rstrip("/") for entry in known], name.replace("+", "p")  # der++: derpp
    near = get_close_matches(spelled, names, n=1, cutoff=0.7)
    meant = f" (did you mean {near[0]}?)" if near else ""
    if f"{name}/" in known:
        meant = f" ({name}/ is a folder: {group}={name}/<name>)"
    own = f"; {OPTIONS_OF_YOUR_OWN}" if root != "hydra" else ""
    kind = root if nested else group
    return f"{written}: no such {kind}{meant}; {where} are {', '.join(known)}{own}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return lines(error)[0]


def lines(error: BaseException) -> list[str]:
    """The lines of an error's message, without links and the carets below a line."""
    given = [line for line in str(error).strip().splitlines() if line.strip(" ^")]
    lines = [line for line in given if not line.startswith("See http")]
    return lines or [type(error).__name__]
