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
from cl_bench.config.command import run_command
from cl_bench.config.nodes import CONF, PACKAGE
from cl_bench.results.terminal import WIDTH

GROUPS = (
    *("method", "dataset", "scenario", "curvature", "merging", "buffer", "model", "backbone"),
    *("criterion", "optimizer", "schedule", "probe", "experiment"),
)
HELP = f"""python -m cl_bench.list [group ...]

List the options of each group, with a line on each; of methods also the scenarios that they can be
used in and the groups that they use. Without a group, all groups but experiment are listed.

Groups: {", ".join(GROUPS)}"""


def headline(file: Path) -> str:
    """The first sentence of the comment at the top of a YAML file."""
    lines = [x for x in file.read_text().splitlines() if not x.startswith("# @package")]
    comment = [x.removeprefix("#").strip() for x in takewhile(lambda x: x.startswith("#"), lines)]
    text = re.sub(r"(\w-)\n", r"\1", "\n".join(comment)).replace("\n", " ")
    return re.split(r"\. (?=[A-Z])", text, maxsplit=1)[0]


def options(group: str) -> Iterator[tuple[str, str]]:
    """The name and the headline of each option of a group."""
    root = CONF / group
    for file in sorted(root.rglob("*.yaml")):
        yield file.relative_to(root).with_suffix("").as_posix(), headline(file)


def scenarios_and_groups(method: str) -> tuple[str, str]:
    """The scenarios that a method can be used in, and the groups that it uses, each as a text.

    Both are read from the source files, so that PyTorch need not be imported.
    """
    text = _with_bases(CONF / "method" / f"{method}.yaml")
    used = [group for group in ("curvature", "merging", "buffer") if f"${{{group}}}" in text]
    target = re.findall(r"_target_: cl_bench\.(\S+)\.(\w+)", text)[-1]
    return " ".join(_scenarios(*target)), " ".join(used)


def _with_bases(file: Path) -> str:
    """The text of a method's YAML file, with the texts of the options in its defaults before it."""
    text = file.read_text()
    bases = re.findall(r"^  - (\w+)(?:@(?:method|_global_))?$", text, flags=re.MULTILINE)
    others = [file.with_name(f"{base}.yaml") for base in bases if base != "_self_"]
    return "".join([*map(_with_bases, others), text])


def _scenarios(module: str, name: str) -> tuple[str, ...]:
    """The class attribute `scenarios`, of the class itself or of its base class."""
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    (cls,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    for node in cls.body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if [getattr(target, "id", None) for target in targets] == ["scenarios"]:
            return ast.literal_eval(node.value)  # type: ignore[union-attr]
    return _scenarios("methods.base", ast.unparse(cls.bases[0]))


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
