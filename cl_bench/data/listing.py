"""The image files of a data set with their classes, from class folders or published lists."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import torch

from cl_bench.base.exceptions import UserError
from cl_bench.data.arrays import Part, Source, make_source, versions
from cl_bench.data.decode import Fit, decode, require_size
from cl_bench.data.origin import (
    FOLDER,
    IMAGES,
    NOTHING,
    describe_folder,
    in_order,
    is_image,
    path_kind,
    subfolders,
)

FOLDERS = "{train,test}/<class>/*"  # or val in place of test, as in ImageNet
MIT67_LISTS = ("TrainImages.txt", "TestImages.txt")
TINY_NOTES = "val/val_annotations.txt"
OMNIGLOT = ("images_background", "images_evaluation")
RAVI_LISTS = ("train.csv", "val.csv", "test.csv")
Labelled = tuple[Path, str]  # a file and the name of its class


class Listing(NamedTuple):
    """The files of a data set with their classes; class ids are the ranks of the class names."""

    name: str  # name of the data set, for messages
    train: list[Labelled]
    test: list[Labelled]
    order: str  # the order of the samples, in words


def from_folders(name: str, root: Path, test: str = "test") -> Listing:
    """root/{train, `test`}/<class>/<image>, ordered by class, then by file name."""
    parts = _labelled(name, root / "train"), _labelled(name, root / test)
    return Listing(name, *parts, "by class name, then by file name")


def from_mit67(root: Path) -> Listing:
    """MIT-67's official lists, with a `class/file` in each line, relative to Images/."""
    train, test = (_lines(root / name) for name in MIT67_LISTS)
    listing = Listing("mit67", train, test, f"as in {' and '.join(MIT67_LISTS)}")
    _require_files(listing)
    return listing


def from_ravi(root: Path, train: int) -> Listing:
    """miniImageNet by Ravi and Larochelle's csv lists.

    Of each class, the first `train` images are training images, the others test images.
    """
    members: dict[str, list[Labelled]] = defaultdict(list)
    for row in [row for name in RAVI_LISTS for row in _rows(root / name)]:
        members[row["label"]].append((root / "images" / row["filename"], row["label"]))
    classes = [members[label] for label in sorted(members)]
    firsts = [pair for pairs in classes for pair in pairs[:train]]
    others = [pair for pairs in classes for pair in pairs[train:]]
    order = f"by class, then as in the csv lists, whose first {train} of each class are train"
    listing = Listing("miniimagenet", firsts, others, order)
    _require_files(listing)
    return listing


def from_tinyimagenet(root: Path) -> Listing:
    """TinyImageNet's published layout, with its labelled validation images as test images."""
    name, notes = "tinyimagenet", root / TINY_NOTES
    train = [
        (file, folder.name)
        for folder in subfolders(root / "train")
        for file in _images(name, folder / "images")
    ]
    rows = [line.split("\t") for line in _text(name, notes).splitlines() if line]
    if any(len(row) < 2 or not _is_plain(row[0]) for row in rows):
        raise UserError(f"{name}: {notes} has a line that is no <image>, tab, <class>")
    test = [(root / "val" / "images" / row[0], row[1]) for row in rows]
    listing = Listing(name, train, test, f"by class and file name; as in {TINY_NOTES}")
    _require_files(listing)
    return listing


def from_omniglot(root: Path) -> Listing:
    """Omniglot's 1,623 characters; the last 4 of the 20 drawings of each are test images."""
    train: list[Labelled] = []
    test: list[Labelled] = []
    for half in OMNIGLOT:
        for alphabet in subfolders(root / half):
            for character in subfolders(alphabet):
                name = f"{half}/{alphabet.name}/{character.name}"
                pairs = [(file, name) for file in _images("omniglot", character)]
                train += pairs[:16]
                test += pairs[16:]
    return Listing("omniglot", train, test, "by character, then by file name")


def require_counts(listing: Listing, classes: int, train: int | None, test: int | None) -> None:
    """Raise UserError unless there are `classes` classes, each with `train` and `test` images.

    None stands for any number.
    """
    for split, part, wanted in (("train", listing.train, train), ("test", listing.test, test)):
        counts = Counter(label for _, label in part)
        if len(counts) != classes:
            raise UserError(f"{listing.name}: {len(counts)} {split} classes instead of {classes}")
        for label, count in counts.items():
            if wanted is not None and count != wanted:
                raise UserError(
                    f"{listing.name}: class {label} has {count} {split} images instead of {wanted}"
                )


def read(
    listing: Listing,
    size: int,
    fit: Fit,
    groups: tuple[int, ...] | None,
    skip_broken: bool = False,
) -> Source:
    """Decode every file to RGB of size x size; `groups` are the superclasses of the classes.

    With `skip_broken`, images that cannot be read are left out, and their number is printed and
    noted in the source's provenance.
    """
    classes = _common_classes(listing)
    ids = {label: i for i, label in enumerate(classes)}
    resized = f"PIL bilinear, antialiased, to {size}x{size}, any aspect"
    way = "none" if fit is require_size else resized

    reasons: list[str] = []

    def part(pairs: list[Labelled]) -> Part:
        broken: dict[int, str] = {}
        files = [file for file, _ in pairs]
        x = decode(listing.name, files, size, fit, broken if skip_broken else None)
        y = torch.tensor([ids[label] for _, label in pairs])
        if not broken:
            return x, y
        reasons.extend(broken[i] for i in sorted(broken))
        kept = [i for i in range(len(pairs)) if i not in broken]
        if len({*y[kept].tolist()}) < len(classes):
            raise UserError(f"{listing.name}: no image of a class can be read: {reasons[-1]}")
        return x[kept], y[kept]

    parts = part(listing.train), part(listing.test)
    provenance = {"order": listing.order, "resize": way, "versions": versions("torch", "pillow")}
    if reasons:
        provenance["left_out"] = f"{len(reasons)} images that cannot be read"
        print(f"{len(reasons)} images left out, the first: {reasons[0]}", file=sys.stderr)
    return make_source(listing.name, *parts, classes, groups, provenance)


def _common_classes(listing: Listing) -> tuple[str, ...]:
    train, test = ({label for _, label in part} for part in (listing.train, listing.test))
    odd = sorted(train ^ test)
    if odd:
        only = "train" if odd[0] in train else "test"
        raise UserError(
            f"{listing.name}: train and test need the same classes, but {odd[0]} is in {only} only"
            f" ({len(odd)} such classes)"
        )
    return tuple(in_order(train))


def _labelled(name: str, split: Path) -> list[Labelled]:
    """The images of each class folder; hidden files and other files are left out."""
    folders = subfolders(split)
    if not folders:
        raise UserError(
            f"{name}: {split} {describe_folder(split)}, and no class folders ({_accepted()})"
        )
    return [(file, folder.name) for folder in folders for file in _images(name, folder)]


def _images(name: str, folder: Path) -> list[Path]:
    """The images of a folder, sorted by name; UserError where there are none."""
    if (what := path_kind(folder)) != FOLDER:
        state = "is missing" if what == NOTHING else f"is {what}"
        raise UserError(f"{name}: {folder} {state}; a folder of images is looked for there")
    found = sorted(filter(is_image, os.listdir(folder)))
    if not found:
        raise UserError(
            f"{name}: no images in {folder}, which {describe_folder(folder)} ({_accepted()})"
        )
    return [folder / file for file in found]


def _accepted() -> str:
    return f"images lie in {FOLDERS} and end in {', '.join(sorted(IMAGES))}"


def _text(name: str, file: Path) -> str:
    """The text of a published list, with its line ends; UserError where it is not UTF-8."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{name}: {file} is no text in UTF-8") from None


def _is_plain(part: str) -> bool:
    """Whether a part of a listed path is a plain name, and leads to no other folder."""
    return part not in ("", ".", "..") and not {"/", "\0"} & {*part}


def _lines(file: Path) -> list[Labelled]:
    names = [line.strip() for line in _text("mit67", file).splitlines() if line.strip()]
    for name in names:
        if name.count("/") != 1 or not all(map(_is_plain, name.split("/"))):
            raise UserError(f"mit67: {file} has the line {name!r}, which is no <class>/<image>")
    return [(file.parent / "Images" / name, name.split("/")[0]) for name in names]


def _rows(file: Path) -> list[dict[str, str]]:
    """The rows of one of Ravi and Larochelle's lists."""
    reader = csv.DictReader(io.StringIO(_text("miniimagenet", file), newline=""), restval="")
    try:
        if not {"filename", "label"} <= set(reader.fieldnames or ()):
            raise UserError(f"miniimagenet: {file} has no columns filename,label")
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"miniimagenet: {file} is damaged: {error}") from None
    for row in rows:
        if not _is_plain(row["filename"]):
            raise UserError(
                f"miniimagenet: {file} names {row['filename']!r}, which is no file name"
            )
    return rows


def _require_files(listing: Listing) -> None:
    listed = [file for file, _ in listing.train + listing.test]
    missing = [file for file in listed if not os.path.isfile(file)]
    if missing:
        count = f"{len(missing)} of {len(listed)} listed files"
        raise UserError(f"{listing.name}: {count} not found, the first is {missing[0]}")
