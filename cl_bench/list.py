"""python -m cl_bench.list [group ...]: lists the options of each group, with a line on each."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cl_bench.base.exceptions import UserError
from cl_bench.config import folders
from cl_bench.config.command import run_command
from cl_bench.config.nodes import METHOD_PARTS
from cl_bench.results.source_code import source_file
from cl_bench.results.terminal import WIDTH

GROUPS = (
    *("method", "dataset", "scenario", *METHOD_PARTS, "model", "backbone"),
    *("criterion", "optimizer", "schedule", "stream", "evaluation", "runtime", "tracking"),
    *("study", "probe", "experiment"),
)
HELP = f"""python -m cl_bench.list [group ...]

List the options of each group, with a line on each; of methods also the scenarios that they can be
used in and the groups that they use. Without a group, all groups but experiment are listed.

--config-dir FOLDER    a folder of your own options; CL_BENCH_CONFIG_DIR names several at once

Groups: {", ".join(GROUPS)}"""


def headline(file: Path) -> str:
    """The first sentence of the comment at the top of a YAML file."""
    lines = [x for x in file.read_text().splitlines() if not x.startswith("# @package")]
    comment = [x.removeprefix("#").strip() for x in takewhile(lambda x: x.startswith("#"), lines)]
    text = re.sub(r"(\w-)\n", r"\1", "\n".join(comment)).replace("\n", " ")
    return re.split(r"\. (?=[A-Z])", text, maxsplit=1)[0]


def options(group: str) -> Iterator[tuple[str, str]]:
    """The name and the headline of each option of a group."""
    files = {
        file.relative_to(root / group).with_suffix("").as_posix(): file
        for root in folders.all_folders()
        for file in (root / group).rglob("*.yaml")
    }
    yield from ((name, headline(files[name])) for name in sorted(files))


def scenarios_and_groups(method: str) -> tuple[str, str]:
    """The scenarios that a method can be used in, and the groups that it uses, each as a text.

    Both are read from the source files, so that PyTorch need not be imported.
    """
    texts = folders.texts_with_bases("method", method)
    whole = "".join(texts)
    used = [group for group in METHOD_PARTS if f"${{{group}}}" in whole]
    pattern = re.compile(r"^( *)_target_: (\S+)\.(\w+)", flags=re.MULTILINE)
    for text in reversed(texts):
        if targets := pattern.findall(text):
            _, module, name = min(targets, key=lambda target: len(target[0]))  # the outermost
            return " ".join(_scenarios(module, name)), " ".join(used)
    return "", " ".join(used)


def _scenarios(module: str, name: str) -> tuple[str, ...]:
    """The class attribute `scenarios`, of the class itself or of its base class.

    Empty where the source of the class is not found.
    """
    file = source_file(module)
    tree = ast.parse(file.read_text()) if file is not None else ast.Module([], [])
    cls = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if cls is None:
        return ()
    for node in cls.body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if [getattr(target, "id", None) for target in targets] == ["scenarios"]:
            return ast.literal_eval(node.value)  # type: ignore[union-attr]
    base = ast.unparse(cls.bases[0]) if cls.bases else ""
    return _scenarios(_module_of(base, tree, module), base) if base else ()


def _module_of(name: str, tree: ast.Module, module: str) -> str:
    """The module that a class which a module refers to by `name` is defined in."""
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and not node.level]
    found = [n.module or "" for n in imports if name in [alias.name for alias in n.names]]
    return found[0] if found else module


def table(group: str) -> Table:
    """The options of one group as a table."""
    rows = Table(title=group, box=None, title_justify="left", padding=(0, 2, 0, 0))
    rows.add_column(no_wrap=True)
    for head in ("scenarios", "uses") if group == "method" else ():
        rows.add_column(head, no_wrap=True)
    rows.add_column()
    for name, headline_of in options(group):
        rows.add_row(
            name, *(scenarios_and_groups(name) if group == "method" else ()), escape(headline_of)
        )
    return rows


def main() -> None:
    """List the groups that the command line names; without any, all groups but experiment."""
    groups = sys.argv[1:] or [g for g in GROUPS if g != "experiment"]
    if {"-h", "--help"} & set(groups):
        print(HELP)
        return
    for group in groups:
        if group not in GROUPS:
            raise UserError(f"{group}: no such group; there are {', '.join(GROUPS)}")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    for group in groups:
        console.print(table(group))


def cli() -> None:
    """The command line of the listing."""
    run_command(main, takes_overrides=False)


if __name__ == "__main__":
    cli()
