"""Writes the pages of docs/results, and the tables in the README and in docs/notes, from results/.

python scripts/results_pages.py
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path

import yaml

from cl_bench.base.escape import markdown, visible
from cl_bench.base.exceptions import UserError
from cl_bench.base.files import write_text
from cl_bench.report.results_table import ResultRow, read

ROOT = Path(__file__).parents[1]
# a table in another text: a line that names it, the table, and the line END
START = r"^<!-- results/([\w.-]+)\.csv, by scripts/results_pages\.py -->$"
END = "<!-- end of results -->"
TABLE = re.compile(f"({START}).*?^{END}$", re.M | re.S)
PLUS_MINUS = "\u00a0±\u00a0"  # with spaces at which no line breaks
MOVED = "carried over from "
MADE = "<!-- made by scripts/results_pages.py: change results/{}, not this page -->"
Group = list[ResultRow]  # the results with one row label, one for each metric


def pages(root: Path) -> dict[Path, str]:
    """The text of each file that is made from results/: the pages, and the README."""
    titles = yaml.safe_load((root / "results/titles.yaml").read_text())
    tables = {file.stem: read(file) for file in sorted((root / "results").glob("*.csv"))}
    unknown = sorted({*titles} - {*tables})
    if unknown:
        raise UserError(f"results/titles.yaml: {unknown[0]}: there is no such table")
    order = [name for name in titles if name in tables]
    order += [name for name in tables if name not in titles]
    docs = root / "docs/results"
    about = {name: titles.get(name, {"title": name, "text": ""}) for name in order}
    made = {docs / f"{name}.md": page(name, about[name], tables[name]) for name in order}
    made[docs / "index.md"] = index(about)
    readme = root / "README.md"
    if not TABLE.search(readme.read_text()):
        raise UserError(f"{readme}: has no table between a line {START} and a line {END}")
    texts = readme, *sorted((root / "docs/notes").glob("*.md"))
    return made | {text: filled(text, tables) for text in texts}


def filled(file: Path, tables: dict[str, list[ResultRow]]) -> str:
    """The text of a file with its tables made again; UserError where a marking line is wrong."""

    def again(found: re.Match[str]) -> str:
        if found[2] not in tables:
            raise UserError(f"{file}: results/{found[2]}.csv: there is no such table")
        return f"{found[1]}\n\n{short_table(tables[found[2]])}\n\n{END}"

    text, count = TABLE.subn(again, file.read_text())
    if len(re.findall(START, text, re.M)) > count:
        raise UserError(f"{file}: each table must end with one line {END}")
    if text.count(END) > count:
        raise UserError(f"{file}: {END} stands before any table")
    return text


def index(about: dict[str, dict[str, str]]) -> str:
    """The first page: a list of all tables."""
    lines = "\n".join(f"- [{about[name]['title']}]({name}.md)" for name in about)
    return f"""# Results

{MADE.format("*.csv")}

What was measured with this benchmark. Each page shows one file of `results/`, whose
`README.md` says what the columns hold: mean ± standard deviation over n seeds (or
orders of the tasks), the published figure where its protocol is the same, and the
command that gave the numbers. What was tried and did not work is told in the notes
on the papers (`docs/notes`).

{lines}
"""


def page(name: str, about: dict[str, str], rows: list[ResultRow]) -> str:
    """The page on one table of results."""
    groups = grouped(rows)
    parts = [f"# {about['title']}", MADE.format(f"{name}.csv")]
    parts += [about["text"]] if about["text"] else []
    metrics = list(dict.fromkeys(row.metric for row in rows))
    sparse = len(rows) * 2 < len(groups) * len(metrics)
    wide = not sparse or all(any(row.metric == "ACC" for row in group) for group in groups)
    if "figure" in about:
        parts.append(bars(groups, about["figure"]))
    parts.append(wide_table(groups, metrics) if wide else long_table(rows))
    parts += [f"## Commands\n\n```bash\n{commands(groups)}\n```", *notes(groups)]
    return "\n\n".join(parts) + "\n"


def grouped(rows: Iterable[ResultRow]) -> list[Group]:
    """The results grouped by their row label, in the order of the file."""
    found: dict[str, Group] = {}
    for row in rows:
        found.setdefault(row.row, []).append(row)
    return list(found.values())


def wide_table(groups: list[Group], metrics: list[str]) -> str:
    """A table with a line for each row label and a column for each metric."""
    every = [row for group in groups for row in group]
    compared = [m for m in metrics if any(r.published is not None for r in every if r.metric == m)]
    units = {row.metric: row.unit for row in every}
    intervals = [m for m in metrics if m == "ACC" and any(row.lower is not None for row in every)]
    split = len({row.split for row in every}) > 1
    heads = ["row", *(["split"] if split else []), "n", *(heading(m, units[m]) for m in metrics)]
    heads += [f"95 % interval of {m}" for m in intervals] + [f"published {m}" for m in compared]
    lines = []
    for group in groups:
        by_metric = {row.metric: row for row in group}
        cells = [label(group[0].row), *([group[0].split] if split else []), count(group)]
        cells += [measured(by_metric[m]) if m in by_metric else "" for m in metrics]
        cells += [interval(by_metric[m]) if m in by_metric else "" for m in intervals]
        cells += [published(by_metric[m]) if m in by_metric else "" for m in compared]
        lines.append(cells)
    return table(heads, lines)


def bars(groups: list[Group], metric: str) -> str:
    """A drawing with a bar for each row label that has the metric, in the colours of the page."""
    found = [(group[0].row, row) for group in groups for row in group if row.metric == metric]
    largest = max(row.mean for _, row in found)
    lines = []
    for place, (name, row) in enumerate(found):
        y, length = 24 * place, max(1, round(340 * row.mean / largest))
        lines += [
            f'<text x="330" y="{y + 16}" text-anchor="end">{html.escape(visible(name))}</text>',
            f'<rect x="340" y="{y + 3}" width="{length}" height="17" opacity="0.6"/>',
            f'<text x="{346 + length}" y="{y + 16}">{digits(row.mean, row.unit)}</text>',
        ]
    head = (
        f'<svg viewBox="0 0 740 {24 * len(found)}" fill="currentColor" font-size="13" role="img">'
    )
    title = f"<title>{html.escape(visible(metric))} by row</title>"
    caption = f"<figcaption>{html.escape(visible(metric))}</figcaption>"
    return "\n".join(["<figure>", head, title, *lines, "</svg>", caption, "</figure>"])


def long_table(rows: list[ResultRow]) -> str:
    """A table with a line for each number, for rows that have few metrics in common."""
    lines = [[label(r.row), markdown(visible(r.metric)), measured(r)] for r in rows]
    return table(["row", "quantity", "value"], lines)


def short_table(rows: list[ResultRow]) -> str:
    """The table that stands in a text: results on test images, with the published ACC."""
    lines = []
    for group in grouped(row for row in rows if row.split == "test"):
        by_metric = {row.metric: row for row in group}
        if "ACC" not in by_metric:
            continue
        cells = [
            measured(by_metric[m]) if m in by_metric else "" for m in ("gradients", "ACC", "BWT")
        ]
        lines.append([label(group[0].row), count(group), *cells, published(by_metric["ACC"])])
    return table(["options", "n", "gradients", "ACC", "BWT", "published ACC"], lines)


def table(heads: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown."""
    every = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"|{'|'.join(f' {c} ' if c else ' ' for c in cells)}|" for cells in every)


def heading(metric: str, unit: str) -> str:
    """The heading of a metric's column, with (%) where the unit is percent."""
    return f"{markdown(visible(metric))} (%)" if unit == "percent" else markdown(visible(metric))


def label(text: str) -> str:
    """A row label in Markdown: options as code, other words as text."""
    options, comma, rest = visible(text).partition(", ")
    if any("=" not in word for word in options.split()) or re.search(r"[`|]", options):
        return markdown(visible(text))
    return f"`{options}`{comma}{markdown(rest)}"


def count(group: Group) -> str:
    """The numbers of seeds n of a row label, joined by commas where its metrics differ."""
    return ", ".join(dict.fromkeys(str(row.n) for row in group if row.n is not None))


def measured(row: ResultRow) -> str:
    """`70.07 ± 0.96`."""
    exact = row.sd is None or (row.unit == "count" and row.sd == 0)
    return digits(row.mean, row.unit) + ("" if exact else f"{PLUS_MINUS}{digits(row.sd, row.unit)}")


def interval(row: ResultRow) -> str:
    """`69.10 to 71.04`."""
    ends = digits(row.lower, row.unit), digits(row.upper, row.unit)
    return " to ".join(ends) if all(ends) else ""


def published(row: ResultRow) -> str:
    """`73.61 ± 1.12 (EMCL, table III)`."""
    if row.published is None:
        return ""
    spread = row.published_spread
    around = "" if spread is None else f"{PLUS_MINUS}{spread:.2f}"
    return f"{row.published:.2f}{around} ({markdown(visible(row.published_source))})"


def digits(value: Decimal | None, unit: str) -> str:
    """A number; of many digits, two decimals in percent and else four significant digits stay."""
    if value is None:
        return ""
    if len(value.as_tuple().digits) > 4 and unit == "percent":
        return f"{value:.2f}"
    return f"{value:.4g}" if len(value.as_tuple().digits) > 5 else str(value).lower()


def commands(groups: list[Group]) -> str:
    """The commands of all rows, each below the labels of its rows."""
    found: dict[str, list[str]] = {}
    for group in groups:
        for command in dict.fromkeys(row.command for row in group if row.command):
            found.setdefault(visible(command), []).append(visible(group[0].row))
    lines = []
    for command, names in found.items():
        program = "" if command.startswith("python ") else "python -m cl_bench.run -m "
        lines += [*(f"# {name}" for name in names), program + command]
    return "\n".join(lines)


def notes(groups: list[Group]) -> list[str]:
    """The section with the notes on the rows, and the device, commit, versions and date."""
    noted: dict[str, list[str]] = {}
    moved: dict[str, None] = {}
    for group in groups:
        for text in dict.fromkeys(row.note for row in group):
            parts = [part for part in text.split("; ") if part]
            moved |= {p.removeprefix(MOVED): None for p in parts if p.startswith(MOVED)}
            note = "; ".join(part for part in parts if not part.startswith(MOVED))
            if note:
                noted.setdefault(note, []).append(label(group[0].row))
    lines = []
    for text, names in noted.items():
        which = "All rows" if len(names) == len(groups) > 1 else "; ".join(names)
        lines.append(f"- {which}: {markdown(visible(text))}.")
    sources = ", ".join(f"`{visible(source)}`" for source in moved)
    lines += [f"- Carried over from {sources}."] if moved else []
    every = [row for group in groups for row in group]
    for name in ("device", "commit", "versions", "date"):
        values = list(dict.fromkeys(visible(getattr(r, name)) for r in every if getattr(r, name)))
        lines += [f"- {name.capitalize()}: {markdown('; '.join(values))}."] if values else []
    return ["## Notes\n\n" + "\n".join(lines)] if lines else []


def main() -> None:
    """Write each file whose text has changed, and print its name."""
    try:
        made = pages(ROOT)
    except UserError as error:
        sys.exit(f"error: {error}")
    for old in set((ROOT / "docs/results").glob("*.md")) - {*made}:
        old.unlink()
        print(f"removed {old.relative_to(ROOT)}")
    for file, text in made.items():
        if not file.exists() or file.read_text() != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, text)
            print(f"written {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
