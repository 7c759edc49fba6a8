"""Files made to do harm: none is run, and what is no regular file is not opened."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images import image_folder, refusal
from PIL import Image
from torchvision import datasets

from cl_bench.data import layouts, pickles, readers, source


def test_no_image_is_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """PostScript under an image's name: PIL would start Ghostscript for it."""
    from PIL import EpsImagePlugin

    image_folder(tmp_path / "pets", "dog cat", 1, 1)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "pets/train/dog/0.png")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("it was run"))
    assert "dog/0.png: cannot identify" in refusal(source.folder, "pets", 4, str(tmp_path))


def places(tmp_path: Path) -> list[tuple[Callable, list[Path]]]:
    """A loader, and all single files that it opens."""
    found = [
        (source.mnist, layouts.mnist(tmp_path, "mnist", "MNIST")),
        (source.cifar10, layouts.cifar10(tmp_path)[:1]),
        (source.cifar100, layouts.cifar100(tmp_path)[:1]),
        (source.svhn, layouts.svhn(tmp_path)),
        (source.imagenet32, layouts.imagenet32(tmp_path)[:1]),
        (source.mit67, layouts.mit67(tmp_path)[:1]),
        (source.tinyimagenet, layouts.tinyimagenet(tmp_path)),
        (source.miniimagenet, layouts.miniimagenet(tmp_path / "miniimagenet")[:1]),
    ]
    return [(load, list(origins[0].files)) for load, origins in found]


def test_a_pipe_in_place_of_a_published_file_is_not_opened(tmp_path: Path):
    """Nor downloaded, which would open it to write."""
    for load, names in places(tmp_path):
        for name in names:
            name.parent.mkdir(parents=True, exist_ok=True)
            name.touch()
        names[-1].unlink()
        os.mkfifo(names[-1])
        said = refusal(load, str(tmp_path))
        assert said.endswith(f"; {names[-1]} is a named pipe, not a file")


class Hostile:
    """What, when unpickled, creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize(
    ("load", "names"),
    [(source.cifar10, readers.CIFAR10_FILES), (source.cifar100, readers.CIFAR100_FILES)],
)
def test_hostile_pickles_of_cifar_are_not_loaded(
    load: Callable, names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each file in turn, the others being right: by its checksum, before it is unpickled."""
    kind = {source.cifar10: datasets.CIFAR10, source.cifar100: datasets.CIFAR100}[load]
    root, trace = tmp_path / kind.base_folder, tmp_path / "trace"
    root.mkdir()
    rows = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1], kind.meta["key"]: ["a"]}
    right = pickle.dumps(rows)
    md5 = hashlib.md5(right).hexdigest()
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(kind, part, [[name, md5] for name, _ in getattr(kind, part)])
    monkeypatch.setitem(kind.meta, "md5", md5)
    for name in names:
        for other in names:
            (root / other).write_bytes(right)
        (root / name).write_bytes(pickle.dumps({**rows, "more": Hostile(trace)}))
        assert f"torchvision refuses {root}" in refusal(load, str(tmp_path))
    assert not trace.exists()
    pickle.loads((root / name).read_bytes())
    assert trace.exists(), "it would have been run"


def test_hostile_and_damaged_pickles_of_imagenet32_are_not_loaded(tmp_path: Path):
    """Two hundred damaged files, too: whatever the unpickler raises is one line."""
    file, trace = tmp_path / "val_data", tmp_path / "trace"
    file.write_bytes(pickle.dumps({"data": Hostile(trace), "labels": [1]}))
    assert "it names pathlib." in refusal(lambda: pickles._part(file))
    assert not trace.exists()
    rows = {"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2]}
    right, rng = pickle.dumps(rows, protocol=2), np.random.default_rng(0)
    file.write_bytes(right)
    assert pickles._part(file)[1].tolist() == [0, 1]
    for _ in range(200):
        raw = bytearray(right)
        for place in rng.integers(0, 160, 3):
            raw[place] = rng.integers(0, 256)
        file.write_bytes(raw)
        try:
            pickles._part(file)
        except ValueError as error:  # UserError is one
            assert str(error).startswith("imagenet32: ") and "\n" not in str(error)
