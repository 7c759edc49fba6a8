"""Hooks of mkdocs: they turn equations into MathML and docstrings into Markdown.

Browsers display MathML without a script, so the site needs no network.
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
    """Replace each equation of a page by MathML that has the LaTeX as its title."""

    def to_mathml(match: re.Match[str]) -> str:
        tag, opening, latex = match.groups()
        display = "block" if opening == "[" else "inline"
        made = convert(html.unescape(latex), display=display)
        return f'<{tag} class="equation" title="{html.escape(latex, quote=True)}">{made}</{tag}>'

    return EQUATION.sub(to_mathml, content)


def as_markdown(docstring: str) -> str:
    """A docstring as Markdown: paragraphs with columns become code blocks, others are escaped."""
    parts = []
    for paragraph in docstring.split("\n\n"):
        if COLUMNS.search(paragraph):
            parts.append(f"```text\n{paragraph}\n```")
        else:
            parts.append(re.sub(r"`[^`]*`|[*_<|\\]", _escaped, paragraph))
    return "\n\n".join(parts)


def _escaped(match: re.Match[str]) -> str:
    """Code between backticks unchanged; another character escaped for Markdown."""
    text = match[0]
    return text if text.startswith("`") else "&lt;" if text == "<" else f"\\{text}"


class Columns(Extension):
    """An extension of griffe that gives mkdocstrings the docstrings as Markdown."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
