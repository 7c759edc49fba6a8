"""What mkdocs calls while it builds the site: equations as MathML, docstrings with their columns.

Browsers draw MathML by themselves: the site needs no script for its equations, and no network.
"""

from __future__ import annotations

import html
import re
from typing import Any

from griffe import Extension, Object  # type: ignore[import-not-found]
from latex2mathml.converter import convert  # type: ignore[import-not-found]

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
COLUMNS = re.compile(r"\S {2,}\S|^ {2,}\S", re.MULTILINE)


def on_page_content(content: str, **_: Any) -> str:
    """Replace each equation of a page by MathML, with its LaTeX as the text for a reader."""

    def drawn(match: re.Match[str]) -> str:
        tag, opening, latex = match.groups()
        display = "block" if opening == "[" else "inline"
        made = convert(html.unescape(latex), display=display)
        return f'<{tag} class="equation" title="{html.escape(latex, quote=True)}">{made}</{tag}>'

    return EQUATION.sub(drawn, content)


def as_markdown(docstring: str) -> str:
    """A plain docstring as Markdown: paragraphs in columns as they are, the rest escaped."""
    parts = []
    for paragraph in docstring.split("\n\n"):
        if COLUMNS.search(paragraph):
            parts.append(f"```text\n{paragraph}\n```")
        else:
            parts.append(re.sub(r"`[^`]*`|[*_<|\\]", _escaped, paragraph))
    return "\n\n".join(parts)


def _escaped(match: re.Match[str]) -> str:
    """Code as it is; a character that Markdown would take for its own, escaped."""
    text = match[0]
    return text if text.startswith("`") else "&lt;" if text == "<" else f"\\{text}"


class Columns(Extension):
    """Hand mkdocstrings the docstrings as Markdown."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
