"""The text forms of a report: what a record says stays text in each, and marks are in each."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pandas as pd
import pytest
from records import change, lines, write

from cl_bench.report import formats
from cl_bench.report.html_page import html
from cl_bench.report.orders import NO_ORDERS
from cl_bench.report.rows import gather
from cl_bench.report.tables import tables
from cl_bench.results.records import read_all


def test_markup_stays_text_in_every_form(tmp_path: Path) -> None:
    for name, odd in (("a", "<b>&$x_{1}$"), ("b", "`*|%#~^\\")):
        write(tmp_path, "er", name, (0.5,), method__odd=odd)
    found = tables(gather(read_all(tmp_path)), None)
    escaped = r"\textless{}b\textgreater{}\&\$x\_\{1\}\$"
    assert escaped in formats.latex(found) and "<b>" not in html(found, NO_ORDERS, "<i>")
    assert r"method.odd=\<b\>\&\$x\_{1}\$" in formats.markdown(found)
    write(tmp_path, "er", "c", (0.5,), method__odd="$a{$")  # no mathematics, and no error
    assert "$a{$" in html(tables(gather(read_all(tmp_path)), None), NO_ORDERS, "")
    assert r"\`\*\|%\#\~^\\" in formats.markdown(found)


HOSTILE = "=1+1 [x](http://evil)\n# title\x1b[31m<b>"


def test_what_a_record_says_is_text_in_every_form(tmp_path: Path) -> None:
    """It makes no heading, link, formula, line or colour, in tables and in titles."""
    write(tmp_path, "er", "a", (0.5, 0.6), place=f"{'x'}/data", method__odd=HOSTILE)
    write(tmp_path, "er", "b", (0.5,), place="x/data", method__odd=1)
    for file in tmp_path.rglob("record.json"):
        change(file, "labels.dataset", HOSTILE)
    found = tables(gather(read_all(tmp_path)), None)
    made = [formats.plain_text(found), formats.markdown(found)]
    made += [formats.csv_text(formats.data_frame(found)), formats.latex(found)]
    made += [html(found, NO_ORDERS, "")]
    for text in made:
        assert "\x1b" not in text and "\n# title" not in text
        assert r"x1b[31m" in text.replace("\\[", "[")
    markdown, table = made[1], pd.read_csv(io.StringIO(made[2]))
    bare = re.sub(r"(?m)^## ", "", markdown)  # our own headings
    assert not re.search(r"(?<!\\)[\[\]<>#]", bare), markdown
    assert "://evil" not in markdown
    assert str(next(iter(table["dataset"]))).startswith("'=1+1")
    assert next(iter(table["ACC"])) == pytest.approx(55)
    assert "<b>" not in made[4].partition("</style>")[2].replace("<body>", "")


def test_runs_of_different_code_are_marked(tmp_path: Path) -> None:
    """In every form, with the modules that differ."""
    write(tmp_path, "er", "a", (0.5, 0.6))
    write(tmp_path, "ewc", "b", (0.5, 0.6))
    file = next(tmp_path.rglob("er/a/seed1/record.json"))
    change(file, "code", {"sha256": "two", "files": {"cl_bench.core.learner": "2"}})
    found = tables(gather(read_all(tmp_path)), None)
    assert [line["method"] for line in lines(found[0])] == ["er †", "ewc"]
    for text in (formats.plain_text(found), formats.markdown(found), html(found, NO_ORDERS, "")):
        assert "er †" in text and "made by different code (cl_bench.core.learner)" in text
    latex = formats.latex(found)
    assert r"er$^\dagger$ &" in latex and r"ewc$^\dagger$" not in latex
    modules = formats.data_frame(found)["different code"].fillna("")
    assert list(modules) == ["cl_bench.core.learner", ""]


def test_runs_of_sources_that_were_changed_since_are_marked(tmp_path: Path) -> None:
    """All seeds by one code, which is not the present one."""
    write(tmp_path, "er", "a", (0.5, 0.6))
    write(tmp_path, "ewc", "b", (0.5, 0.6))
    for file in tmp_path.rglob("er/a/*/record.json"):
        change(file, "code", {"sha256": "two", "files": {"cl_bench.methods.gone": "2"}})
    (found,) = tables(gather(read_all(tmp_path)), None)
    assert [line["method"] for line in lines(found)] == ["er ‡", "ewc"]
    assert "made by sources that were changed since (cl_bench.methods.gone)" in found.note
    modules = formats.data_frame([found])["changed since"].fillna("")
    assert list(modules) == ["cl_bench.methods.gone", ""]


def test_runs_of_sources_that_are_not_found_are_marked(tmp_path: Path) -> None:
    """Of a package of the user's, for want of --config-dir: whether it was changed is not known."""
    write(tmp_path, "er", "a", (0.5, 0.6))
    for file in tmp_path.rglob("er/a/*/record.json"):
        change(file, "code", {"sha256": "two", "files": {"no_such_package.method": "2"}})
    (found,) = tables(gather(read_all(tmp_path)), None)
    assert [line["method"] for line in lines(found)] == ["er §"]
    assert "changed since" not in found.note
    assert "not found here (no_such_package.method)" in found.note and "--config-dir" in found.note
    frame = formats.data_frame([found])
    assert list(frame["sources not found"]) == ["no_such_package.method"]
    assert "changed since" not in frame
