"""Data that is not as it should be: one line says what is there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from images import image_folder, paint, refusal

from cl_bench.data import source


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "download", lambda *_: "download failed: not tried in tests")


def test_a_place_without_an_image_folder_is_described(tmp_path: Path):
    home = str(tmp_path)
    image_folder(tmp_path / "half", "dog cat", 1, 1)
    shutil.rmtree(tmp_path / "half/test")
    said = refusal(source.folder, "half", 4, home)
    assert f"; test or val not found in {tmp_path / 'half'}; set dataset.source.path" in said
    (tmp_path / "half/test").write_text("a file")
    said = refusal(source.folder, "half", 4, home)
    assert f"{tmp_path / 'half/test'} is a file, not a folder" in said
    image_folder(tmp_path / "above/pets", "dog cat", 1, 1)
    assert "above has 1 folder (pets)" in refusal(source.folder, "above", 4, home)
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} is empty" in refusal(source.folder, "empty", 4, home)
    assert "File name too long" in refusal(source.folder, "x" * 300, 4, home)
    assert "no path has a null character" in refusal(source.folder, "a\0b", 4, home)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Path.touch, "a file"),
        (os.mkfifo, "a named pipe"),
        (lambda place: place.symlink_to("nowhere"), "a broken link"),
    ],
)
def test_what_stands_where_a_folder_is_wanted(make: Callable, words: str, tmp_path: Path):
    place = tmp_path / "images"
    make(place)
    assert f"; {place} is {words}, not a folder; set" in refusal(
        source.folder, "images", 4, str(tmp_path)
    )


def test_a_part_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Denied folders are simulated: the tests may run as root."""
    image_folder(tmp_path / "pets", "dog", 1, 1)
    scandir = os.scandir

    def denied(path: Any) -> Any:
        if str(path).endswith("train/dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    said = refusal(source.folder, "pets", 4, str(tmp_path))
    assert said.endswith(f": {tmp_path / 'pets/train/dog'}: Permission denied")


def test_class_folders_that_are_broken_links(tmp_path: Path):
    """In both halves they would be missing unseen."""
    image_folder(tmp_path / "pets", "dog cat", 1, 1)
    for split in ("train", "test"):
        (tmp_path / "pets" / split / "fox").symlink_to("nowhere")
    place = tmp_path / "pets/train/fox"
    assert f"{place} is a broken link" in refusal(source.folder, "pets", 4, str(tmp_path))


def test_links_in_a_circle_and_to_nowhere_do_no_harm(tmp_path: Path):
    image_folder(tmp_path / "pets", "dog cat", 1, 1)
    for name in ("dog", "cat"):
        (tmp_path / "pets/train" / name / "up").symlink_to(tmp_path / "pets/train")
        (tmp_path / "pets/train" / name / "gone.txt").symlink_to("nowhere")
    assert source.folder("pets", 4, str(tmp_path)).classes == ("cat", "dog")
    (tmp_path / "pets/train/dog/gone.png").symlink_to("nowhere")
    assert "gone.png: No such file" in refusal(source.folder, "pets", 4, str(tmp_path))


def test_names_of_any_bytes_or_script(tmp_path: Path):
    """Of an image and of a data set: any; of a class: whatever a line of text can hold."""
    odd = os.fsdecode(b"p\xff")
    image_folder(tmp_path / odd, "dog \u0915\u094d\u200d\u0937", 1, 1)
    os.rename(tmp_path / odd / "train/dog/0.png", tmp_path / odd / "train/dog" / f"{odd}.png")
    found = [source.folder(odd, 4, str(tmp_path)) for _ in range(2)]
    assert found[0].classes == found[1].classes == ("dog", "\u0915\u094d\u200d\u0937")
    image_folder(tmp_path / ("\u00f6" * 120), "dog", 1, 1)
    source.folder("\u00f6" * 120, 4, str(tmp_path))
    (tmp_path / odd / "train/a\nb").mkdir()
    assert r"the folder 'a\nb' is no name of a class" in refusal(
        source.folder, odd, 4, str(tmp_path)
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"bar/a.png\nattic/a\xff.png", "is no text in UTF-8"),
        (b"bar/a.png\n../../x.png", "has the line '../../x.png', which is no <class>/<image>"),
        (b"bar/a.png\nattic/../x.png", "has the line"),
        (b"bar/a.png\na\0b/c.png", "has the line"),
        (b"bar/a.png\nattic", "has the line 'attic'"),
    ],
)
def test_damaged_lists_of_mit67(content: bytes, words: str, tmp_path: Path):
    root = tmp_path / "mit67"
    paint(root / "Images/bar/a.png", 1)
    (root / "TestImages.txt").write_text("bar/a.png")
    (root / "TrainImages.txt").write_bytes(content)
    assert f"{root / 'TrainImages.txt'} {words}" in refusal(source.mit67, str(tmp_path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff.png,n1\n", "is no text in UTF-8"),
        (b"x" * 200_000 + b",n1\n", "is damaged: field larger than field limit"),
        (b"a\0.png,n1\n", "which is no file name"),
        (b"../a.png,n1\n", "names '../a.png', which is no file name"),
        (b"\n,n1\n", "names '', which is no file name"),
    ],
)
def test_damaged_lists_of_miniimagenet(content: bytes, words: str, tmp_path: Path):
    root = tmp_path / "miniimagenet"
    paint(root / "images/a.png", 1)
    for name in ("train", "val", "test"):
        (root / f"{name}.csv").write_bytes(b"filename,label\n" + content)
    said = refusal(source.miniimagenet, str(tmp_path))
    assert f"{root / 'train.csv'} " in said and words in said


@pytest.mark.parametrize("content", [b"v.JPEG\n", b"../v.JPEG\tn1\n", b"v\xff.JPEG\tn1\n"])
def test_damaged_list_of_tinyimagenet(content: bytes, tmp_path: Path):
    root = tmp_path / "tiny-imagenet-200"
    for name in ("train/n1/images/a.JPEG", "val/images/v.JPEG"):
        paint(root / name, 1, (64, 64))
    (root / "val/val_annotations.txt").write_bytes(content)
    said = refusal(source.tinyimagenet, str(tmp_path))
    assert said.startswith(f"tinyimagenet: {root / 'val/val_annotations.txt'} ")
    (root / "train/n2").mkdir()
    said = refusal(source.tinyimagenet, str(tmp_path))
    assert f"{root / 'train/n2/images'} is missing" in said
