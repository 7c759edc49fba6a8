"""Escapes texts from records and paths, so that they cannot act as markup, formulas or commands.

Reports show records of any origin, and whoever wrote a record chose its labels and values. LaTeX is
escaped in `report.formats`, HTML by Jinja.
"""

from __future__ import annotations

import re
from typing import Any

FORMULA = tuple("=+-@")  # first characters of a formula in a spreadsheet


def visible(value: Any) -> Any:
    """Write out control characters in a value's texts and keys: `\\x1b`, `\\n`.

    A terminal would execute them, and a line break would break a table.
    """
    if isinstance(value, str):
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
    if isinstance(value, dict):
        return {visible(key): visible(item) for key, item in value.items()}
    if isinstance(value, list):
        return [visible(item) for item in value]
    return value


def markdown(text: str) -> str:
    """Escape what Markdown would read as markup, mathematics or a link."""
    escaped = re.sub(r"[\\|*`<>\[\]#~$&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    return escaped.replace("://", r":\/\/").replace("www.", r"www\.")


def cell(value: Any) -> Any:
    """Escape a cell of a CSV file: an apostrophe before a text that looks like a formula."""
    formula = isinstance(value, str) and len(value) > 1 and value.lstrip()[:1] in FORMULA
    return f"'{value}" if formula else value
