"""The command: tables on the terminal and as Markdown, CSV, LaTeX and a page."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from cl_bench.base import files
from cl_bench.base.escape import visible
from cl_bench.base.exceptions import UserError
from cl_bench.config.command import run_command
from cl_bench.config.errors import Parser
from cl_bench.report import forms
from cl_bench.report.orders import orders
from cl_bench.report.page import render
from cl_bench.report.rows import Row, gather
from cl_bench.report.tables import tables
from cl_bench.results.record import Records, read_all

SHOWN = 10  # failed runs that are named at the end


def _parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        prog="python -m cl_bench.report",
        description="Compares the finished runs below a folder: report.html, .md, .csv and .tex",
    )
    parser.add_argument("root", type=Path, nargs="?", default=Path("outputs"))
    parser.add_argument(
        "--by",
        nargs="+",
        default=[],
        metavar="KEY",
        help="a row is all runs alike in these keys of the config, e.g. curvature model.linearize "
        "(without: a row is one config)",
    )
    parser.add_argument(
        "--baseline",
        metavar="METHOD",
        help="differences to this row over equal seeds; a method, and options where it has several "
        "rows: 'ewc method.strength=5'",
    )
    parser.add_argument("--out", type=Path, help="folder for the files (default: the folder read)")
    parser.add_argument(
        "--save",
        type=Path,
        metavar="TABLE",
        help="write the rows into a table of results, as results/pmnist.csv, in the place of those "
        "that it has of the same configs (results/README.md)",
    )
    return parser


def main() -> None:
    """Exit code 2 and one line where the folder or an option is wrong."""
    parser = _parser()
    options = parser.parse_args()
    root = options.root.expanduser()
    out = options.out.expanduser() if options.out else root
    try:
        found, rows = write(root, options.by, options.baseline, out)
        if options.save:
            from cl_bench.report.save import save  # all that a config is checked by: slow to import

            file = options.save.expanduser()
            print(visible(f"{file}: {save(found, rows, file)} rows"))
    except UserError as error:
        parser.exit(2, f"error: {visible(str(error))}\n")


def write(root: Path, by: list[str], baseline: str | None, out: Path) -> tuple[Records, list[Row]]:
    """Print the table and write it in all forms; what was read, and its rows."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; a report is of the folder that runs are in")
    found = read_all(root)
    rows = gather(found, by)
    if not rows:
        raise UserError(f"{root}: no finished run (record.json) below this folder{missing(found)}")
    made, disparity = tables(rows, baseline), orders(found)
    left_out = visible([*found.damaged, *found.contradicting])
    print(forms.plain(made, disparity))
    texts = {
        "html": render(made, disparity, f"cl_bench: {visible(root.resolve().name)}", left_out),
        "md": forms.markdown(made, disparity, left_out),
        "csv": forms.csv(forms.frame(made)),
        "tex": forms.latex(made, disparity),
    }
    if disparity.rows:
        texts["orders.csv"] = forms.csv(pd.DataFrame(disparity.rows))
    try:
        files.require_writable(out)
        (out / "report.orders.csv").unlink(missing_ok=True)  # of an earlier report
        for kind, text in texts.items():
            files.write_text(out / f"report.{kind}", text)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; choose a folder to write to") from None
    print(visible(f"files: {out}/report.{{{','.join(texts)}}}{missing(found)}"))
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    for line in visible(found.failures[:SHOWN]):
        print(f"failed: {line}", file=sys.stderr)
    return found, rows


def missing(found: Records) -> str:
    """What a report leaves out; empty: nothing."""
    states = sorted(found.unfinished.items())
    parts = [f"{number} {visible(state)} (by status.json)" for state, number in states]
    parts += [f"{len(found.damaged)} damaged"] if found.damaged else []
    copies = found.contradicting
    parts += [f"{len(copies)} with other results than another copy"] if copies else []
    first = f", the first: {found.damaged[0]}" if found.damaged and not found.runs else ""
    return f"; not in it: {', '.join(parts)}{first}" if parts else ""


def cli() -> None:
    """The command line of the report."""
    run_command(main, takes_overrides=False)


if __name__ == "__main__":
    cli()
