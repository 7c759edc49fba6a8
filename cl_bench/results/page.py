"""A page of results: page.md with findings and a table, table.csv, and figure.png.

A study on one network and the summary of a sweep are both written as one.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_bench.base import files
from cl_bench.base.escape import cell, markdown
from cl_bench.results.figures import picture


@dataclass(frozen=True)
class Page:
    """Findings, a table and a figure. table.csv keeps all digits, page.md rounds to four."""

    title: str
    findings: list[str]
    rows: list[dict[str, Any]]  # all with the same keys
    draw: Callable[[Any], None]  # into an empty matplotlib figure

    def write(self, folder: Path) -> str:
        """Write the three files into the folder and return the text of page.md."""
        folder.mkdir(parents=True, exist_ok=True)
        heads = list(self.rows[0])
        cells = [[row[head] for head in heads] for row in self.rows]
        files.write_text(folder / "table.csv", csv_table(heads, cells))
        files.write_bytes(folder / "figure.png", picture(self.draw))
        findings = "\n".join(f"- {markdown(line)}" for line in self.findings)
        lines = [[format_cell(value) for value in line] for line in cells]
        grid = markdown_table([markdown(head) for head in heads], lines)
        text = f"# {self.title}\n\n{findings}\n\n{grid}\n\n![figure](figure.png)\n"
        files.write_text(folder / "page.md", text)
        return text


def csv_table(heads: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    """A table as CSV, in which no text is a formula to a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([heads, *([cell(value) for value in line] for line in lines)])
    return text.getvalue()


def markdown_table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, of cells that are escaped already."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def format_cell(value: Any) -> str:
    """A value as a cell of page.md: floats with four digits, nothing for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else markdown(str(value))
