"""Writes the pages of docs/results, and the tables in the README and in docs/notes, from results/.

python scripts/results_pages.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from results_tables import (
    Group,
    bars,
    beside_published,
    grouped,
    label,
    long_table,
    ordered,
    shared_line,
    short_table,
    wide_table,
    without_shared_options,
)

from cl_bench.base.escape import markdown, visible
from cl_bench.base.exceptions import UserError
from cl_bench.base.files import write_text
from cl_bench.report.results_table import ResultRow, read

ROOT = Path(__file__).parents[1]
# a table in another text: a line that names it, the table, and the line END
START = r"^<!-- results/([\w.-]+)\.csv, by scripts/results_pages\.py -->$"
END = "<!-- end of results -->"
TABLE = re.compile(f"({START}).*?^{END}$", re.M | re.S)
MOVED = "carried over from "
MADE = "<!-- made by scripts/results_pages.py: change results/{}, not this page -->"


def pages(root: Path) -> dict[Path, str]:
    """The text of each file that is made from results/: the pages, and the README."""
    titles = yaml.safe_load((root / "results/titles.yaml").read_text())
    tables = {file.stem: read(file) for file in sorted((root / "results").glob("*.csv"))}
    unknown = sorted({*titles} - {*tables})
    if unknown:
        raise UserError(f"results/titles.yaml: {unknown[0]}: there is no such table")
    names = [name for name in titles if name in tables]
    names += [name for name in tables if name not in titles]
    docs = root / "docs/results"
    about = {name: titles.get(name, {"title": name, "text": ""}) for name in names}
    made = {docs / f"{name}.md": page(name, about[name], tables[name]) for name in names}
    made[docs / "index.md"] = index(about, sorted((root / "docs/notes").glob("*.md")))
    readme = root / "README.md"
    if not TABLE.search(readme.read_text()):
        raise UserError(f"{readme}: has no table between a line {START} and a line {END}")
    texts = readme, *sorted((root / "docs/notes").glob("*.md"))
    order_by = {name: about[name].get("order") for name in names}
    return made | {text: filled(text, tables, order_by) for text in texts}


def filled(
    file: Path, tables: dict[str, list[ResultRow]], order_by: Mapping[str, str | None] | None = None
) -> str:
    """The text of a file with its tables made again; UserError where a marking line is wrong.

    order_by  the metric by which the rows of a table are sorted, by the table's name
    """

    def again(found: re.Match[str]) -> str:
        if found[2] not in tables:
            raise UserError(f"{file}: results/{found[2]}.csv: there is no such table")
        shared, rows = without_shared_options(tables[found[2]])
        rows = ordered(rows, (order_by or {}).get(found[2]))
        return "\n\n".join([found[1], *shared_line(shared), short_table(rows), END])

    text, count = TABLE.subn(again, file.read_text())
    if len(re.findall(START, text, re.M)) > count:
        raise UserError(f"{file}: each table must end with one line {END}")
    if text.count(END) > count:
        raise UserError(f"{file}: {END} stands before any table")
    return text


def index(about: dict[str, dict[str, Any]], notes: list[Path]) -> str:
    """The first page: a list of all tables, and links to the notes on what they show."""
    links = ", ".join(f"[{note.stem}](../notes/{note.name})" for note in notes)
    lines = "\n".join(f"- [{about[name]['title']}]({name}.md)" for name in about)
    return f"""# Results

{MADE.format("*.csv")}

What was measured with this benchmark. Each page shows one file of `results/`, whose
`README.md` says what the columns hold: mean ± standard deviation over n seeds (or
orders of the tasks), the published figure where its protocol is the same, and the
command that gave the numbers. What was tried and did not work is told in the notes:
{links}.

{lines}
"""


def page(name: str, about: dict[str, Any], rows: list[ResultRow]) -> str:
    """The page on one table of results.

    about  its `title` and `text`, and optionally the metric that rows are sorted by (`order`), the
           one that is drawn (`figure`), the published figures to set beside it (`beside`), and
           what is said of their protocol (`beside_text`)
    """
    shared, rows = without_shared_options(rows)
    rows = ordered(rows, about.get("order"))
    groups = grouped(rows)
    parts = [f"# {about['title']}", MADE.format(f"{name}.csv")]
    parts += [about["text"]] if about["text"] else []
    metrics = list(dict.fromkeys(row.metric for row in rows))
    sparse = len(rows) * 2 < len(groups) * len(metrics)
    wide = not sparse or all(any(row.metric == "ACC" for row in group) for group in groups)
    if "figure" in about:
        parts.append(bars(groups, about["figure"]))
    parts += shared_line(shared)
    parts.append(wide_table(groups, metrics) if wide else long_table(rows))
    if "beside" in about:
        text = about.get("beside_text", "Of another protocol, as the text above says.")
        parts.append(f"## Beside published figures\n\n{text}")
        parts.append(beside_published(rows, **about["beside"]))
    parts += [f"## Commands\n\n```bash\n{commands(groups)}\n```", *notes(groups)]
    return "\n\n".join(parts) + "\n"


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
    every = [row for group in groups for row in group]
    parts = [dict.fromkeys(visible(part) for part in row.note.split("; ") if part) for row in every]
    shared = [part for part in parts[0] if len(groups) > 1 and all(part in p for p in parts)]
    shared = [part for part in shared if not part.startswith(MOVED)]
    noted: dict[str, dict[str, None]] = {}
    for row, own in zip(every, parts, strict=True):
        text = "; ".join(p for p in own if p not in shared and not p.startswith(MOVED))
        if text:
            noted.setdefault(text, {})[label(row.row)] = None
    lines = [f"- All rows: {markdown('; '.join(shared))}."] if shared else []
    lines += [f"- {'; '.join(names)}: {markdown(text)}." for text, names in noted.items()]
    moved = dict.fromkeys(p for own in parts for p in own if p.startswith(MOVED))
    sources = ", ".join(f"`{part.removeprefix(MOVED)}`" for part in moved)
    lines += [f"- Carried over from {sources}."] if moved else []
    for name in ("device", "commit", "versions", "date"):
        texts = [text for row in every for text in visible(getattr(row, name)).split("; ")]
        values = "; ".join(dict.fromkeys(filter(None, texts)))
        lines += [f"- {name.capitalize()}: {markdown(values)}."] if values else []
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
