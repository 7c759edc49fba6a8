"""Which image files make up a data set: folders of classes, or published lists -> Source."""

from __future__ import annotations

import csv
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import torch

from cl_bench.data.arrays import Part, Source, sealed, versions
from cl_bench.data.decode import Fit, decode, exact
from cl_bench.types import UserError

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"}
LAYOUT = f"the layout is {{train,test}}/<class>/<image>, of {' '.join(sorted(IMAGES))}"
MIT67_LISTS = ("TrainImages.txt", "TestImages.txt")
TINY_NOTES = "val/val_annotations.txt"
OMNIGLOT = ("images_background", "images_evaluation")
RAVI_LISTS = ("train.csv", "val.csv", "test.csv")
Labelled = tuple[Path, str]  # file, name of its class


class Listing(NamedTuple):
    """The files of a data set, each with its class; class ids follow the sorted names."""

    name: str  # of the data set, for messages
    train: list[Labelled]
    test: list[Labelled]
    order: str  # of the samples, in words


def from_folders(name: str, root: Path) -> Listing:
    """root/{train, test or val}/<class>/<image>, ordered by class, then by file name."""
    train, test = _labelled(name, root / "train"), _labelled(name, root / held_out(root))
    return Listing(name, train, test, "by class name, then by file name")


def held_out(root: Path) -> str:
    """The folder of the test images: ImageNet's layout has val alone."""
    return "test" if os.path.isdir(root / "test") else "val"


def from_mit67(root: Path) -> Listing:
    """MIT-67's own lists: a `class/file` per line, relative to Images/."""
    train, test = (_lines(root / name) for name in MIT67_LISTS)
    listing = Listing("mit67", train, test, f"as in {' and '.join(MIT67_LISTS)}")
    _require_files(listing)
    return listing


def from_ravi(root: Path, train: int) -> Listing:
    """Ravi and Larochelle's csv lists: the first `train` of each class train, the others test."""
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
    """TinyImageNet's own layout: its validation images, listed with their classes, are the test."""
    train = [
        (folder / "images" / file, folder.name)
        for folder in subfolders(root / "train")
        for file in sorted(filter(_is_image, os.listdir(folder / "images")))
    ]
    rows = [line.split("\t") for line in (root / TINY_NOTES).read_text().splitlines() if line]
    test = [(root / "val" / "images" / row[0], row[1]) for row in rows]
    listing = Listing("tinyimagenet", train, test, f"by class and file name; as in {TINY_NOTES}")
    _require_files(listing)
    return listing


def from_omniglot(root: Path) -> Listing:
    """All 1,623 characters of both halves; of each the last 4 of its 20 drawings are test."""
    train: list[Labelled] = []
    test: list[Labelled] = []
    for half in OMNIGLOT:
        for alphabet in subfolders(root / half):
            for character in subfolders(alphabet):
                name = f"{half}/{alphabet.name}/{character.name}"
                names = sorted(filter(_is_image, os.listdir(character)))
                pairs = [(character / file, name) for file in names]
                train += pairs[:16]
                test += pairs[16:]
    return Listing("omniglot", train, test, "by character, then by file name")


def require_counts(listing: Listing, classes: int, train: int | None, test: int | None) -> None:
    """So many classes, each with `train` and `test` images (None: any number)."""
    for split, part, wanted in (("train", listing.train, train), ("test", listing.test, test)):
        counts = Counter(label for _, label in part)
        if len(counts) != classes:
            raise UserError(f"{listing.name}: {len(counts)} {split} classes instead of {classes}")
        for label, count in counts.items():
            if wanted is not None and count != wanted:
                raise UserError(
                    f"{listing.name}: class {label} has {count} {split} images instead of {wanted}"
                )


def read(listing: Listing, size: int, fit: Fit, groups: tuple[int, ...] | None) -> Source:
    """Decode every file to RGB, size x size."""
    classes = _common_classes(listing)
    ids = {label: i for i, label in enumerate(classes)}
    way = "none" if fit is exact else f"PIL bilinear, antialiased, to {size}x{size}, any aspect"

    def part(pairs: list[Labelled]) -> Part:
        x = decode(listing.name, [file for file, _ in pairs], size, fit)
        return x, torch.tensor([ids[label] for _, label in pairs])

    facts = {"order": listing.order, "resize": way, "versions": versions("torch", "pillow")}
    return sealed(listing.name, part(listing.train), part(listing.test), classes, groups, facts)


def _common_classes(listing: Listing) -> tuple[str, ...]:
    train, test = ({label for _, label in part} for part in (listing.train, listing.test))
    odd = sorted(train ^ test)
    if odd:
        only = "train" if odd[0] in train else "test"
        raise UserError(
            f"{listing.name}: train and test need the same classes, but {odd[0]} is in {only} only"
            f" ({len(odd)} such classes)"
        )
    return tuple(sorted(train))


def _labelled(name: str, split: Path) -> list[Labelled]:
    """The images of each class folder, hidden ones and other files left out."""
    pairs = []
    folders = subfolders(split)
    if not folders:
        raise UserError(f"{name}: {split} has no folders of classes; {LAYOUT}")
    for folder in folders:
        names = sorted(filter(_is_image, os.listdir(folder)))
        if not names:
            raise UserError(f"{name}: no images in {folder}{_instead(folder)}; {LAYOUT}")
        pairs += [(folder / file, folder.name) for file in names]
    return pairs


def _instead(folder: Path) -> str:
    """What a folder without images has in their place, in words."""
    entries = sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
    below = [entry for entry in entries if os.path.isdir(folder / entry)]
    for entry in below:
        if any(map(_is_image, os.listdir(folder / entry))):
            return f", they are one level deeper, in {entry}/"
    endings = sorted({os.path.splitext(entry)[1].lower() or entry for entry in entries})
    return f", but {', '.join(endings[:3])}" if endings else ", it is empty"


def subfolders(path: Path) -> list[Path]:
    """Sorted by name, hidden ones left out; UserError for a name that is not UTF-8."""
    found = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    for folder in found:
        if not folder.name.isprintable() or folder.name.encode("utf-8", "replace") != os.fsencode(
            folder.name
        ):
            raise UserError(f"{path}: the folder {folder.name!r} is no name of a class in UTF-8")
    return found


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGES


def _lines(file: Path) -> list[Labelled]:
    names = filter(None, map(str.strip, file.read_text(encoding="utf-8-sig").splitlines()))
    return [(file.parent / "Images" / name, name.split("/")[0]) for name in names]


def _rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8-sig") as text:
        reader = csv.DictReader(text, restval="")
        if not {"filename", "label"} <= set(reader.fieldnames or ()):
            raise UserError(f"miniimagenet: {file} has no columns filename,label")
        return list(reader)


def _require_files(listing: Listing) -> None:
    listed = [file for file, _ in listing.train + listing.test]
    missing = [file for file in listed if not os.path.isfile(file)]
    if missing:
        count = f"{len(missing)} of {len(listed)} listed files"
        raise UserError(f"{listing.name}: {count} not found, the first is {missing[0]}")
