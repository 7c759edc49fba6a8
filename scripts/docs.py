"""Writes docs/options: a page for each group of conf/, with all of its options and their keys.

    python scripts/docs.py [--out FOLDER]

The pages are made from the YAML file of each option (headline, keys, values and comments), and from
the signature and the docstring of its `_target_` (types, bounds and explanations). Edit those and
run the command again. tests/test_docs.py fails where a page is out of date.
"""

from __future__ import annotations

import argparse
import inspect
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_object

from cl_bench.config import option_types
from cl_bench.config.nodes import CONF
from cl_bench.config.schema import KEYS_WITHOUT_TARGET
from cl_bench.list import headline

ROOT = Path(__file__).parents[1]
FOLDERS = {"launcher": CONF / "hydra/launcher"}  # of groups whose folder has another name
ABOUT = {  # what each group decides
    "method": "How a network learns from a batch, and what it keeps of past tasks.",
    "dataset": "The images, how they are cut into tasks, and how an image is augmented.",
    "scenario": "Which classes compete for a sample, and the order of the tasks.",
    "model": "The network, its initial weights, and whether it is pre-trained or linearised.",
    "backbone": "A pre-trained network, with the size of the images that it sees; none by default.",
    "criterion": "The loss of one sample.",
    "optimizer": "The step along the gradient, and weight decay.",
    "schedule": "Epochs, batch size and learning-rate decay within a task.",
    "curvature": "The matrix that says how much each parameter matters for a past task.",
    "merging": "How the curvatures of several tasks are added up.",
    "buffer": "Which samples of past tasks a replay method keeps.",
    "evaluation": "Which tasks are tested after each task, and on which images.",
    "stream": "How tasks come: one after the other, blurred, without boundaries, or all at once.",
    "probe": "What is measured besides the accuracy while a run trains; none by default.",
    "runtime": "Device, precision, compilation and threads.",
    "tracking": "Where a run is logged, besides the files in its folder.",
    "study": "Experiments on one network, in place of a run; none by default.",
    "experiment": "Published protocols, and sweeps that write a page of results.",
    "launcher": "Where the jobs of a sweep are executed: `hydra/launcher=<option>`.",
}
BASES = {"dataset_base", "model_base"}  # extended by options, and no options
KEY = re.compile(r"^( *)([\w./@]+): *(.*)$")
VALUE = re.compile(r"^(.*?)(?:(?:^|\s+)#\s*(.*))?$")
HIDDEN_KEYS = ("_target_", "_partial_")
HIDDEN_PARTS = ("defaults", "hydra.mode", "hydra.callbacks")


@dataclass
class Key:
    """A key of an option: its value and its comment, as the YAML file has them."""

    value: str
    comment: str


@dataclass
class Option:
    """One YAML file of a group, with the keys of the files that it extends."""

    group: str
    name: str
    file: Path
    keys: dict[str, Key] = field(default_factory=dict)  # dotted, from the root of a config
    chosen: dict[str, str] = field(default_factory=dict)  # options of other groups
    extends: list[str] = field(default_factory=list)

    def target(self, node: str) -> str:
        """The dotted path of what builds the object of a node; empty where nothing does."""
        found = self.keys.get(f"{node}._target_")
        return "" if found is None else found.value


def entries(text: str) -> Iterator[tuple[str, Key]]:
    """Each dotted key of a YAML text with its value and its comment, which an empty line ends."""
    above: list[tuple[int, str]] = []
    last: Key | None = None
    for line in text.splitlines():
        match = KEY.match(line)
        if match is None:
            last = last if line.strip() else None
            if last is not None and line.lstrip().startswith("#"):
                last.comment = f"{last.comment} {line.strip().lstrip('# ')}".strip()
            continue
        indent, (value, comment) = len(match[1]), VALUE.match(match[3]).groups()  # type: ignore[union-attr]
        above = [(depth, name) for depth, name in above if depth < indent]
        above.append((indent, match[2]))
        last = Key(value, comment or "")
        if value or comment:
            yield ".".join(name for _, name in above), last


def read(group: str, name: str) -> Option:
    """The option in a YAML file, with all that it extends."""
    folder = CONF if name in BASES else FOLDERS.get(group, CONF / group)
    option = Option(group, name, folder / f"{name}.yaml")
    text = option.file.read_text()
    for default in yaml.safe_load(text).get("defaults", []):
        _add_default(option, default)
    prefix = "" if "@package _global_" in text else f"{group}."
    prefix = "hydra.launcher." if group == "launcher" else prefix
    for key, entry in list(entries(text)):  # the later lines of a comment are in it then
        if not key.startswith(HIDDEN_PARTS):
            before = option.keys.get(prefix + key, entry)
            option.keys[prefix + key] = Key(entry.value, entry.comment or before.comment)
    return option


def _add_default(option: Option, default: Any) -> None:
    """Add one entry of an option's list of defaults."""
    (key, value), *_ = default.items() if isinstance(default, dict) else [(None, default)]
    if key is not None and key.startswith("override /"):
        option.chosen[key.removeprefix("override /").partition("@")[0]] = value
        return
    place = option.group if key is None else key.lstrip("/").partition("@")[0]
    group, _, inner = place.partition("/")
    names = value if isinstance(value, list) else [value]
    for name in [name.lstrip("/") for name in names if name != "_self_"]:
        path = name.partition("@")[0].removeprefix(f"{group}/")
        parent = "/".join(filter(None, (inner, path)))
        if parent not in BASES:
            option.extends.append(parent if group == option.group else f"{group}={parent}")
        if group == option.group and group != "launcher":
            found = read(group, parent)
            option.keys |= found.keys
            option.chosen = found.chosen | option.chosen


def type_and_bounds(hint: Any) -> str:
    """A type with its bounds, in words."""
    bounds = dict.fromkeys(option_types.bounds_in_words(hint))
    words = [bound.removeprefix("a text that is ") for bound in bounds]
    return ", ".join([option_types.type_in_words(hint), *words])


def type_of(option: Option, path: str) -> str:
    """The type of a key in words, from the signature of its node's target; empty where unknown."""
    if path in KEYS_WITHOUT_TARGET:
        return type_and_bounds(KEYS_WITHOUT_TARGET[path])
    value, (node, _, name) = option.keys[path].value, path.rpartition(".")
    if value.startswith("${") and value[2:-1] in ABOUT:
        return f"chosen by the group [{value[2:-1]}]({value[2:-1]}.md)"
    target = option.target(node)
    if not target.startswith("cl_bench."):
        return ""
    made = get_object(target)
    made = made.__init__ if inspect.isclass(made) else made
    hint = typing.get_type_hints(made, include_extras=True).get(name)
    return "" if option_types.yaml_type(hint) is None else type_and_bounds(hint)


def escaped(text: str) -> str:
    """A comment for the cell of a table; at its start, `| ` (other values) becomes `or `."""
    text = re.sub(r"^\| ", "or ", text).replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("|", "\\|").replace("*", "\\*")


def table(option: Option) -> list[str]:
    """The table of an option's keys."""
    rows = [
        f"| `{path}` | `{key.value}` | {type_of(option, path)} | {escaped(key.comment)} |"
        for path, key in option.keys.items()
        if path.rpartition(".")[2] not in HIDDEN_KEYS
    ]
    head = ["| key | value | type | comment |", "|---|---|---|---|"]
    return [*head, *rows, ""] if rows else []


def section(option: Option) -> list[str]:
    """The section on an option: its headline, what it extends and chooses, and its keys."""
    lines = [f"## {option.name}", "", escaped(headline(option.file)).rstrip(".") + ".", ""]
    if option.extends:
        lines += ["It extends " + ", ".join(f"`{name}`" for name in option.extends) + ".", ""]
    if option.chosen:
        names = ", ".join(f"`{group}={value}`" for group, value in option.chosen.items())
        lines += [f"It also chooses {names}, unless you choose otherwise.", ""]
    target = option.target(option.group)
    if target:
        serves = getattr(get_object(target), "scenarios", ()) if option.group == "method" else ()
        named = f" Scenarios: {', '.join(serves)}." if serves else ""
        lines += [f"Built by `{target}`.{named}", ""]
    return lines + table(option)


def explained(group: str, options: list[Option]) -> list[str]:
    """The section with the docstrings of a group's targets."""
    lines = []
    nodes = [group + part for part in ("", ".source", ".transform")]
    for target in dict.fromkeys(option.target(node) for node in nodes for option in options):
        text = get_object(target).__doc__ if target.startswith("cl_bench.") else None
        if text:
            lines += [f"### `{target}`", "", "```text", inspect.cleandoc(text), "```", ""]
    return ["## What these options mean", "", *lines] if lines else []


def page(group: str) -> str:
    """The page on a group."""
    folder = FOLDERS.get(group, CONF / group)
    names = sorted(f.relative_to(folder).with_suffix("").as_posix() for f in folder.rglob("*.yaml"))
    options = [read(group, name) for name in names]
    lines = [f"# {group}", "", ABOUT[group], "", *(x for o in options for x in section(o))]
    return "\n".join([*lines, *explained(group, options)]).rstrip() + "\n"


def root_page() -> str:
    """The first page: all groups with their defaults, and the keys of no group."""
    text = (CONF / "config.yaml").read_text()
    config = Option("config", "config", CONF / "config.yaml")
    config.keys = {k: v for k, v in entries(text) if "." not in k and k in KEYS_WITHOUT_TARGET}
    defaults = [d for d in yaml.safe_load(text)["defaults"] if isinstance(d, dict)]
    chosen = [(g, o) for d in defaults for g, o in d.items() if g in ABOUT]
    rows = [f"| [{g}]({g}.md) | {f'`{o}`' if o else 'none'} | {ABOUT[g]} |" for g, o in chosen]
    rows.append(f"| [launcher](launcher.md) | Hydra's own | {ABOUT['launcher']} |")
    head = ["| group | default | what it decides |", "|---|---|---|"]
    intro = "A config has these groups. `group=option` on the command line chooses."
    lines = ["# Options", "", intro, "", *head, *rows]
    lines += ["", "## Keys of no group", "", *table(config)]
    return "\n".join(lines).rstrip() + "\n"


def write(folder: Path) -> None:
    """Replace all pages in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.md"):
        file.unlink()
    (folder / "index.md").write_text(root_page())
    for group in ABOUT:
        (folder / f"{group}.md").write_text(page(group))


def main() -> None:
    """Write all pages."""
    parser = argparse.ArgumentParser(description="Write the pages of docs/options from conf/.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/options", help="another folder")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
