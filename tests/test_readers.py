"""Published formats, whole and damaged, and their download."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from torchvision import datasets

from cl_bench.base.exceptions import UserError
from cl_bench.data import readers, source
from cl_bench.data.arrays import Source
from cl_bench.data.superclasses import CLASSES, GROUPS, SUPERCLASSES


def refusal(load: Callable[..., Source], *args: str | int) -> str:
    """The one line that `load(*args)` ends in."""
    with pytest.raises(UserError) as error:
        load(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_mnist5k_plain_gzipped_or_damaged(tmp_path: Path):
    rows = np.zeros((5000, 785), np.uint8)
    rows[:, 0], rows[:, -1] = np.arange(5000) // 10 % 256, np.arange(5000) % 10
    file = tmp_path / "digits.csv.gz"
    np.savetxt(tmp_path / "plain", rows, "%d", ",")
    text = (tmp_path / "plain").read_bytes()
    hashes = set()
    for content in (text, gzip.compress(text)):
        file.write_bytes(content)
        data = readers.read_mnist5k(file)
        hashes.add(data.sha256)
        assert data.test_y[:10].tolist() == list(range(10)) and data.test_x[0, 0, 0, 0] == 144
    assert len(hashes) == 1
    for damaged in (b"1,2,x\n", text[:-99], gzip.compress(text)[:-99], text[785 * 2 :]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"digits\.csv\.gz is"):
            readers.read_mnist5k(file)


def test_damaged_mnist(tmp_path: Path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in readers.MNIST_FILES:
        (raw / name).write_bytes(b"\0\0\x08\x03")
    assert str(raw / "train-images-idx3-ubyte") in refusal(source.mnist, str(tmp_path))


def test_cifar100_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root, rng = tmp_path / "cifar-100-python", np.random.default_rng(0)
    root.mkdir()
    rows = rng.integers(0, 256, (4, 3072), np.uint8)
    content = {
        "meta": {"fine_label_names": list(CLASSES)},
        "train": {"data": rows[:3], "fine_labels": [19, 0, 99]},
        "test": {"data": rows[3:], "fine_labels": [7]},
    }
    sums = {}
    for name, entry in content.items():
        (root / name).write_bytes(pickle.dumps(entry))
        sums[name] = hashlib.md5((root / name).read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setitem(datasets.CIFAR100.meta, "md5", sums["meta"])
    data = source.cifar100(str(tmp_path))
    assert [data.classes[y] for y in data.train_y] == ["cattle", "apple", "worm"]
    assert data.train_x[1].flatten().tolist() == rows[1].tolist()
    assert data.groups == GROUPS and data.provenance["order"] == "as published"
    shutil.rmtree(tmp_path / "cache")
    (root / "test").write_bytes(b"damaged")
    assert f"torchvision refuses {root}" in refusal(source.cifar100, str(tmp_path))


def test_superclasses():
    names = list(SUPERCLASSES)
    of = {fine: names[group] for fine, group in zip(CLASSES, GROUPS, strict=True)}
    assert len(CLASSES) == 100 and [GROUPS.count(g) for g in range(20)] == [5] * 20
    assert names == sorted(names)
    assert of["apple"] == "fruit_and_vegetables" and of["aquarium_fish"] == "fish"
    assert of["ray"] == "fish" and of["whale"] == "aquatic_mammals" and of["baby"] == "people"
    assert of["kangaroo"] == "large_omnivores_and_herbivores" and of["skunk"] == "medium_mammals"
    assert of["worm"] == "non-insect_invertebrates" and of["rocket"] == "vehicles_2"
    official = (  # coarse label of each fine label, as in the published pickles
        "4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 "
        "16 9 11 5 5 19 8 8 15 13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 "
        "2 10 0 1 16 12 9 13 15 13 16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17 8 14 13"
    )
    assert tuple(map(int, official.split())) == GROUPS


def test_download_is_bounded_and_its_failure_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = []

    def unreachable(root: str, download: bool) -> None:
        seen.append((root, download, socket.getdefaulttimeout()))
        raise URLError("no\nroute")

    monkeypatch.setattr(datasets, "MNIST", unreachable)
    assert readers.download("MNIST", tmp_path) == "download failed: <urlopen error no route>"
    assert seen == [(str(tmp_path), True, readers.TIMEOUT)]
    assert socket.getdefaulttimeout() is None


def test_imagenet32(tmp_path: Path):
    """The published dictionaries, of Python 2 and 3; nothing that a pickle could run is run."""
    home, rng = tmp_path / "imagenet32", np.random.default_rng(0)
    home.mkdir()
    pixels = rng.integers(0, 256, (22, 3 * 32 * 32), np.uint8)
    names = [*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data"]
    for n, name in enumerate(names):
        rows = {"data": pixels[2 * n : 2 * n + 2], "labels": [n + 1, 1000 - n], "mean": pixels[0]}
        (home / name).write_bytes(pickle.dumps(rows, protocol=2))
    data = source.imagenet32(str(tmp_path))
    assert data.train_x.shape == (20, 3, 32, 32) and len(data.classes) == 1000
    assert data.train_x.numpy().reshape(20, -1).tolist() == pixels[:20].tolist()
    assert data.train_y[:4].tolist() == [0, 999, 1, 998] and data.test_y.tolist() == [10, 989]
    (home / "val_data").write_bytes(pickle.dumps({"data": refusal, "labels": [1]}))
    assert "val_data is not one of the published pickles" in refusal(
        source.imagenet32, str(tmp_path)
    )
    (home / "val_data").write_bytes(pickle.dumps({b"data": pixels[:1], b"labels": [1001]}))
    assert "1 images and 1 labels of 1..1000" in refusal(source.imagenet32, str(tmp_path))
