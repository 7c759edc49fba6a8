"""What is known of a data set before it is read is what it is, and refuses what is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import composed, linked
from hydra.utils import get_object
from omegaconf import OmegaConf

from cl_bench import config
from cl_bench.data import source
from cl_bench.data.arrays import Source
from cl_bench.data.published import Published, published, shape_and_classes
from cl_bench.types import UserError


def compare(known: Published | None, found: Source) -> None:
    assert known is not None
    shape = (known.train, *known.shape), (known.test, *known.shape)
    assert (found.train_x.shape, found.test_x.shape) == shape
    assert len(found.classes) == known.classes
    assert (found.groups is not None) == known.groups
    assert (len(set(found.train_y.bincount().tolist())) == 1) == known.even


def test_the_bundled_digits_are_as_published(tmp_path: Path) -> None:
    node = {"_target_": "cl_bench.data.source.mnist5k"}
    compare(published(node), source.mnist5k(str(tmp_path)))


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("cifar100", "cifar100")])
def test_real_data_is_as_published(name: str, folder: str, tmp_path: Path, real: Path) -> None:
    node = {"_target_": f"cl_bench.data.source.{name}"}
    compare(published(node), get_object(node["_target_"])(linked(tmp_path, real, folder)))


def test_composed_data_is_made_of_its_parts() -> None:
    nodes = {name: config.check(composed(f"dataset={name}"))["dataset"] for name in NAMES}
    found = {name: shape_and_classes(node) for name, node in nodes.items()}
    assert found == NAMES


NAMES = {
    "pmnist5k": ((1, 28, 28), 10),
    "pmnist32": ((3, 32, 32), 100),
    "cifar100_superclass": ((3, 32, 32), 100),
    "five_datasets": ((3, 32, 32), 50),
    "omniglot_rotation": ((3, 32, 32), 1200),
    "seqmit67": None,
    "folder": None,
    "imagenet32": ((3, 32, 32), 1000),
}
REFUSED = [
    ("dataset.train_per_task=99999999", "a task has 4000 training images", []),
    ("dataset.train_per_task=5001", "a task has 5000 training images", ["dataset=seqcifar100"]),
    ("dataset.tasks=101", "seqcifar100 has 100 classes", ["dataset=seqcifar100"]),
    ("dataset.tasks=60", "use fewer tasks", ["dataset=seqcifar100"]),
    ("dataset.transform.mean=[0,0]", "has 2 values and dataset.transform.std has 1", []),
    ("dataset.transform.std=[1,1]", "1 channels, not 2", ["dataset.transform.mean=[0,0]"]),
    ("dataset.transform.mean=[0,0]", "has 2 values and", ["dataset=folder"]),
    ("dataset.transform.crop=64", "28 in all; use at most that", []),
    ("dataset.order=superclass", "has no superclasses", ["dataset=seqcifar10"]),
    ("dataset.fraction=0.5", "one of the two", []),
    ("evaluation.holdout=0.00001", "0 of 1000 training images", ["evaluation.split=val"]),
]


@pytest.mark.parametrize(("override", "line", "others"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_is_not_there_is_refused_before_it_is_loaded(
    override: str, line: str, others: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        config.check(composed(*others, override))
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_as_many_as_there_are_may_be_asked_for() -> None:
    for words in (["dataset.train_per_task=4000"], ["dataset=seqcifar100", "dataset.tasks=50"]):
        config.check(composed(*words))
    assert OmegaConf.select(composed(), "cache_dir") is None
