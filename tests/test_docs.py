"""The documentation: generated pages are new, and what the pages name is there."""

from __future__ import annotations

import filecmp
import importlib
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
import pytest
from conftest import ROOT
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object

from cl_bench.config.folders import ENTRY_POINTS

DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
WRITTEN = [page for page in PAGES if page.parent.name != "options"]
TYPED = [page for page in WRITTEN if page.parent.name != "results"]
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
FILE = re.compile(r"(?<![\w/])((?:cl_bench|conf|scripts|tests|docs)/[\w./-]*\w)")
NAMED_IN = re.compile(r"`([\w.]+)`\s+in\s+`(cl_bench/[\w/]+\.py)`")
LISTED = re.compile(r"^\d+\. `(cl_bench/[\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", re.MULTILINE)
RUN = "python -m cl_bench.run"


def text_of(page: Path) -> str:
    return page.read_text()


def made_here(text: str) -> set[str]:
    """The files that a page tells its reader to make: `path`, and then a block with its content."""
    return set(re.findall(r"`([\w./]+)`:\n\n```", text))


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return [block.replace("\\\n", " ") for block in found]


def run_lines(text: str) -> list[str]:
    """The lines of a page's bash blocks that start a run."""
    lines = [line.strip() for block in blocks(text, "bash") for line in block.splitlines()]
    return [line[line.index(RUN) :] for line in lines if RUN in line]


def composed_words(line: str) -> Iterator[tuple[str, ...]]:
    """The command lines that a line stands for: of a sweep, each value of each key once."""
    words = shlex.split(line, comments=True)[3:]
    words = [word for word in words if not word.startswith("-")]
    fixed = [word for word in words if not word.startswith("hydra")]
    parsed = OverridesParser.create().parse_overrides(fixed)
    values = [
        [f"{o.key_or_group}={v}" for v in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [w]
        for o, w in zip(parsed, fixed, strict=True)
    ]
    first = [found[0] for found in values]
    yield tuple(first)
    for place, found in enumerate(values):
        for other in found[1:3]:
            yield (*first[:place], other, *first[place + 1 :])


def test_the_generated_pages_are_new(tmp_path: Path) -> None:
    """`python scripts/docs.py` writes what is in docs/options."""
    runpy.run_path(str(ROOT / "scripts/docs.py"))["write"](tmp_path)
    there = {file.name for file in (DOCS / "options").iterdir()}
    assert {file.name for file in tmp_path.iterdir()} == there
    old = [name for name in sorted(there) if not same(tmp_path / name, DOCS / "options" / name)]
    assert not old, f"{old}: python scripts/docs.py"


def same(one: Path, other: Path) -> bool:
    return filecmp.cmp(one, other, shallow=False)


def test_every_group_has_a_page() -> None:
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    pages = {page.stem for page in (DOCS / "options").glob("*.md")}
    assert groups - {"hydra", "tuned_values"} == pages - {"index", "launcher"}


def test_every_page_is_in_the_sites_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text()
    lost = [p for p in DOCS.rglob("*.md") if p.relative_to(DOCS).as_posix() not in menu]
    assert not lost


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text_of(page))
    lost = [link for link in links if not (page.parent / link).exists()]
    assert not lost


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_and_name_is_there(page: Path) -> None:
    text = text_of(page)
    made = made_here(text)
    files = {file for file in FILE.findall(text) if file not in made}
    assert [file for file in sorted(files) if not (ROOT / file).exists()] == []
    for name, file in NAMED_IN.findall(text):
        assert resolved(file, name) is not None
    for file, cell in LISTED.findall(text):
        for name in re.findall(r"`([\w.]+)`", cell):
            assert resolved(file, name) is not None
    modules = {file.removesuffix(".py").replace("/", ".") for file in made} | {ENTRY_POINTS}
    for path in re.findall(r"\bcl_bench(?:\.\w+)+", text):
        if not path.startswith(tuple(modules) or "-") and not path.endswith(".git"):
            assert get_object(path) is not None


def resolved(file: str, name: str) -> Any:
    """What a module calls so: a function, a class, an attribute of one, or one of its fields."""
    found: Any = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        fields = getattr(found, "__annotations__", {})
        found = getattr(found, part) if hasattr(found, part) else fields[part]
    return found


EXAMPLES = {
    "method=anchor": "method=l2",
    "dataset=stripes": "dataset=folder",
    "dataset=mystripes": "dataset=folder",
    "mydata.stripes": "builtins.list",
}


@pytest.mark.parametrize("page", TYPED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_is_accepted(page: Path) -> None:
    """Each run of a bash block, composed and checked as the command would be.

    Those of the results' pages are the tables' own, which test_results checks.
    """
    for line in run_lines(text_of(page)):
        for example, nearest in EXAMPLES.items():
            line = re.sub(r" --config-dir \S+", "", line.replace(example, nearest))
        # test_readme and test_own_package run the tutorials' examples; here the nearest option
        for words in composed_words(line):
            assert commands.said(words) is None, (line, words)
        for launcher in re.findall(r"hydra/launcher=(\w+)", line):
            assert (ROOT / f"conf/hydra/launcher/{launcher}.yaml").is_file()


def test_there_are_commands_to_check() -> None:
    assert sum(len(run_lines(text_of(page))) for page in TYPED) > 20


def test_experiments_and_options_in_the_text_exist() -> None:
    """`group=option` between backticks, wherever it stands."""
    conf = ROOT / "conf"
    groups = "|".join(path.name for path in conf.iterdir() if path.is_dir())
    for page in WRITTEN:
        own = made_here(text_of(page))
        for group, option in re.findall(
            rf"`(?:[^`]* )?({groups})=([\w/]+\w)\b(?!/)", text_of(page)
        ):
            file = f"conf/{group}/{option}.yaml"
            made = any(name.endswith(file) for name in own)
            assert (ROOT / file).is_file() or made, (page, group, option)
