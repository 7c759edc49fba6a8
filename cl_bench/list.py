"""python -m cl_bench.list [group ...]: what can be chosen, a line each, from the configs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from hydra.utils import get_object
from rich.console import Console
from rich.table import Table

from cl_bench.base.exceptions import UserError
from cl_bench.config.command import run_command
from cl_bench.config.compose import composed
from cl_bench.config.nodes import CONF
from cl_bench.results.terminal import WIDTH

GROUPS = (
    *("method", "dataset", "scenario", "curvature", "merging", "buffer", "model"),
    *("criterion", "optimizer", "schedule", "probe", "experiment"),
)


def headline(file: Path) -> str:
    """The first sentence of a config's comment, or all of it where that has none."""
    lines = [x for x in file.read_text().splitlines() if not x.startswith("# @package")]
    comment = [x.removeprefix("#").strip() for x in takewhile(lambda x: x.startswith("#"), lines)]
    return re.split(r"\. (?=[A-Z])", " ".join(comment), maxsplit=1)[0]


def options(group: str) -> Iterator[tuple[str, str]]:
    """Each option of a group with its line."""
    root = CONF / group
    for file in sorted(root.rglob("*.yaml")):
        yield file.relative_to(root).with_suffix("").as_posix(), headline(file)


def serves(method: str) -> tuple[str, str]:
    """The scenarios that a method serves, and the groups that it makes use of."""
    node = composed(f"method={method}").method
    used = [group for group in ("curvature", "merging", "buffer") if group in node]
    return " ".join(get_object(node._target_).scenarios), " ".join(used)


def table(group: str) -> Table:
    """One group."""
    made = Table(title=group, box=None, title_justify="left", padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True)
    for head in ("scenarios", "uses") if group == "method" else ():
        made.add_column(head, no_wrap=True)
    made.add_column()
    for name, headline_of in options(group):
        made.add_row(name, *(serves(name) if group == "method" else ()), headline_of)
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
