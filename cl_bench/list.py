"""python -m cl_bench.list [group ...]: what can be chosen, a line each, from the configs."""

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
from cl_bench.config.command import run_command
from cl_bench.config.nodes import CONF, PACKAGE
from cl_bench.results.terminal import WIDTH

GROUPS = (
    *("method", "dataset", "scenario", "curvature", "merging", "buffer", "model"),
    *("criterion", "optimizer", "schedule", "probe", "experiment"),
)


def headline(file: Path) -> str:
    """The first sentence of a config's comment, or all of it where that has none."""
    lines = [x for x in file.read_text().splitlines() if not x.startswith("# @package")]
    comment = [x.removeprefix("#").strip() for x in takewhile(lambda x: x.startswith("#"), lines)]
    text = re.sub(r"(\w-)\n", r"\1", "\n".join(comment)).replace("\n", " ")
    return re.split(r"\. (?=[A-Z])", text, maxsplit=1)[0]


def options(group: str) -> Iterator[tuple[str, str]]:
    """Each option of a group with its line."""
    root = CONF / group
    for file in sorted(root.rglob("*.yaml")):
        yield file.relative_to(root).with_suffix("").as_posix(), headline(file)


def serves(method: str) -> tuple[str, str]:
    """The scenarios that a method serves, and the groups that it makes use of.

    Both are read from the files, not from the classes: PyTorch is not loaded for a listing.
    """
    text = _with_bases(CONF / "method" / f"{method}.yaml")
    used = [group for group in ("curvature", "merging", "buffer") if f"${{{group}}}" in text]
    target = re.findall(r"_target_: cl_bench\.(\S+)\.(\w+)", text)[-1]
    return " ".join(_scenarios(*target)), " ".join(used)


def _with_bases(file: Path) -> str:
    """The text of a config, after those of the options of its group that it builds on."""
    text = file.read_text()
    bases = re.findall(r"^  - (\w+)(?:@method)?$", text, flags=re.MULTILINE)
    others = [file.with_name(f"{base}.yaml") for base in bases if base != "_self_"]
    return "".join([*map(_with_bases, others), text])


def _scenarios(module: str, name: str) -> tuple[str, ...]:
    """The `scenarios` of a class of ours: its own, or those of the class that it extends."""
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    (cls,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    for node in cls.body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if [getattr(target, "id", None) for target in targets] == ["scenarios"]:
            return ast.literal_eval(node.value)  # type: ignore[union-attr]
    return _scenarios("methods.base", ast.unparse(cls.bases[0]))


def table(group: str) -> Table:
    """One group."""
    made = Table(title=group, box=None, title_justify="left", padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True)
    for head in ("scenarios", "uses") if group == "method" else ():
        made.add_column(head, no_wrap=True)
    made.add_column()
    for name, headline_of in options(group):
        made.add_row(name, *(serves(name) if group == "method" else ()), escape(headline_of))
    return made


def main() -> None:
    asked = sys.argv[1:] or [g for g in GROUPS if g != "experiment"]
    if {"-h", "--help"} & set(asked):
        print(f"python -m cl_bench.list [group ...], of {', '.join(GROUPS)}")
        return
    for group in asked:
        if group not in GROUPS:
            raise UserError(f"{group}: no such group; there are {', '.join(GROUPS)}")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    for group in asked:
        console.print(table(group))


def cli() -> None:
    """The command line of the listing."""
    run_command(main, takes_overrides=False)


if __name__ == "__main__":
    cli()
