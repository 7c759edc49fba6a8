"""Memories: uniform, exact, and the same on every device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import DEVICES
from torch import Generator, Tensor

from cl_bench.core.buffer import Balanced, Reservoir, Ring
from cl_bench.core.types import Batch, Task


def numbered(first: int, count: int, device: str = "cpu", logits: bool = False) -> Batch:
    """Samples whose label is their number."""
    y = torch.arange(first, first + count, device=device)
    x = (y % 256).to(torch.uint8).view(-1, 1, 1, 1)
    return Batch(x, y, torch.zeros_like(y), y[:, None].float() if logits else None)


def filled(capacity: int, total: int, size: int, seed: int) -> Reservoir:
    memory = Reservoir(capacity, "all", False, Generator().manual_seed(seed))
    for first in range(0, total, size):
        memory.add(numbered(first, min(size, total - first)))
    return memory


def test_reservoir_is_uniform() -> None:
    """Chi-square over 1,000 runs: each of 60 samples is kept with probability 12 / 60."""
    runs, capacity, total = 1_000, 12, 60
    kept = torch.zeros(total)
    for seed in range(runs):
        rows = filled(capacity, total, 7, seed).rows
        assert rows is not None
        kept[rows.y] += 1
    expected = runs * capacity / total
    assert kept.sum() == runs * capacity
    spread = expected * (1 - capacity / total)
    statistic = ((kept - expected).square() / spread).sum() * (total - 1) / total
    assert 30 < statistic < 98  # 0.1 % to 99.9 % of chi-square with 59 degrees of freedom


def test_reservoir_keeps_everything_until_it_is_full() -> None:
    memory = filled(20, 15, 4, 0)
    assert len(memory) == 15 and sorted(memory.sample(99).y.tolist()) == list(range(15))


def test_reservoir_equals_one_sample_at_a_time() -> None:
    """Algorithm R by the book: sample n goes to place floor(u n), if that is below the capacity."""
    rng, capacity, total = Generator().manual_seed(3), 5, 64
    places: dict[int, int] = {}
    for first in range(0, total, 8):
        draws = torch.rand(8, generator=rng, dtype=torch.float64).tolist()
        for i, u in enumerate(draws):
            n = first + i + 1
            place = n - 1 if n <= capacity else int(u * n)
            if place < capacity:
                places[place] = n - 1
    rows = filled(capacity, total, 8, 3).rows
    assert rows is not None
    assert rows.y.tolist() == [places[p] for p in range(capacity)]
    assert rows.x.flatten().tolist() == rows.y.tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_stored_samples_are_copies_on_their_device(device: str) -> None:
    memory = Reservoir(8, "all", False, Generator().manual_seed(0))
    batch = numbered(0, 4, device, logits=True)
    memory.add(batch)
    batch.x.zero_()
    drawn = memory.sample(4)
    assert drawn.x.device.type == device and drawn.logits is not None
    assert drawn.x.flatten().tolist() == drawn.y.tolist() == drawn.logits.flatten().tolist()


def test_draws_are_distinct_and_seeded() -> None:
    def draw(seed: int) -> Tensor:
        memory = filled(30, 30, 10, seed)
        return memory.sample(10).y

    assert len(set(draw(1).tolist())) == 10
    assert draw(1).equal(draw(1)) and not draw(1).equal(draw(2))


def test_draws_with_replacement_are_independent() -> None:
    memory = filled(30, 30, 10, 0)
    memory.replacement = True
    drawn = torch.cat([memory.sample(10).y for _ in range(900)])
    counts = drawn.bincount(minlength=30)
    assert len(counts) == 30 and counts.min() > 220 and counts.max() < 380
    small = filled(30, 3, 1, 0)
    small.replacement = True
    draws = [small.sample(10).y for _ in range(20)]
    assert {len(draw) for draw in draws} == {3}, "as many as are stored"
    assert any(len(draw.unique()) < 3 for draw in draws)


def test_ring_keeps_the_last_samples_of_each_task() -> None:
    ring = Ring(4, "all", False, Generator().manual_seed(0))
    for first in (0, 3, 6):
        ring.add(numbered(first, 3))
    assert len(ring) == 0, "the current task is not yet of the past"
    ring.end_task()
    assert sorted(ring.sample(99).y.tolist()) == [5, 6, 7, 8]
    ring.add(numbered(100, 2))
    ring.end_task()
    ring.add(numbered(200, 9))
    ring.end_task()
    assert sorted(ring.sample(99).y.tolist()) == [5, 6, 7, 8, 100, 101, 205, 206, 207, 208]


def in_classes(labels: list[int], size: int = 5) -> list[Batch]:
    """Samples of these classes in this order; the pixel is the sample's number modulo 256."""
    y = torch.tensor(labels)
    x = (torch.arange(len(y)) % 256).to(torch.uint8).view(-1, 1, 1, 1)
    whole = Batch(x, y, torch.zeros_like(y))
    return [whole.rows(slice(i, i + size)) for i in range(0, len(y), size)]


def balanced(labels: list[int], capacity: int, seed: int) -> Balanced:
    memory = Balanced(capacity, "all", False, Generator().manual_seed(seed))
    for part in in_classes(labels):
        memory.add(part)
    return memory


def test_balanced_levels_the_classes() -> None:
    """Of 200, 20, 12 and 3 samples, 24 places: 3 for the rarest, the others share the rest."""
    labels = [0] * 200 + [1] * 20 + [2] * 12 + [3] * 3
    for seed in range(5):
        memory = balanced(labels, 24, seed)
        assert len(memory) == 24 and memory.rows is not None
        counts = memory.rows.y.bincount(minlength=4).tolist()
        assert counts == [7, 7, 7, 3], "each as many as it has, up to the largest"
        for label, rows in memory.places.items():
            assert memory.rows.y[rows].eq(label).all()


def test_balanced_is_uniform_within_a_class() -> None:
    """Chi-square over 1,000 runs: 40 samples of one class, 10 of another, 12 places."""
    runs, kept = 1_000, torch.zeros(50)
    for seed in range(runs):
        rows = balanced([0] * 40 + [1] * 10, 12, seed).rows
        assert rows is not None
        kept[rows.x.flatten().long()] += 1
    for part in (kept[:40], kept[40:]):
        mean = part.mean()
        statistic = (part - mean).square().sum() / (mean * (1 - mean / runs))
        degrees = len(part) - 1
        assert abs(statistic - degrees) < 4.5 * (2 * degrees) ** 0.5


def test_everything_is_kept_without_a_capacity() -> None:
    memory = Reservoir(None, "all", False, Generator().manual_seed(0))
    for first in range(0, 50, 7):
        memory.add(numbered(first, 7))
    assert sorted(memory.sample(99).y.tolist()) == list(range(56)) and len(memory) == 56
    assert memory.rows is not None and len(memory.rows.y) < 120, "storage doubles"


@pytest.mark.parametrize("kind", [Reservoir, Balanced, Ring])
def test_first_epoch_alone(kind: Any) -> None:
    """With insert=first a second epoch changes nothing; the next task is offered again."""
    memory, task = kind(8, "first", False, Generator().manual_seed(0)), numbered(0, 6)
    now = Task(0, task.x, task.y, task.t)
    for _ in range(2):
        memory.begin_task(now)
        memory.add(task.rows(slice(0, 4)))
        memory.add(task.rows(slice(4, 6)))
        before = memory.rows.y.clone(), memory.rng.get_state()
        memory.add(task)
        assert memory.rows.y.equal(before[0]) and memory.rng.get_state().equal(before[1])
        memory.end_task()
    twice = kind(8, "all", False, Generator().manual_seed(0))
    twice.begin_task(now)
    twice.add(task)
    seen = twice.seen if kind is not Balanced else dict(twice.seen)
    twice.add(task)
    assert twice.seen != seen


def test_by_task() -> None:
    ring, reservoir = Ring(2, "all", False, Generator()), Reservoir(99, "all", False, Generator())
    for k in range(3):
        rows = numbered(10 * k, 3)._replace(t=torch.full((3,), k))
        for memory in (ring, reservoir):
            memory.begin_task(Task(k, rows.x, rows.y, rows.t))
            memory.add(rows)
            past = memory.by_task() if len(memory) else []
            assert [int(part.t[0]) for part in past] == list(range(k)), "not the one of now"
            memory.end_task()
    reservoir.begin_task(Task(3, rows.x, rows.y, rows.t))
    assert [sorted(b.y.tolist()) for b in ring.by_task()] == [[1, 2], [11, 12], [21, 22]]
    assert [b.y.tolist() for b in reservoir.by_task()] == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]


def test_a_ring_with_a_capacity_shares_it_equally_by_the_tasks_so_far() -> None:
    """Seven samples: the first task has 7, of two tasks each has 3, of three tasks each has 2."""
    ring = Ring(99, "all", False, Generator().manual_seed(0), capacity=7)
    kept = []
    for k in range(3):
        rows = numbered(10 * k, 9)._replace(t=torch.full((9,), k))
        ring.begin_task(Task(k, rows.x, rows.y, rows.t))
        for part in rows.slices(4):
            ring.add(part)
        ring.end_task()
        kept.append([sorted(part.y.tolist()) for part in ring.by_task()])
    assert kept[0] == [[2, 3, 4, 5, 6, 7, 8]]
    assert kept[1] == [[6, 7, 8], [16, 17, 18]]
    assert kept[2] == [[7, 8], [17, 18], [27, 28]] and len(ring) == 6
    assert all(int(part.t[0]) == k for k, part in enumerate(ring.by_task()))
    assert Ring.max_samples({"per_task": 10, "capacity": 7}, tasks=20, classes=None) == 7
    assert Ring.unused_options({"per_task": 10, "capacity": None}) == {"capacity"}
