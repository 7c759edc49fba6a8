"""Splits, scenarios and streams: pure, seeded, complete."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import CPU, blobs, composed, identity
from torch import Generator, Tensor

from cl_bench.base.exceptions import UserError
from cl_bench.config.check import check_config
from cl_bench.config.name import config_hash
from cl_bench.core.types import Batch, Stream
from cl_bench.data import plan, split
from cl_bench.data.augment import rotate
from cl_bench.data.orders import PUBLISHED, reorder_tasks, task_order
from cl_bench.data.published import contents_of
from cl_bench.data.scenario import class_il, data_il, task_il
from cl_bench.data.source import Source
from cl_bench.data.split import TrainingLimit
from cl_bench.data.stream import build, joint, sequential, validation


def source(classes: int = 6, each: int = 10) -> Source:
    """Images whose first pixel is their number and whose second is their class."""
    y = torch.arange(classes).repeat(each)
    x = torch.zeros(len(y), 1, 3, 3, dtype=torch.uint8)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = torch.arange(len(y)).byte(), y.byte()
    names = tuple("abcdefghij"[:classes])
    groups = tuple(c % 2 for c in range(classes))
    few = slice(0, 2 * classes)
    return Source("toy", x, y, x[few] + 100, y[few], names, groups, "0", {"origin": "here"})


def stream(**changes: Any) -> Stream:
    options: dict[str, Any] = {
        "name": "toy",
        "source": source(),
        "split": "class",
        "heads": "shared",
        "tasks": 3,
        "order": "natural",
        "train_per_task": None,
        "fraction": 1.0,
        "imbalance": 1.0,
        "seed": 0,
        "transform": lambda device: identity(device),
        "scenario": task_il,
        "device": CPU,
    }
    return build(**{**options, **changes})


CLASSES = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)


def test_masks() -> None:
    assert data_il(CLASSES, 0).int().tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert task_il(CLASSES, 0).int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert class_il(CLASSES, 0).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    assert class_il(CLASSES, 1).int().tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]


def test_by_class() -> None:
    made = stream()
    assert [task.y.unique().tolist() for task in made.tasks] == [[0, 1], [2, 3], [4, 5]]
    assert [len(test) for test in made.tests] == [4, 4, 4]
    assert made.classes.int().tolist()[1] == [0, 0, 1, 1, 0, 0]
    assert made.description["classes_of_task"] == [[0, 1], [2, 3], [4, 5]]
    for task in made.tasks:
        assert task.x[:, 0, 0, 1].equal(task.y.byte()) and task.t.eq(task.id).all()


def test_a_task_for_each_owner_of_classes() -> None:
    assert split.class_groups([0, 1, 2, 3, 4], 2, (0, 0, 0, 1, 1)) == [[0, 1, 2], [3, 4]]
    assert split.class_groups([0, 1, 2, 3, 4], 2, None) == [[0, 1, 2], [3, 4]]
    assert split.class_groups([1, 0, 2, 3], 2, (0, 0, 0, 1)) == [[1, 0, 2], [3]]
    assert split.class_groups([0, 1, 2, 3], 4, (0, 0, 0, 1)) == [[0], [1], [2], [3]]


@pytest.mark.parametrize("way", ["permutation", "rotation", "sample"])
def test_heads_apart_give_each_task_classes_of_its_own(way: Any) -> None:
    shared = stream(split=way, scenario=data_il)
    apart = stream(split=way, scenario=task_il, heads="apart")
    assert apart.num_classes == 18 and apart.classes.sum(1).tolist() == [6, 6, 6]
    parts = zip([*apart.tasks, *apart.tests], [*shared.tasks, *shared.tests], strict=True)
    for one, other in parts:
        assert one.x.equal(other.x) and one.y.equal(other.y + 6 * one.id)
        assert apart.classes[one.id][one.y].all()


def test_orders_are_permutations_with_their_identities() -> None:
    for tasks, named in PUBLISHED.items():
        for order in named.values():
            assert sorted(order) == list(range(tasks))
    made, natural = reorder_tasks(stream(), [2, 0, 1]), stream()
    assert made.description["task_identities"] == [2, 0, 1]
    assert made.description["classes_of_task"] == [[4, 5], [0, 1], [2, 3]]
    for place, identity_ in enumerate([2, 0, 1]):
        for new, old in ((made.tasks, natural.tasks), (made.tests, natural.tests)):
            assert new[place].x.equal(old[identity_].x) and new[place].y.equal(old[identity_].y)
            assert new[place].id == place and new[place].t.eq(place).all()
        assert made.classes[place].equal(natural.classes[identity_])
    assert task_order("A", 3) == [0, 1, 2] and task_order("seed:4", 9) == task_order("seed:4", 9)
    assert task_order("seed:4", 9) != task_order("seed:5", 9)
    assert task_order("B", 10)[:3] == [1, 7, 4]


@pytest.mark.parametrize("order", ["F", "seed:x", "seed:", [0, 0, 1], [0, 1], "B"])
def test_orders_that_are_none(order: Any) -> None:
    with pytest.raises(UserError, match="scenario\\.order="):
        task_order(order, 3)


def test_class_orders() -> None:
    random = stream(order="random")
    assert random.description == stream(order="random").description
    assert random.description != stream(order="random", seed=1).description
    grouped = stream(order="superclass", tasks=2)
    assert grouped.description["classes_of_task"] == [[0, 2, 4], [1, 3, 5]]
    assert split.class_groups(list(range(7)), 3) == [[0, 1, 2], [3, 4], [5, 6]]


def test_by_sample_is_a_stratified_partition() -> None:
    made = stream(split="sample", tasks=4, scenario=data_il)
    numbers = torch.cat([task.x[:, 0, 0, 0] for task in made.tasks])
    assert sorted(numbers.tolist()) == list(range(60))
    for task in made.tasks:
        assert task.y.bincount().tolist() in ([2, 3, 2, 3, 2, 3], [3, 2, 3, 2, 3, 2])
        assert len(task) == 15
    assert made.tests[0].x.data_ptr() == made.tests[3].x.data_ptr(), "one test set, stored once"
    assert [test.t[0].item() for test in made.tests] == [0, 1, 2, 3]


def test_rotation() -> None:
    """One angle of each T-th part of 180 degrees; training and test images are turned alike."""
    made = stream(split="rotation", scenario=data_il, train_per_task=20, tasks=4)
    angles: Any = made.description["angles_of_task"]
    assert [int(angle // 45) for angle in angles] == [0, 1, 2, 3]
    assert [len(task) for task in made.tasks] == [20] * 4 and made.classes.all()
    original = source()
    for task, test, angle in zip(made.tasks, made.tests, angles, strict=True):
        assert test.x.equal(rotate(original.test_x, angle)) and test.y.equal(original.test_y)
        assert sorted(set(task.t.tolist())) == [task.id]
    mixed: Any = stream(split="rotation", scenario=data_il, tasks=8, order="random", seed=1)
    found = mixed.description["angles_of_task"]
    assert found != sorted(found) and sorted(int(a // 22.5) for a in found) == list(range(8))
    drawn: Any = stream(split="rotation", scenario=data_il, tasks=400, order="uniform")
    found = torch.tensor(drawn.description["angles_of_task"])
    parts = (found // 22.5).long().bincount(minlength=8)
    assert len(parts) == 8 and ((parts - 50) ** 2 / 50).sum() < 24.3, "chi-square, 7 degrees, 0.1 %"
    assert len((found // (180 / 400)).unique()) < 300, "not one of each part"


def test_turning_is_counter_clockwise_and_exact_by_quarters() -> None:
    x = torch.randint(0, 256, (3, 1, 6, 6), generator=Generator().manual_seed(0)).byte()
    for quarters in range(4):
        assert rotate(x, 90.0 * quarters).equal(x.rot90(quarters, (2, 3)))
    bright = torch.full((1, 1, 9, 9), 200, dtype=torch.uint8)
    some = rotate(bright, 45.0)
    assert set(some.unique().tolist()) == {0, 200} and some[0, 0, 0, 0] == 0, "black corners"


def test_permutation() -> None:
    made = stream(split="permutation", scenario=data_il, train_per_task=20)
    toy = source()
    for task, test in zip(made.tasks, made.tests, strict=True):
        assert len(task) == 20 and len(task.x.unique(dim=0)) == 20
        pixels = pixel_order(toy.test_x, test.x)
        known = {tuple(image.flatten()[pixels].tolist()) for image in toy.train_x}
        assert all(tuple(image.flatten().tolist()) in known for image in task.x)
    assert not made.tests[0].x.equal(made.tests[1].x)
    again = stream(split="permutation", scenario=data_il, train_per_task=20)
    assert again.tasks[2].x.equal(made.tasks[2].x)


def pixel_order(plain: Tensor, scrambled: Tensor) -> Tensor:
    """The permutation between two stacks of images, from columns that differ everywhere."""
    a, b = plain.flatten(1), scrambled.flatten(1)
    found = [(a == b[:, i : i + 1]).all(0).nonzero().flatten().tolist() for i in range(9)]
    assert all(found), "every scrambled pixel is some pixel of the original"
    singles = {places[0] for places in found if len(places) == 1}
    rest = iter(sorted(set(range(9)) - singles))
    return torch.tensor([p[0] if len(p) == 1 else next(rest) for p in found])


@pytest.mark.parametrize("kind", ["class", "sample"])
def test_fewer_images_a_task(kind: str) -> None:
    made = stream(split=kind, scenario=data_il, train_per_task=6)
    assert [len(task) for task in made.tasks] == [6, 6, 6]
    counts = made.tasks[0].y.bincount()
    assert counts[counts > 0].unique().numel() == 1


def test_too_many_images_a_task() -> None:
    with pytest.raises(UserError, match=r"dataset\.train_per_task=21"):
        stream(train_per_task=21)


@pytest.mark.parametrize("way", ["class", "sample", "permutation", "rotation"])
@pytest.mark.parametrize("order", ["natural", "random", "superclass"])
def test_how_many_images_a_task_has_is_known_before(way: Any, order: Any) -> None:
    """From the counts of the classes alone, for classes of any size."""
    uneven = torch.arange(6).repeat_interleave(torch.tensor([9, 5, 14, 20, 7, 11]))
    x = torch.zeros(len(uneven), 1, 3, 3, dtype=torch.uint8)
    toy = replace(source(), train_x=x, train_y=uneven)
    for tasks in (1, 2, 3, 4):
        for keep in (TrainingLimit(None, 1.0), TrainingLimit(4, 1.0), TrainingLimit(None, 0.3)):
            options = {"split": way, "order": order, "tasks": tasks, "source": toy, "seed": tasks}
            options |= {"train_per_task": keep.count, "fraction": keep.fraction}
            made = stream(scenario=data_il, **options)
            rng = Generator().manual_seed(tasks)
            groups = plan.classes_of_tasks(contents_of(toy), way, tasks, order, rng)
            assert groups is not None
            there = plan.task_sizes(contents_of(toy), way, groups)
            assert plan.limited_sizes(contents_of(toy), keep, there) == [
                len(task) for task in made.tasks
            ]


def test_more_tasks_than_there_is_for_them() -> None:
    with pytest.raises(UserError, match=r"dataset\.tasks=7: toy has 6 classes"):
        stream(tasks=7)
    with pytest.raises(UserError, match=r"dataset\.tasks=61: toy has 60 training images"):
        stream(tasks=61, split="sample", scenario=data_il)
    for scenario in (data_il, task_il, class_il):
        with pytest.raises(UserError, match=r"dataset\.source: toy has a single class"):
            stream(tasks=1, source=source(classes=1), scenario=scenario)
    with pytest.raises(
        UserError, match=r"dataset\.tasks=6: .* one class .*; use dataset\.tasks=3 or fewer, or"
    ):
        stream(tasks=6)
    assert len(stream(tasks=6, scenario=class_il).tasks) == 6


def test_no_superclasses() -> None:
    with pytest.raises(UserError, match=r"dataset\.order=superclass: toy"):
        stream(order="superclass", source=replace(source(), groups=None))


def test_the_first_tasks_alone() -> None:
    made = sequential(stream(), 2)
    assert [len(part) for part in (made.tasks, made.tests, made.classes)] == [2, 2, 2]
    assert made.num_classes == 6 and sequential(stream(), 3).tasks[2].id == 2
    facts = sequential(reorder_tasks(stream(), [2, 0, 1]), 2).description
    assert facts["task_identities"] == [2, 0] and facts["classes_of_task"] == [[4, 5], [0, 1]]


def test_joint() -> None:
    made = joint(stream(), None)
    (task,) = made.tasks
    assert task.id == 2 and len(task) == 60
    assert task.y.div(2, rounding_mode="floor").equal(task.t), "each sample keeps its own task"
    assert len(made.tests) == 3


def test_validation_holds_out_training_data() -> None:
    made = stream()
    held = validation(made, 0.3, seed=0)
    for before, kept, test in zip(made.tasks, held.tasks, held.tests, strict=True):
        assert len(test) == 6 and len(kept) == 14
        numbers = torch.cat([kept.x[:, 0, 0, 0], test.x[:, 0, 0, 0]])
        assert sorted(numbers.tolist()) == sorted(before.x[:, 0, 0, 0].tolist())
        assert test.y.bincount()[-2:].tolist() == [3, 3]
    again = validation(made, 0.3, seed=0)
    assert again.tests[1].x.equal(held.tests[1].x)
    with pytest.raises(UserError, match=r"evaluation\.holdout=0\.01"):
        validation(made, 0.01, seed=0)


def test_batches() -> None:
    task = blobs("data").tasks[0]

    def run(start: int) -> list[Batch]:
        return list(task.batches(8, Generator().manual_seed(5), epochs=3, start=start))

    whole = run(0)
    assert [len(b.y) for b in whole] == [8, 8, 8, 6] * 3
    first = torch.cat([b.x for b in whole[:4]]).flatten(1).unique(dim=0)
    assert first.equal(task.x.flatten(1).unique(dim=0)), "an epoch sees everything once"
    assert not whole[0].x.equal(whole[4].x), "each epoch has its own order"
    for start in (1, 4, 6, 11, 12):
        for one, two in zip(run(start), whole[start:], strict=True):
            assert one.x.equal(two.x) and one.y.equal(two.y)


def test_stratified_is_exact() -> None:
    y = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    index = split.stratified(y, 10, Generator().manual_seed(0))
    assert y[index].bincount().tolist() == [5, 3, 2] and len(index.unique()) == 10
    assert len(split.stratified(y, 7, Generator().manual_seed(0))) == 7


LUCIR = [68, 56, 78, 8, 23, 84, 90, 65, 74, 76, 40, 89, 3, 92, 55, 9, 26, 80, 43, 38, 58, 70, 77, 1]
LUCIR += [85, 19, 17, 50, 28, 53, 13, 81, 45, 82, 6, 59, 83, 16, 15, 44, 91, 41, 72, 60, 79, 52, 20]
LUCIR += [10, 31, 54, 37, 95, 14, 71, 96, 98, 97, 2, 64, 66, 42, 22, 35, 86, 24, 34, 87, 21, 99, 0]
LUCIR += [88, 27, 18, 94, 11, 12, 47, 25, 30, 46, 62, 69, 36, 61, 7, 63, 75, 5, 32, 4, 51, 48, 73]
LUCIR += [93, 39, 67, 29, 49, 57, 33]  # the order of CIFAR-100's classes in LUCIR's public code


def test_the_order_of_lucir() -> None:
    assert split.numpy_order(1993, 100) == LUCIR


def test_an_order_of_classes_by_seed_or_as_a_list() -> None:
    drawn = [stream(order="seed:3", seed=seed).description["classes_of_task"] for seed in (0, 9)]
    order = split.numpy_order(3, 6)
    assert drawn == [[order[:2], order[2:4], order[4:]]] * 2, "dataset.seed has no part in it"
    listed = stream(order=[5, 0, 4, 1, 3, 2])
    assert listed.description["classes_of_task"] == [[5, 0], [4, 1], [3, 2]]
    for wrong in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 4], [1, 2, 3, 4, 5, 6]):
        with pytest.raises(UserError, match="not each of the classes 0 to 5 of toy once"):
            stream(order=wrong)


def test_tasks_of_different_size() -> None:
    made = stream(tasks=[3, 1, 2], scenario=class_il)
    assert made.description["classes_of_task"] == [[0, 1, 2], [3], [4, 5]]
    assert [len(task) for task in made.tasks] == [30, 10, 20] and made.classes.shape == (3, 6)
    with pytest.raises(UserError, match=r"dataset\.tasks=\[3, 2\]: toy has 6 classes"):
        stream(tasks=[3, 2])
    with pytest.raises(
        UserError, match=r"only classes are cut unevenly, and dataset\.split=sample"
    ):
        stream(tasks=[3, 3], split="sample")


def test_a_long_tail() -> None:
    """Exponentially fewer images by class id, of the training images alone."""
    assert split.imbalanced_counts([500] * 100, 0.01)[::33] == [500, 107, 23, 5]
    assert split.imbalanced_counts([10, 10, 10], 0.01) == [10, 1, 1]
    made, whole = stream(imbalance=0.1), stream()
    y = torch.cat([task.y for task in made.tasks])
    assert y.bincount().tolist() == [10, 6, 3, 2, 1, 1]
    for few, all_of in zip(made.tasks, whole.tasks, strict=True):
        numbers = few.x[:, 0, 0, 0].tolist()
        assert set(numbers) <= set(all_of.x[:, 0, 0, 0].tolist()) and numbers == sorted(numbers)
    assert all(a.x.equal(b.x) for a, b in zip(made.tests, whole.tests, strict=True))
    turned = stream(imbalance=0.1, order=[5, 4, 3, 2, 1, 0])
    assert turned.tasks[0].y.bincount().tolist() == [0, 0, 0, 0, 1, 1]
    other = stream(imbalance=0.1, seed=1)
    assert not all(a.x.equal(b.x) for a, b in zip(made.tasks, other.tasks, strict=True))


def test_classes_by_their_position_share_outputs() -> None:
    """The n-th class of each task has the id n, in the order in which the tasks list them."""
    made = stream(order=[4, 1, 5, 0, 2, 3], heads="position", scenario=data_il)
    assert [task.y.unique().tolist() for task in made.tasks] == [[0, 1]] * 3
    for task, group in zip(made.tasks, ([4, 1], [5, 0], [2, 3]), strict=True):
        assert [group[y] for y in task.y.tolist()] == task.x[:, 0, 0, 1].tolist()
    for test, group in zip(made.tests, ([4, 1], [5, 0], [2, 3]), strict=True):
        assert [group[y] + 100 for y in test.y.tolist()] == test.x[:, 0, 0, 1].tolist()
    assert made.classes.tolist() == [[True, True]] * 3 and made.num_classes == 2
    assert made.description["classes_of_task"] is None
    assert made.description["class_names"] == ["class 0 of its task", "class 1 of its task"]
    with pytest.raises(UserError, match="have from 1 to 3 classes; give all the same number"):
        stream(tasks=[3, 1, 2], heads="position", scenario=data_il)
    with pytest.raises(
        UserError, match=r"dataset\.heads=position: numbers the classes within each"
    ):
        check_config(composed("dataset=seqcifar100", "dataset.heads=position"))
    words = "dataset=seqcifar100", "scenario=data", "dataset.split=class"
    by_position, by_class = composed(*words, "dataset.heads=position"), composed(*words)
    assert config_hash(by_position) != config_hash(by_class)
    check_config(by_position)
