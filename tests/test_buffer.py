"""Memories: uniform, exact, and the same on every device."""

from __future__ import annotations

import pytest
import torch
from conftest import DEVICES
from torch import Generator, Tensor

from cl_bench.buffer import PerTaskRing, Reservoir
from cl_bench.types import Batch


def numbered(first: int, count: int, device: str = "cpu", logits: bool = False) -> Batch:
    """Samples whose label is their number."""
    y = torch.arange(first, first + count, device=device)
    x = (y % 256).to(torch.uint8).view(-1, 1, 1, 1)
    return Batch(x, y, torch.zeros_like(y), y[:, None].float() if logits else None)


def filled(capacity: int, total: int, size: int, seed: int) -> Reservoir:
    memory = Reservoir(capacity, Generator().manual_seed(seed))
    for first in range(0, total, size):
        memory.add(numbered(first, min(size, total - first)))
    return memory


def test_reservoir_is_uniform() -> None:
    """Chi-square over 4,000 runs: each of 60 samples is kept with probability 12 / 60."""
    runs, capacity, total = 4_000, 12, 60
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
    memory = Reservoir(8, Generator().manual_seed(0))
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


def test_ring_keeps_the_last_samples_of_each_task() -> None:
    ring = PerTaskRing(4, Generator().manual_seed(0))
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
