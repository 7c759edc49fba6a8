"""Text from a record or a path as text: nothing in it is markup, a formula or a command.

Whoever can place a record below a folder that someone reports on chooses its labels and values.
LaTeX is escaped in `report.formats`, HTML by Jinja.
"""

from __future__ import annotations

import re
from typing import Any

FORMULA = tuple("=+-@")  # what a cell begins with that a spreadsheet computes


def visible(value: Any) -> Any:
    """The value with control characters in its texts and keys written out: `\\x1b`, `\\n`.

    A terminal would obey them, a table would break at them.
    """
    if isinstance(value, str):
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
    if isinstance(value, dict):
        return {visible(key): visible(item) for key, item in value.items()}
    if isinstance(value, list):
        return [visible(item) for item in value]
    return value


def markdown(text: str) -> str:
    """What Markdown would read as markup, mathematics or an address, escaped."""
    escaped = re.sub(r"[\\|*`<>\[\]#~$&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    return escaped.replace("://", r":\/\/").replace("www.", r"www\.")


def cell(value: Any) -> Any:
    """A cell of a CSV file; texts that a spreadsheet would compute begin with an apostrophe."""
    formula = isinstance(value, str) and len(value) > 1 and value.lstrip()[:1] in FORMULA
    return f"'{value}" if formula else value
