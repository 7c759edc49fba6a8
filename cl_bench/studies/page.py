"""What a study leaves: table.csv, figure.png and page.md, a short page of what came out."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_bench.base import files
from cl_bench.base.escape import cell
from cl_bench.base.escape import markdown as inert
from cl_bench.results.figures import picture

Draw = Callable[[Any], None]  # a matplotlib figure, empty


@dataclass(frozen=True)
class Page:
    """A finished study; numbers in `rows` are written as they are, rounded in the page."""

    title: str
    findings: list[str]
    rows: list[dict[str, Any]]
    draw: Draw

    def write(self, folder: Path) -> str:
        """Put all three into the folder; returns the page's text."""
        folder.mkdir(parents=True, exist_ok=True)
        table = io.StringIO()
        writer = csv.DictWriter(table, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: cell(value) for key, value in row.items()} for row in self.rows)
        files.write_text(folder / "table.csv", table.getvalue())
        files.write_bytes(folder / "figure.png", picture(self.draw))
        found = "\n".join(f"- {inert(line)}" for line in self.findings)
        text = f"# {self.title}\n\n{found}\n\n{markdown(self.rows)}\n\n![figure](figure.png)\n"
        files.write_text(folder / "page.md", text)
        return text


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table, four digits a number."""
    heads = list(rows[0])
    lines = [
        [inert(head) for head in heads],
        ["---"] * len(heads),
        *([spelled(r[h]) for h in heads] for r in rows),
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def spelled(value: Any) -> str:
    """A cell."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else inert(str(value))
