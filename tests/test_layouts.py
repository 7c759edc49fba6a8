"""Image folders, published lists, pixels, and what is said when nothing is found."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from images import image_folder, paint, refusal, shades
from PIL import Image

from cl_bench.base.exceptions import UserError
from cl_bench.data import layouts, source
from cl_bench.data.origin import fingerprint, in_order


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "download", lambda *_: "download failed: not tried in tests")


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    image_folder(tmp_path / "pets", "dog cat", 3, 1)
    for noise in ("pets/train/.hidden/0.png", "pets/train/cat/.0.png", "pets/train/0.png"):
        paint(tmp_path / noise, 255)
    (tmp_path / "pets" / "train" / "cat" / "notes.txt").write_text("no image")
    data = source.folder("pets", 4, str(tmp_path))
    assert data.name == "pets" and data.classes == ("cat", "dog") and data.groups is None
    assert shades(data.train_x) == [10, 11, 12, 0, 1, 2] and shades(data.test_x) == [110, 100]
    assert data.train_y.tolist() == [0, 0, 0, 1, 1, 1] and data.test_y.tolist() == [0, 1]
    assert data.train_x.shape == (6, 3, 4, 4) and "4x4" in data.provenance["resize"]
    again = source.folder(str(tmp_path / "pets"), 4, str(tmp_path / "other"))
    assert again.sha256 == data.sha256
    monkeypatch.chdir(tmp_path)
    assert source.folder("pets", 4, str(tmp_path / "third")).sha256 == data.sha256
    assert source.folder("pets", 2, str(tmp_path)).train_x.shape == (6, 3, 2, 2)
    (tmp_path / "pets").rename(tmp_path / "gone")
    assert source.folder("pets", 4, str(tmp_path)).sha256 == data.sha256


def test_folder_notices_a_new_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    image_folder(tmp_path / "pets", "dog cat", 3, 1)
    source.folder("pets", 4, str(tmp_path))
    paint(tmp_path / "pets" / "test" / "cat" / "9.jpg", 200)
    assert shades(source.folder("pets", 4, str(tmp_path)).test_x) == [110, 200, 100]
    assert "another state of its origin" in capsys.readouterr().err


def test_two_folders_of_one_name_do_not_share_a_cache(tmp_path: Path):
    image_folder(tmp_path / "a" / "pets", "dog", 1, 1)
    image_folder(tmp_path / "b" / "pets", "cat", 2, 1)
    loaded = [source.folder(f"{letter}/pets", 4, str(tmp_path)).classes for letter in "abab"]
    assert loaded == [("dog",), ("cat",)] * 2 and len(list(tmp_path.glob("cache/p*"))) == 2


def overwrite(file: Path, shade: int) -> None:
    """Another picture of the same size and name; neither its folder's time nor count changes."""
    folder = file.parent.stat()
    with Image.open(file) as image:
        size = image.size
    paint(file, shade, size)
    os.utime(file.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))


def test_an_image_overwritten_in_place_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In image folders, and in every layout whose files are listed or lie deeper."""
    image_folder(tmp_path / "pets", "dog cat", 2, 1)
    before = source.folder("pets", 8, str(tmp_path)).sha256
    assert source.folder("pets", 8, str(tmp_path)).sha256 == before
    overwrite(tmp_path / "pets/test/cat/0.png", 77)
    assert source.folder("pets", 8, str(tmp_path)).sha256 != before
    root = tmp_path / "mit67"
    for name in ("bar/a.png", "bar/b.png", "attic/a.png", "attic/b.png"):
        paint(root / "Images" / name, 10, (20, 10))
    (root / "TrainImages.txt").write_text("bar/a.png\nattic/a.png")
    (root / "TestImages.txt").write_text("bar/b.png\nattic/b.png")
    monkeypatch.setattr(layouts, "MIT67_COUNTS", (2, None, None))
    before = source.mit67(str(tmp_path)).sha256
    overwrite(root / "Images/attic/b.png", 77)
    assert source.mit67(str(tmp_path)).sha256 != before


def test_every_image_that_is_read_is_watched(tmp_path: Path):
    """In each layout: one more byte or another time in one of them is another state."""
    folder = [f"f/{s}/c/0.png" for s in ("train", "test")]
    tiny, glot = "tiny-imagenet-200", "omniglot-py"
    cases = {
        layouts.any_folder(tmp_path / "f", 8, False)[0]: folder,
        layouts.any_folder(tmp_path / "v", 8, False)[1]: ["v/train/c/0.png", "v/val/c/0.png"],
        layouts.tinyimagenet(tmp_path)[0]: [
            f"{tiny}/train/n/images/0.JPEG",
            f"{tiny}/val/images/v.x",
        ],
        layouts.omniglot(tmp_path, 8)[0]: [
            f"{glot}/images_{half}/Greek/c/0.png" for half in ("background", "evaluation")
        ],
        layouts.mit67(tmp_path)[0]: ["mit67/Images/bar/0.any"],
        layouts.miniimagenet(tmp_path / "m")[0]: ["m/images/0.any"],
    }
    for origin, names in cases.items():
        for file in (*origin.files, *(tmp_path / name for name in names)):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"some")
        assert origin.complete
        for name in names:
            states = [fingerprint(origin)]
            os.utime(tmp_path / name, ns=(1, 1))
            states.append(fingerprint(origin))
            (tmp_path / name).write_bytes(b"more")
            os.utime(tmp_path / name, ns=(1, 1))
            assert fingerprint(origin) == states[1], "size and time are all that is looked at"
            (tmp_path / name).write_bytes(b"longer")
            os.utime(tmp_path / name, ns=(1, 1))
            states.append(fingerprint(origin))
            assert len(set(states)) == 3, name


def test_a_moved_folder_keeps_its_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    image_folder(tmp_path / "a/pets", "dog cat", 2, 1)
    first = source.folder("pets", 8, str(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert source.folder("pets", 8, str(tmp_path / "b")).sha256 == first.sha256
    (tmp_path / "b/pets/notes.txt").write_text("not read")
    (tmp_path / "b/pets/train/dog/notes.txt").write_text("not read")
    source.folder("pets", 8, str(tmp_path / "b"))
    assert capsys.readouterr().err == "", "it was not prepared again"


def test_data_folders_of_one_name_share_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a cache_dir for several data_dirs: of a folder that is gone, none is taken for another."""
    cache = str(tmp_path / "cache")
    for place, classes in (("a", "dog cat"), ("b", "fox owl"), ("here", "bee ant")):
        image_folder(tmp_path / place / "pets", classes, 1, 1)
    for place, classes in (("a", ("cat", "dog")), ("b", ("fox", "owl"))):
        assert source.folder("pets", 4, str(tmp_path / place), cache).classes == classes
    shutil.rmtree(tmp_path / "a/pets")
    assert source.folder("pets", 4, str(tmp_path / "a"), cache).classes == ("cat", "dog")
    monkeypatch.chdir(tmp_path / "here")
    assert source.folder("pets", 4, str(tmp_path / "c"), cache).classes == ("ant", "bee")


def test_what_a_folder_has_in_place_of_images_is_told(tmp_path: Path):
    home = str(tmp_path)
    image_folder(tmp_path / "gifs", "dog cat", 1, 1)
    image = tmp_path / "gifs/train/dog/0.png"
    image.rename(image.with_suffix(".gif"))
    said = refusal(source.folder, "gifs", 4, home)
    assert f"no images in {image.parent}, which has 1 file (.gif)" in said
    assert "images lie in {train,test}/<class>/* and end in .bmp, .jpeg, .jpg, .pgm, .png" in said
    image_folder(tmp_path / "deep/train", "a b", 1, 1)
    image_folder(tmp_path / "deep/test", "a b", 1, 1)
    said = refusal(source.folder, "deep", 4, home)
    assert f"no images in {tmp_path / 'deep/train/test'}, which has 2 folders (a, b)" in said
    (tmp_path / "none/train").mkdir(parents=True)
    (tmp_path / "none/test").mkdir()
    said = refusal(source.folder, "none", 4, home)
    assert f"{tmp_path / 'none/train'} is empty, and no class folders" in said
    image_folder(tmp_path / "fifo", "dog cat", 1, 1)
    (tmp_path / "fifo/train/dog/0.png").unlink()
    os.mkfifo(tmp_path / "fifo/train/dog/0.png")
    assert "0.png: not a regular file" in refusal(source.folder, "fifo", 4, home)
    image_folder(tmp_path / "bytes", "dog cat", 1, 1)
    os.rename(
        os.fsencode(tmp_path / "bytes/train/dog"), os.fsencode(tmp_path) + b"/bytes/train/\xff"
    )
    said = refusal(source.folder, "bytes", 4, home)
    assert r"the folder '\udcff' is no name of a class: it is not in UTF-8" in said


def test_folder_refusals(tmp_path: Path):
    image_folder(tmp_path / "pets", "dog cat", 1, 1)
    home = str(tmp_path)
    said = refusal(source.folder, "nothing", 4, home)
    assert str(tmp_path / "nothing") in said and "{train,test}/<class>/*" in said
    (tmp_path / "pets" / "train" / "fox").mkdir()
    assert f"no images in {tmp_path / 'pets/train/fox'}" in refusal(source.folder, "pets", 4, home)
    paint(tmp_path / "pets" / "train" / "fox" / "1.png", 3)
    assert "fox is in train only" in refusal(source.folder, "pets", 4, home)
    shutil.rmtree(tmp_path / "pets" / "train" / "fox")
    broken = tmp_path / "pets" / "train" / "dog" / "broken.jpg"
    broken.write_bytes(b"no image")
    assert str(broken) in refusal(source.folder, "pets", 4, home)


def test_mit67(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "mit67"
    for i, name in enumerate(("bar/b.png", "attic/z.png", "attic/a.png", "bar/a.png")):
        paint(root / "Images" / name, 10 * i, (20, 10))
    (root / "TrainImages.txt").write_bytes(b"bar/b.png\r\nattic/z.png\r\n\r\n")
    (root / "TestImages.txt").write_text(" attic/a.png \nbar/a.png")
    assert "2 train classes instead of 67" in refusal(source.mit67, str(tmp_path))
    monkeypatch.setattr(layouts, "MIT67_COUNTS", (2, None, None))
    data = source.mit67(str(tmp_path))
    assert data.classes == ("attic", "bar") and data.train_x.shape == (2, 3, 256, 256)
    assert shades(data.train_x) == [0, 10] and data.train_y.tolist() == [1, 0]
    assert shades(data.test_x) == [20, 30] and data.test_y.tolist() == [0, 1]
    (root / "TestImages.txt").write_text("attic/a.png\nbar/c.png\nbar/d.png")
    said = refusal(source.mit67, str(tmp_path))
    assert "2 of 5 listed files" in said and str(root / "Images" / "bar" / "c.png") in said


def test_miniimagenet_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    image_folder(tmp_path / "miniimagenet", "n3 n1 n2", 3, 2)
    assert "3 train classes instead of 100" in refusal(source.miniimagenet, str(tmp_path))
    monkeypatch.setattr(layouts, "MINIIMAGENET_COUNTS", (3, 3, 2))
    data = source.miniimagenet(str(tmp_path))
    assert data.classes == ("n1", "n2", "n3") and data.train_x.shape == (9, 3, 84, 84)
    assert shades(data.test_x) == [110, 111, 120, 121, 100, 101]


def test_miniimagenet_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "miniimagenet"
    for k, split in enumerate(("train", "val", "test")):
        rows = [f"{k}{i}.png,n{3 - k}" for i in (4, 0, 3, 1, 2)]
        for row in rows:
            paint(root / "images" / row.split(",")[0], int(row[:2]))
        (root / f"{split}.csv").write_text("\n".join(["filename,label", *rows]))
    monkeypatch.setattr(layouts, "MINIIMAGENET_COUNTS", (3, 3, 2))
    data = source.miniimagenet(str(tmp_path))
    assert data.classes == ("n1", "n2", "n3")
    assert shades(data.train_x) == [24, 20, 23, 14, 10, 13, 4, 0, 3]
    assert shades(data.test_x) == [21, 22, 11, 12, 1, 2]
    (root / "images" / "11.png").unlink()
    said = refusal(source.miniimagenet, str(tmp_path))
    assert "1 of 15 listed files" in said and str(root / "images" / "11.png") in said
    (root / "val.csv").write_text("file,class\n")
    assert f"{root / 'val.csv'} has no columns filename,label" in refusal(
        source.miniimagenet, str(tmp_path)
    )


def test_cifar100_folder_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    image_folder(tmp_path / "cifar100", "apple tench", 2, 1)
    assert "2 train classes instead of 100" in refusal(source.cifar100, str(tmp_path))
    monkeypatch.setattr(layouts, "CIFAR100_COUNTS", (2, 3, 1))
    assert "apple has 2 train images instead of 3" in refusal(source.cifar100, str(tmp_path))
    monkeypatch.setattr(layouts, "CIFAR100_COUNTS", (2, 2, 1))
    assert "tench" in refusal(source.cifar100, str(tmp_path))
    shutil.rmtree(tmp_path / "cifar100")
    image_folder(tmp_path / "cifar100", "apple worm", 2, 1)
    assert "0.png: is 8x8 instead of 32x32" in refusal(source.cifar100, str(tmp_path))


def test_classes_that_are_numbers_are_in_their_order() -> None:
    assert in_order(["10", "2", "1"]) == ["1", "2", "10"]
    assert in_order(["10", "2", "b"]) == ["10", "2", "b"]


def test_broken_images_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only with skip_broken, and not all of a class; another value makes another prepared file."""
    for part, number in (("train", 3), ("test", 2)):
        for name in ("2", "10"):
            for i in range(number):
                paint(tmp_path / "own" / part / name / f"{i}.png", 10 * int(name) + i)
    (tmp_path / "own/train/10/1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot use the image .*train/10/1\.png"):
        source.folder("own", 4, str(tmp_path))
    found = source.folder("own", 4, str(tmp_path), skip_broken=True)
    assert found.classes == ("2", "10") and found.train_y.tolist() == [1, 1, 0, 0, 0]
    assert found.provenance["left_out"] == "1 images that cannot be read"
    line = capsys.readouterr().err
    assert "1 images left out, the first: own: cannot use the image" in line
    with pytest.raises(UserError, match=r"cannot use the image"):
        source.folder("own", 4, str(tmp_path))
    for i in (0, 2):
        (tmp_path / f"own/train/10/{i}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="no image of a class can be read"):
        source.folder("own", 4, str(tmp_path), skip_broken=True)
