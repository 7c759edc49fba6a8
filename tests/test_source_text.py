"""What is found in the text of a module, and what of it a later process reads from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cl_bench.results import source_text
from cl_bench.results.source_text import Import, Parsed, ParsedTexts, parse

TEXT = b'''"""A module."""
import a.b, c
from . import d
from ..e import f as g, h
def i():
    """A function."""
    from k import l
'''
IMPORTS = [(0, "a.b", ()), (0, "c", ()), (1, "", ("d",)), (2, "e", ("f", "h")), (0, "k", ("l",))]


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ParsedTexts:
    """With a cache folder of its own, in which nothing is yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return ParsedTexts()


def test_imports_are_found_wherever_they_stand() -> None:
    assert list(parse(TEXT).imports) == [Import(*each) for each in IMPORTS]


def test_comments_docstrings_and_layout_have_no_part_in_the_hash() -> None:
    same = TEXT.replace(b"A function.", b"The same.").replace(b"import a.b, c", b"import a.b,c #")
    assert parse(same) == parse(TEXT)
    assert parse(TEXT.replace(b"def i", b"def j")).sha256 != parse(TEXT).sha256


def test_a_later_process_reads_what_was_found(
    texts: ParsedTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: bytes) -> Parsed:
        raise AssertionError("it was parsed")

    found = texts.parsed(TEXT)
    texts.write()
    assert json.loads(texts.file.read_text())
    monkeypatch.setattr(source_text, "parse", refuse)
    assert texts.parsed(TEXT) == ParsedTexts().parsed(TEXT) == found
    with pytest.raises(AssertionError, match="it was parsed"):
        ParsedTexts().parsed(TEXT + b"m = 1\n")


def test_the_file_is_written_when_there_is_something_new(texts: ParsedTexts) -> None:
    texts.write()
    assert not texts.file.exists()
    texts.parsed(b"a = (")
    texts.write()
    assert not texts.file.exists(), "it is no Python"
    texts.parsed(TEXT)
    texts.write()
    stamp = texts.file.stat().st_mtime_ns
    texts.parsed(TEXT)
    texts.write()
    again = ParsedTexts()
    again.parsed(TEXT)
    again.write()
    assert texts.file.stat().st_mtime_ns == stamp
    assert [*texts.file.parent.iterdir()] == [texts.file]


DAMAGED = [
    b"",
    b"{",
    b"[]",
    b"\xff",
    b'{"NAME": null}',
    b'{"NAME": ["0123456789abcdef"]}',
    b'{"NAME": [1, []]}',
    b'{"NAME": ["0123456789abcdef", [[0, "a"]]]}',
    b'{"NAME": ["0123456789abcdef", [[0, "a", [1]]]]}',
    b'{"NAME": ["0123456789abcdef", [["0", "a", []]]]}',
    b'{"NAME": ["0123", []]}',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_made_again(content: bytes, texts: ParsedTexts) -> None:
    found = texts.parsed(TEXT)
    texts.write()
    whole = texts.file.read_bytes()
    (name,) = json.loads(whole)
    texts.file.write_bytes(content.replace(b"NAME", name.encode()))
    again = ParsedTexts()
    assert again.parsed(TEXT) == found
    again.write()
    assert texts.file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_changes_nothing(texts: ParsedTexts) -> None:
    texts.file.parent.write_text("a file where the folder would be")
    found = texts.parsed(TEXT)
    texts.write()
    assert texts.parsed(TEXT) == found == ParsedTexts().parsed(TEXT)
    texts.file.parent.unlink()
    texts.file.mkdir(parents=True)
    texts.parsed(b"n = 1")
    texts.write()
    assert [*texts.file.parent.iterdir()] == [texts.file] and not [*texts.file.iterdir()]


def test_the_newest_are_kept(texts: ParsedTexts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_text, "KEPT", 3)
    for number in range(5):
        texts.parsed(b"a = %d" % number)
    texts.write()
    again = ParsedTexts()
    monkeypatch.setattr(source_text, "parse", lambda _: Parsed("parsed again....", ()))
    kept = [again.parsed(b"a = %d" % n).sha256 != "parsed again...." for n in range(5)]
    assert kept == [False, False, True, True, True]
