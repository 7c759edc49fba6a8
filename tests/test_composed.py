"""Data sets beside MNIST and CIFAR-100, each from files in its published layout; and made ones."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import linked
from images import image_folder
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

import cl_bench
from cl_bench.base.exceptions import UserError
from cl_bench.data import composed, layouts, listing, readers, source
from cl_bench.data.arrays import Source, make_source

RNG = np.random.default_rng(0)


def drawn(file: Path, size: int, level: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (level, level, level)).save(file)


@pytest.mark.parametrize(
    "load, folder", [(source.fashion, "FashionMNIST"), (source.kmnist, "KMNIST")]
)
def test_what_has_mnists_format(
    load: Callable[[str], Source], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        readers,
        "MNIST_FILES",
        {name: (20, *shape[1:]) for name, shape in readers.MNIST_FILES.items()},
    )
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    for name, shape in readers.MNIST_FILES.items():
        header = struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape)
        values = RNG.integers(0, 10, shape, np.uint8)
        (raw / name).write_bytes(header + values.tobytes())
    data = load(str(tmp_path))
    assert data.train_x.shape == (20, 1, 28, 28) and len(data.classes) == 10
    assert data.name == load.__name__
    (raw / "t10k-labels-idx1-ubyte").unlink()
    file = tmp_path / "cache" / f"{load.__name__}.safetensors"
    file.unlink()
    monkeypatch.setattr(source, "download", lambda *_: "download failed: no route")
    with pytest.raises(UserError, match=rf"{load.__name__}: {folder} not found in .*no route"):
        load(str(tmp_path))


def test_cifar10_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    rows = RNG.integers(0, 256, (12, 3072), np.uint8)
    sums = {}
    for i, name in enumerate(readers.CIFAR10_FILES):
        entry = {"data": rows[2 * i : 2 * i + 2], "labels": [i, 9 - i]}
        if name == "batches.meta":
            entry = {"label_names": list(readers.NAMES["cifar10"])}
        (root / name).write_bytes(pickle.dumps(entry))
        sums[name] = md5((root / name).read_bytes()).hexdigest()
    lists = [[name, sums[name]] for name in readers.CIFAR10_FILES]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", lists[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", lists[5:6])
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", sums["batches.meta"])
    data = source.cifar10(str(tmp_path))
    assert data.train_y.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5] and data.test_y.tolist() == [
        5,
        4,
    ]
    assert data.test_x[1].flatten().tolist() == rows[11].tolist()


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "svhn").mkdir()
    for split, count in (("train", 5), ("test", 3)):
        x = RNG.integers(0, 256, (32, 32, 3, count), np.uint8)
        y = np.arange(1, count + 1, dtype=np.uint8)[:, None]
        file = tmp_path / "svhn" / f"{split}_32x32.mat"
        savemat(file, {"X": x, "y": y})
        entry = [*datasets.SVHN.split_list[split][:2], md5(file.read_bytes()).hexdigest()]
        monkeypatch.setitem(datasets.SVHN.split_list, split, entry)
        if split == "test":
            wanted = torch.from_numpy(x[:, :, :, 2]).permute(2, 0, 1)
    data = source.svhn(str(tmp_path))
    assert data.train_x.shape == (5, 3, 32, 32) and data.train_y.tolist() == [1, 2, 3, 4, 5]
    assert data.test_x[2].equal(wanted)


def test_tinyimagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "tiny-imagenet-200"
    for level, name in enumerate(("n01", "n02")):
        for i in range(2):
            drawn(root / "train" / name / "images" / f"{name}_{i}.JPEG", 64, 50 * level)
        drawn(root / "val" / "images" / f"val_{level}.JPEG", 64, 50 * level)
    (root / listing.TINY_NOTES).write_text(
        "val_1.JPEG\tn02\t0\t0\t9\t9\nval_0.JPEG\tn01\t0\t0\t9\t9\n"
    )
    with pytest.raises(UserError, match="tinyimagenet: 2 train classes"):
        source.tinyimagenet(str(tmp_path))
    monkeypatch.setattr(listing, "require_counts", lambda *_: None)
    data = source.tinyimagenet(str(tmp_path))
    assert data.train_y.tolist() == [0, 0, 1, 1] and data.test_y.tolist() == [1, 0]
    assert data.test_x[:, 0, 0, 0].tolist() == [50, 0] and data.train_x.shape[1:] == (3, 64, 64)


def test_omniglot_and_its_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "omniglot-py"
    for half in listing.OMNIGLOT:
        for character in range(2):
            for i in range(20):
                drawn(root / half / "Greek" / f"c{character}" / f"{i:02}.png", 105, 10 * i)
    monkeypatch.setattr(listing, "require_counts", lambda *_: None)
    data = source.omniglot(str(tmp_path), 8)
    assert len(data.classes) == 4 and data.train_y.bincount().tolist() == [16] * 4
    assert data.test_x[:4, 0, 0, 0].tolist() == [160, 170, 180, 190]
    made = composed.turned_omniglot(3, 8, str(tmp_path))
    assert (
        made.train_y.bincount().tolist() == [64] * 3 and made.test_y.bincount().tolist() == [16] * 3
    )
    assert made.train_x[48:96].equal(made.train_x[:48].rot90(1, (2, 3)))
    with pytest.raises(UserError, match="classes=9: Omniglot has 4"):
        composed.turned_omniglot(9, 8, str(tmp_path))


def toy(name: str, side: int, channels: int, classes: int) -> Source:
    y = torch.arange(classes)
    x = torch.full((classes, channels, side, side), 7, dtype=torch.uint8)
    names = tuple(f"{name}{c}" for c in range(classes))
    return make_source(name, (x, y), (x + 1, y), names, None, {"origin": name})


def test_small_images_in_one_shape_and_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(composed.SMALL, "mnist", lambda *_: toy("mnist", 28, 1, 3))
    monkeypatch.setitem(composed.SMALL, "svhn", lambda *_: toy("svhn", 32, 3, 2))
    one = composed.rgb32("mnist", "pad", "")
    assert one.train_x.shape == (3, 3, 32, 32)
    assert one.train_x[0, 1, 1, 16] == 0 and one.train_x[0, 2, 2, 2] == 7
    both = composed.joined(["svhn", "mnist"], "")
    assert both.train_y.tolist() == [0, 1, 2, 3, 4] and both.classes[2] == "mnist:mnist0"
    assert both.groups == (0, 0, 1, 1, 1) and both.test_x[:, 0, 16, 16].tolist() == [8] * 5
    with pytest.raises(UserError, match="two or more data sets are joined"):
        composed.joined(["svhn", "svhn"], "")
    with pytest.raises(UserError, match="of=no: no such data set; there are cifar10, cifar100"):
        composed.rgb32("no", "pad", "")


def test_a_layout_that_is_not_there(tmp_path: Path) -> None:
    all_of = (layouts.svhn, layouts.cifar10, layouts.tinyimagenet, layouts.mit67)
    origins = [origin for layout in all_of for origin in layout(tmp_path)]
    assert not any(origin.complete for origin in (*origins, *layouts.omniglot(tmp_path, 8)))
    with pytest.raises(UserError, match=r"notmnist: not found in .* it is not at a single address"):
        source.notmnist(str(tmp_path))


def test_mnist_in_three_channels(tmp_path: Path, real: Path) -> None:
    found = composed.rgb32("mnist", "pad", linked(tmp_path, real, "MNIST"))
    plain = source.mnist(str(tmp_path))
    assert found.test_x[:, 1, 2:30, 2:30].equal(plain.test_x[:, 0])
    assert found.sha256 != plain.sha256 and found.test_y.equal(plain.test_y)
    large = composed.rgb32("mnist", "resize", str(tmp_path))
    assert large.test_x.shape == found.test_x.shape and not large.test_x.equal(found.test_x)
    means = [x.float().mean() for x in (large.test_x, plain.test_x)]
    torch.testing.assert_close(*means, rtol=0.01, atol=0)


def test_a_sequence_of_ones_own_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A published data set and an image folder, as (3, 8, 8): a task each, in the order given."""
    image_folder(tmp_path / "own", "b a", 2, 1)
    node = "{_target_: cl_bench.data.source.folder, path: own, size: 6, data_dir: ${data_dir}}"
    words = ["dataset=sequence", "dataset.source.size=8", f"data_dir={tmp_path}", "tracking=none"]
    words += ["+dataset.source.of.mine=" + node, "+dataset.source.of.digits=mnist5k"]
    few = ["method=finetune", "model=mlp", "schedule.epochs=1", f"output_dir={tmp_path}"]
    run = cl_bench.run(*words, *few, "dataset.fraction=0.05")
    assert run.record.stream["classes_of_task"] == [[0, 1], [*range(2, 12)]]
    assert run.record.stream["class_names"][:3] == ["mine:a", "mine:b", "digits:0"]
    assert run.record.stream["image_shape"] == [3, 8, 8]
    (tmp_path / "grey.py").write_text(
        "import numpy as np\n\ndef load(n):\n    x = np.zeros((n, 4, 4), np.uint8)\n"
        "    return (x, [0, 1] * (n // 2)), (x[:2], [0, 1])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words[3] = "tracking=none"
    node = "+dataset.source.of.arrays={_target_: grey.load, n: 40}"
    run = cl_bench.run(*words[:4], node, words[5], *few, "dataset.fraction=0.05")
    assert run.record.stream["class_names"][:2] == ["arrays:0", "arrays:1"]
    with pytest.raises(UserError, match=r"dataset\.tasks=2: dataset\.source\.of names 1 data sets"):
        cl_bench.run("dataset=sequence", "+dataset.source.of.x=mnist5k", *few)
    with pytest.raises(UserError, match=r"dataset\.source\.of: names no data set"):
        cl_bench.run("dataset=sequence", *few)
    with pytest.raises(UserError, match=r"dataset\.source\.of=nope: no such data set; there are"):
        cl_bench.run("dataset=sequence", "dataset.tasks=1", "+dataset.source.of.x=nope", *few)
    with pytest.raises(UserError, match=r"dataset\.source\.of=.*: must be names with values"):
        cl_bench.run("dataset=sequence", "+dataset.source.of.x=3", *few)
