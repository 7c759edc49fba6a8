"""Memories that are chosen by gradients, against slow versions, one sample at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import blobs, composed, learner, method_for, mlp
from torch import Generator, Tensor

from cl_bench.base.exceptions import UserError
from cl_bench.config.check import check_config
from cl_bench.core.scored import Scored
from cl_bench.core.types import Batch
from cl_bench.testing.small import batch as random_batch
from cl_bench.testing.small_run import batch_norm

CAPACITY, REPLAY, REFERENCES, SIZE = 10, 4, 3, 2
OPTIONS = (
    f"buffer.capacity={CAPACITY}",
    f"method.replay={REPLAY}",
    f"method.references={REFERENCES}",
    f"method.reference_size={SIZE}",
)


class Slow:
    """GSS-Greedy with lists of samples and scores, and plain SGD of rate 0.1, in double precision.

    rng  a generator in the state of the method's
    """

    def __init__(self, made: Any, rng: Generator, combine: str, admit: str) -> None:
        self.made, self.rng, self.combine, self.admit = made, rng, combine, admit
        self.theta = made.flat.theta.detach().clone()
        self.stored: list[Batch] = []
        self.scores: list[float] = []
        self.gates: list[
            bool
        ] = []  # whether batches came to a memory without room, and were let in

    def gradient(self, samples: list[Batch]) -> Tensor:
        """Of the mean loss."""
        theta = self.theta.clone().requires_grad_()
        losses = [self.made.losses(theta, one)[0] for one in samples]
        return torch.autograd.grad(torch.stack(losses).mean(), theta)[0]

    def descend(self, samples: list[Batch]) -> None:
        self.theta = self.theta - 0.1 * self.gradient(samples)

    def draw(self, count: int) -> list[Batch]:
        order = torch.randperm(len(self.stored), generator=self.rng).tolist()
        return [self.stored[i] for i in order[:count]]

    def score(self, samples: list[Batch], others: list[Tensor]) -> float:
        g = self.gradient(samples)
        return max(float(g @ other / (g.norm() * other.norm())) for other in others) + 1

    def observe(self, batch: Batch) -> None:
        new = [batch.rows(slice(i, i + 1)) for i in range(len(batch.y))]
        old = self.draw(REPLAY) if self.stored else []
        if self.combine == "mean":
            self.descend(new + old)
        else:
            self.descend(new)
            if old:
                self.descend(old)
        admitted, scores = True, [1.1] * len(new)
        if self.stored:
            drawn = self.draw(REFERENCES * SIZE)
            parts = [drawn[i : i + SIZE] for i in range(0, len(drawn), SIZE)]
            others = [self.gradient(part) for part in parts]
            scores = [self.score([one], others) for one in new]
            if self.admit == "batch" and len(self.stored) + len(new) > CAPACITY:
                admitted = self.score(new, others) < 1
                self.gates.append(admitted)
        for one, c in zip(new, scores, strict=True):
            u, v = torch.rand(2, generator=self.rng, dtype=torch.float64).tolist()
            if len(self.stored) < CAPACITY:
                self.stored.append(one)
                self.scores.append(c)
            elif admitted and (self.admit == "batch" or c < 1):
                self.replace(one, c, u, v)

    def replace(self, one: Batch, c: float, u: float, v: float) -> None:
        """Draw stored sample i with probability c_i / sum c; replace it by c_i / (c_i + c)."""
        left, i = u * sum(self.scores), 0
        while left >= self.scores[i]:
            left, i = left - self.scores[i], i + 1
        if v < self.scores[i] / (self.scores[i] + c):
            self.stored[i], self.scores[i] = one, c


@pytest.mark.parametrize("admit", ["batch", "sample"])
@pytest.mark.parametrize("combine", ["steps", "mean"])
@pytest.mark.parametrize("scenario", ["class", "task", "data"])
def test_gss_equals_its_algorithm(scenario: str, combine: str, admit: str) -> None:
    """Parameters, stored samples and scores after each batch of three tasks."""
    torch.manual_seed(0)
    stream, made = blobs(scenario), learner(mlp().double())
    method = method_for("gss", made, *OPTIONS, f"method.combine={combine}", f"method.admit={admit}")
    rng = Generator()
    rng.set_state(made.rng.get_state())
    slow, replaced = Slow(made, rng, combine, admit), 0
    for task in stream.tasks:
        made.begin_task(stream.live(task.id), task.t.unique(), stream.live_at_end)
        method.begin_task(task)
        for rows in task.chunks(6):
            before = [*slow.scores]
            slow.observe(rows)
            method.observe(rows)
            torch.testing.assert_close(made.flat.theta.detach(), slow.theta)
            stored = method.memory.stored()
            assert stored.x.equal(torch.cat([one.x for one in slow.stored]))
            assert stored.y.equal(torch.cat([one.y for one in slow.stored]))
            assert method.memory.scores == pytest.approx(slow.scores)
            replaced += len(before) == CAPACITY and before != slow.scores
        method.end_task(task)
    assert replaced and (admit == "sample" or {*slow.gates} == {True, False})


def filled(scores: list[float], seed: int) -> Scored:
    memory = Scored(len(scores), "all", False, Generator().manual_seed(seed))
    memory.offer(random_batch(len(scores)), [*scores])
    return memory


def test_a_stored_sample_is_replaced_as_often_as_its_score_says() -> None:
    """Sample i goes with probability c_i / sum c * c_i / (c_i + c), in 4,000 draws."""
    scores, c, runs = [0.2, 0.5, 1.3], 0.4, 4_000
    counts = torch.zeros(3)
    for seed in range(runs):
        memory = filled(scores, seed)
        memory.offer(random_batch(1), [c])
        changed = [i for i in range(3) if memory.scores[i] != scores[i]]
        assert len(changed) <= 1 and all(memory.scores[i] == c for i in changed)
        counts[changed] += 1
    for i in range(3):
        p = scores[i] / sum(scores) * scores[i] / (scores[i] + c)
        assert abs(counts[i] / runs - p) < 4 * (p * (1 - p) / runs) ** 0.5


def test_scores_of_zero_and_samples_without_a_score() -> None:
    """Probabilities are defined where all scores are 0, or below it by rounding."""
    memory = filled([0.0, -1e-9, 0.0], 0)
    memory.offer(random_batch(3), [None, 0.0, None])
    assert len(memory) == 3 and memory.room == 0 and min(memory.scores) > 0
    memory.offer(random_batch(2), [None, None])
    assert len(memory.scores) == 3


def test_gradients_are_counted() -> None:
    """A step on 6 and on 4 stored, 3 references of 2; 6 samples only where a batch is let in."""
    made = learner(mlp())
    method = method_for("gss", made, *OPTIONS)
    method.observe(random_batch(6))
    assert made.sample_gradients == 6
    method.observe(random_batch(4))  # there is room for all
    assert made.sample_gradients == 6 + 4 + 4 + 3 * 2 + 4
    before = made.sample_gradients
    method.observe(random_batch(6))
    assert made.sample_gradients - before in (6 + 4 + 6 + 6, 6 + 4 + 6 + 6 + 6)


def test_samples_are_offered_in_the_first_epoch_alone() -> None:
    """With insert=first, and without gradients for their choice later; others count as offered."""
    made, task = learner(mlp()), blobs("data").tasks[0]
    method = method_for("gss", made, *OPTIONS, "buffer.insert=first")
    method.begin_task(task)
    for rows in task.chunks(8):
        method.observe(rows)
    assert method.memory.closed
    kept, before = [*method.memory.scores], made.sample_gradients
    for rows in task.chunks(8):
        method.observe(rows)
    assert method.memory.scores == kept
    assert made.sample_gradients - before == len(task) + 4 * 4


def test_the_choice_changes_no_statistics_of_batch_norm() -> None:
    """The running means are those of the steps alone."""
    made, task = batch_norm(learner(mlp()).machine), blobs("data").tasks[0]
    method = method_for("gss", made, *OPTIONS, "method.combine=mean")
    seen: list[list[Tensor]] = []
    descend = made.descend

    def noted(rows: Batch) -> Tensor:
        loss = descend(rows)
        seen.append([b.clone() for b in made.net.buffers()])
        return loss

    made.descend = noted  # type: ignore[method-assign]
    for rows in task.chunks(8):
        method.observe(rows)
        assert made.net.training
        assert all(a.equal(b) for a, b in zip(seen[-1], made.net.buffers(), strict=True))
    assert seen


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("method=er", "buffer=scored"), r"by scores, which this method does not give"),
        (("method=gss", "buffer=reservoir"), r"no use of the method's scores"),
    ],
)
def test_scores_are_given_where_they_are_used(words: tuple[str, ...], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        check_config(composed(*words, "dataset=seqmnist5k"))
    check_config(composed("method=gss", "dataset=seqmnist5k"))
