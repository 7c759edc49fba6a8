"""The command: tables on the terminal and as Markdown, CSV, LaTeX and a page."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from cl_bench.record import unfinished
from cl_bench.report import forms
from cl_bench.report.orders import orders
from cl_bench.report.page import render
from cl_bench.report.rows import gather
from cl_bench.report.tables import tables
from cl_bench.types import UserError


def main() -> None:
    """Exit code 2 and one line where the folder or an option is wrong."""
    parser = argparse.ArgumentParser(
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
    options = parser.parse_args()
    try:
        write(options.root, options.by, options.baseline, options.out or options.root)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


def write(root: Path, by: list[str], baseline: str | None, out: Path) -> None:
    """Print the table; write it in all forms."""
    rows = gather(root, by)
    if not rows:
        raise UserError(f"{root}: no finished run (record.json) below this folder{missing(root)}")
    found, disparity = tables(rows, baseline), orders(root)
    print(forms.plain(found, disparity))
    made = {
        "html": render(found, disparity, f"cl_bench: {root.resolve().name}"),
        "md": forms.markdown(found, disparity),
        "csv": forms.frame(found).to_csv(index=False),
        "tex": forms.latex(found, disparity),
    }
    if disparity.rows:
        made["orders.csv"] = pd.DataFrame(disparity.rows).to_csv(index=False)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.orders.csv").unlink(missing_ok=True)  # of an earlier report
        for kind, text in made.items():
            (out / f"report.{kind}").write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; choose a folder to write to") from None
    print(f"\nfiles: {out}/report.{{{','.join(made)}}}{missing(root)}")


def missing(root: Path) -> str:
    """What a report on a folder leaves out; empty: nothing."""
    told = ", ".join(f"{number} {state}" for state, number in sorted(unfinished(root).items()))
    return f"; not in it: {told} (by their status.json)" if told else ""


if __name__ == "__main__":
    main()
