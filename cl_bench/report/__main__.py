"""The command `python -m cl_bench.report`: tables on the terminal and in files."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cl_bench.base import files
from cl_bench.base.escape import visible
from cl_bench.base.exceptions import UserError
from cl_bench.config.command import run_command
from cl_bench.config.errors import Parser
from cl_bench.report import formats
from cl_bench.report.html_page import html
from cl_bench.report.orders import order_summary
from cl_bench.report.rows import Row, gather
from cl_bench.report.runs import finished_runs, left_out
from cl_bench.report.tables import tables
from cl_bench.results.records import Records, read_folders
from cl_bench.results.sweeps import Job

MAX_FAILURES = 10  # failed runs that are named at the end
MAX_LACKING = 20  # jobs of sweeps that are printed
MAX_SWEEPS = 3  # whose folders are named


def _parser() -> Parser:
    parser = Parser(
        prog="python -m cl_bench.report",
        description="Compares the finished runs below folders: report.html, .md, .csv and .tex",
    )
    parser.add_argument(
        "root", type=Path, nargs="*", default=[Path("outputs")], help="folders (default: outputs)"
    )
    parser.add_argument(
        "--by",
        nargs="+",
        default=[],
        metavar="KEY",
        help="a row is all runs alike in these keys of the config, with spaces or commas between "
        "them, e.g. curvature model.linearize "
        "(without: a row is one config)",
    )
    parser.add_argument(
        "--baseline",
        metavar="METHOD",
        help="differences to this row over equal seeds; a method, and options where it has several "
        "rows: 'ewc method.strength=5'",
    )
    parser.add_argument("--out", type=Path, help="folder for the files (default: the folder read)")
    _add_table_options(parser)
    return parser


def _add_table_options(parser: Parser) -> None:
    """The options of --save."""
    parser.add_argument(
        "--save",
        type=Path,
        metavar="TABLE",
        help="write the rows into a table of results such as results/pmnist.csv, in place of its "
        "rows of the same configs (results/README.md)",
    )
    parser.add_argument(
        "--experiment",
        metavar="OPTION",
        help="with --save: commands of new rows begin with experiment=OPTION, as the runs' own did",
    )
    parser.add_argument(
        "--add-seeds",
        action="store_true",
        help="with --save: a config that the table has keeps its seeds, and those of the runs, "
        "which must be others, are added to them",
    )


def main() -> None:
    """Exit code 2 and one line where the folder or an option is wrong."""
    parser = _parser()
    options = parser.parse_args()
    roots = [root.expanduser() for root in options.root]
    out = options.out.expanduser() if options.out else roots[0]
    try:
        if options.experiment and not options.save:
            raise UserError(f"--experiment {options.experiment}: has no meaning without --save")
        if options.add_seeds and not options.save:
            raise UserError("--add-seeds: has no meaning without --save")
        by = [key for word in options.by for key in word.split(",") if key]
        rows = write_report(roots, by, options.baseline, out)
        if options.save:
            from cl_bench.report.save import save  # slow to import: it checks configs

            file = options.save.expanduser()
            count = save(rows, file, options.experiment, options.add_seeds)
            print(visible(f"{file}: {count} rows"))
    except UserError as error:
        parser.exit(2, f"error: {visible(str(error))}\n")


def write_report(
    roots: Sequence[Path], by: list[str], baseline: str | None, out: Path
) -> list[Row]:
    """Print the tables of the runs below folders, and write them as HTML, Markdown, CSV and LaTeX.

    Returns their rows.
    """
    records, names = read_folders(roots), ", ".join(map(str, roots))
    rows, jobs = gather(records, by), lacking_jobs(records) if records.sweeps else []
    lacking = [str(job) for job in jobs]
    if not rows:
        _print_lacking(jobs)
        raise UserError(f"{names}: no finished run (record.json) below this folder{gaps(records)}")
    made, orders = tables(rows, baseline), order_summary(finished_runs(records))
    lines = left_out(records)
    print(formats.plain_text(made, orders))
    title = visible(", ".join(root.resolve().name for root in roots))
    texts = {
        "html": html(made, orders, f"cl_bench: {title}", lines, visible(lacking)),
        "md": formats.markdown(made, orders, lines, visible(lacking)),
        "csv": formats.csv_text(formats.data_frame(made)),
        "tex": formats.latex(made, orders),
    }
    if orders.rows:
        texts["orders.csv"] = formats.csv_text(pd.DataFrame(orders.rows))
    _write_files(out, texts)
    print(visible(f"files: {out}/report.{{{','.join(texts)}}}{gaps(records)}"))
    for line in lines:
        print(f"left out: {line}", file=sys.stderr)
    for line in visible(records.failures[:MAX_FAILURES]):
        print(f"failed: {line}", file=sys.stderr)
    _print_lacking(jobs)
    return rows


def lacking_jobs(records: Records) -> list[Job]:
    """The jobs of sweeps without a result, also none of a run that was made alone."""
    from cl_bench.report.commands import hash_of, overrides_of  # slow to import

    finished = {(record["hash"], record["seed"]) for _, record in records.runs}
    hashes: dict[str, str | None] = {}
    jobs = []
    for job in records.lacking:
        command = shlex.join(job.words)
        seed = next((word[5:] for word in job.words if word.startswith("seed=")), "0")
        overrides = overrides_of(command)
        key = shlex.join(overrides)
        if finished and key not in hashes:
            hashes[key] = hash_of(overrides)
        if (hashes.get(key), int(seed) if seed.isdecimal() else None) not in finished:
            jobs.append(job)
    return jobs


def _print_lacking(jobs: list[Job]) -> None:
    """Print what sweeps lack: the first jobs, each with its command, and how to drop them."""
    if not jobs:
        return
    lines = [f"sweeps lack {len(jobs)} run{'s' * (len(jobs) > 1)}:"]
    lines += [f"  {job}" for job in jobs[:MAX_LACKING]]
    if len(jobs) > MAX_LACKING:
        lines.append(f"  and {len(jobs) - MAX_LACKING} more, in the files")
    own = {s for job in jobs for s in job.sweeps if s.absolute().parent.name == ".sweeps"}
    if own and not any(job.state == "running" for job in jobs):
        folders = shlex.join(sorted(map(str, own))[:MAX_SWEEPS])
        lines.append(f"to drop jobs from this list (no result goes with them): rm -r {folders}")
    print("\n".join(visible(lines)), file=sys.stderr)


def _write_files(out: Path, texts: dict[str, str]) -> None:
    try:
        files.require_writable(out)
        (out / "report.orders.csv").unlink(missing_ok=True)  # of an earlier report
        for ending, text in texts.items():
            files.write_text(out / f"report.{ending}", text)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; choose a folder to write to") from None


def gaps(records: Records) -> str:
    """How many runs a report leaves out, by the reason; empty where it has all."""
    states = sorted(records.unfinished.items())
    parts = [f"{number} {visible(state)} (by status.json)" for state, number in states]
    parts += [f"{len(records.damaged)} damaged"] if records.damaged else []
    copies = records.contradicting
    parts += [f"{len(copies)} with other results than the first copy"] if copies else []
    first = f", the first: {records.damaged[0]}" if records.damaged and not records.runs else ""
    return f"; not in it: {', '.join(parts)}{first}" if parts else ""


def cli() -> None:
    """The command line of the report."""
    run_command(main, takes_overrides=False)


if __name__ == "__main__":
    cli()
