"""What is known of a data set before it is read is what it is, and refuses what is not there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composed, linked
from omegaconf import OmegaConf
from PIL import Image

from cl_bench.base.exceptions import UserError
from cl_bench.config import size
from cl_bench.config.check import check_config
from cl_bench.data import composed as made
from cl_bench.data import listing, source
from cl_bench.data.check import shape_and_classes
from cl_bench.data.published import PUBLISHED, SMALL, contents_of, known_contents
from cl_bench.models.mlp import MLP


def test_the_bundled_digits_are_as_published(tmp_path: Path) -> None:
    node = {"_target_": "cl_bench.data.source.mnist5k"}
    assert known_contents(node) == contents_of(source.mnist5k(str(tmp_path)))


def test_mnist_and_what_is_made_of_it_are_as_published(tmp_path: Path, real: Path) -> None:
    home = linked(tmp_path, real, "MNIST")
    assert known_contents({"_target_": "cl_bench.data.source.mnist"}) == contents_of(
        source.mnist(home)
    )
    node = {"_target_": "cl_bench.data.composed.rgb32", "of": "mnist"}
    assert known_contents(node) == contents_of(made.rgb32("mnist", "pad", home))
    node = {"_target_": "cl_bench.data.composed.joined", "of": ["mnist5k", "mnist"]}
    assert known_contents(node) == contents_of(made.joined(["mnist5k", "mnist"], home))


def test_cifar100_is_as_published(real: Path) -> None:
    """By its files: `test_source` decodes them."""
    if not (real / "cifar100").is_dir():
        pytest.skip(f"no cifar100 in {real}")
    found, known = listing.from_folders("cifar100", real / "cifar100"), PUBLISHED["cifar100"]
    for part, counts in ((found.train, known.train), (found.test, known.test)):
        images = Counter(label for _, label in part)
        assert tuple(images[label] for label in sorted(images)) == counts
    with Image.open(found.train[0][0]) as image:
        assert (3, *image.size) == known.shape


def test_the_published_numbers() -> None:
    """Training and test images, as the data sets' pages have them."""
    found = {name: (known.images, sum(known.test or ())) for name, known in PUBLISHED.items()}
    assert found == {
        "mnist5k": (4_000, 1_000),
        "mnist": (60_000, 10_000),
        "fashion": (60_000, 10_000),
        "kmnist": (60_000, 10_000),
        "cifar10": (50_000, 10_000),
        "cifar100": (50_000, 10_000),
        "svhn": (73_257, 26_032),
        "notmnist": (None, 0),
        "tinyimagenet": (100_000, 10_000),
        "miniimagenet": (50_000, 10_000),
        "mit67": (None, 0),
        "imagenet32": (1_281_167, 50_000),
    }
    assert set(SMALL) == set(made.SMALL)
    for known in PUBLISHED.values():
        assert known.train is None or len(known.train) == known.classes
        assert known.test is None or len(known.test) == known.classes
    turned = {"_target_": "cl_bench.data.composed.turned_omniglot", "classes": 3, "size": 8}
    known = known_contents(turned)
    assert known is not None and known.train == (64,) * 3 and known.test == (16,) * 3


def test_composed_data_is_made_of_its_parts() -> None:
    nodes = {name: check_config(composed(f"dataset={name}"))["dataset"] for name in NAMES}
    found = {name: shape_and_classes(node) for name, node in nodes.items()}
    assert found == NAMES


NAMES = {
    "pmnist5k": ((1, 28, 28), 10),
    "seqmnist5k": ((1, 28, 28), 10),
    "pmnist32": ((3, 32, 32), 100),
    "cifar100_superclass": ((3, 32, 32), 100),
    "five_datasets": ((3, 32, 32), 50),
    "omniglot_rotation": ((3, 32, 32), 1200),
    "seqmit67": ((3, 224, 224), 67),
    "folder": None,
    "imagenet32": ((3, 32, 32), 1000),
}
SPLIT = ["dataset=seqcifar100"]
REFUSED = [
    ("dataset.train_per_task=99999999", "a task has 4000 training images", []),
    ("dataset.train_per_task=99999999", "a task has 1281167 training", ["dataset=imagenet32"]),
    ("dataset.train_per_task=5001", "a task has 5000 training images", SPLIT),
    ("dataset.train_per_task=2000", "a task has 1500", [*SPLIT, "dataset.tasks=33"]),
    (
        "dataset.train_per_task=16667",
        "a task has 16666",
        [*SPLIT, "dataset.tasks=3", "scenario=data"],
    ),
    ("dataset.train_per_task=12665", "a task has 12089", ["dataset=seqmnist"]),
    ("dataset.tasks=[50,30,30]", "cifar100 has 100 classes", SPLIT),
    ("dataset.tasks=[2,3]", "only classes are cut unevenly", []),
    ("dataset.order=seed:x", "must be one of natural, random, superclass, uniform, or", SPLIT),
    ("dataset.order=[0,1,2]", "not each of the classes 0 to 99 of cifar100 once", SPLIT),
    ("dataset.order=seed:1", "rotations have angles", ["dataset=rmnist"]),
    ("dataset.train_per_task=2000", "a task has 1", [*SPLIT, "dataset.imbalance=0.01"]),
    ("dataset.tasks=5000", "mnist5k has 4000 training", ["dataset.split=sample"]),
    ("dataset.tasks=1000000000", "must be between 1 and 10000", []),
    ("dataset.tasks=101", "cifar100 has 100 classes", SPLIT),
    ("dataset.tasks=60", "use dataset.tasks=50 or fewer, or scenario=class or data", SPLIT),
    ("dataset.transform.mean=[0,0]", "has 2 values and dataset.transform.std has 1", []),
    ("dataset.transform.std=[1,1]", "1 channels, not 2", ["dataset.transform.mean=[0,0]"]),
    ("dataset.transform.mean=[0,0]", "has 2 values and", ["dataset=folder"]),
    ("dataset.transform.mean=[0]", "3 channels, not 1", [*SPLIT, "dataset.transform.std=[1]"]),
    (
        "dataset.transform.mean=[0]",
        "images have 3",
        ["dataset=folder", "dataset.transform.std=[1]"],
    ),
    ("dataset.transform.crop=64", "mnist5k have 28 pixels, and those that are tested are not", []),
    ("dataset.transform.crop=30", "have 28 pixels", ["dataset.transform.padding=4"]),
    ("dataset.transform.crop=65", "have 64 pixels", ["dataset=folder"]),
    ("dataset.transform.resize=100000", "must be between 1 and 2048", []),
    ("dataset.source.size=100000", "must be between 1 and 2048", ["dataset=folder"]),
    ("dataset.order=superclass", "has no superclasses", ["dataset=seqcifar10"]),
    ("dataset.order=superclass", "images has no superclasses", ["dataset=folder"]),
    ("dataset.fraction=0.5", "one of the two", []),
    ("evaluation.holdout=0.00001", "0 of 1000 training images", ["evaluation.split=val"]),
    (
        "evaluation.holdout=0.001",
        "0 of 400 training",
        ["dataset=folder", "evaluation.split=val", "dataset.train_per_task=400"],
    ),
    ("dataset.source.of=nope", "of=nope: no such data set; there are cif", ["dataset=pmnist32"]),
    ("dataset.source.of=[mnist]", "two or more data sets", ["dataset=five_datasets"]),
    ("dataset.source.of=[mnist,x]", "of=x: no such", ["dataset=five_datasets"]),
    ("dataset.source.classes=1624", "Omniglot has 1623", ["dataset=omniglot_rotation"]),
]


@pytest.mark.parametrize(("override", "line", "others"), REFUSED, ids=str)
def test_what_is_not_there_is_refused_before_it_is_loaded(
    override: str, line: str, others: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        check_config(composed(*others, override))
    assert line in str(caught.value) and "\n" not in str(caught.value)


class Drops(MLP):
    """A model that reads values of a tensor when it is built, as those with drop paths do."""

    def __init__(self, rate: float, **options: Any) -> None:
        super().__init__(**options)
        self.rates = torch.linspace(0, rate, 3).tolist()


def test_a_model_that_needs_storage_is_not_counted() -> None:
    model = check_config(composed())["model"]
    own = {**model, "_target_": f"{__name__}.Drops", "rate": 0.1}
    assert size.count_parameters(model, (1, 28, 28), 10) == 89610
    assert size.count_parameters(own, (1, 28, 28), 10) is None


def test_as_many_as_there_are_may_be_asked_for() -> None:
    for words in (["dataset.train_per_task=4000"], ["dataset=seqcifar100", "dataset.tasks=50"]):
        check_config(composed(*words))
    assert OmegaConf.select(composed(), "cache_dir") is None
