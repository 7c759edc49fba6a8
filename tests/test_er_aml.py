"""ER-AML against its formula, one sample at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from conftest import blobs, learner, method_for, mlp
from test_class_incremental import next_draw, revealed, rows_of
from torch import Tensor

from cl_bench.core.types import Batch
from cl_bench.methods.er_aml import _one_of


def test_er_aml_equals_its_formula() -> None:
    """The supervised contrastive loss of new samples, and the cross-entropy of stored ones."""
    torch.manual_seed(0)
    stream, made = blobs("class"), learner(mlp().double())
    words = "method.replay=4", "buffer.capacity=8", "method.temperature=0.5"
    method = method_for("er_aml", revealed(made, stream, 0), *words)
    method.observe(rows_of(stream.tasks[0], 8))
    revealed(made, stream, 1)
    new = rows_of(stream.tasks[1], 6)
    new.y[5] = 0  # a class that the memory has, and whose only sample of the batch this is
    state = made.rng.get_state()
    pairs, valid = method._pairs(new)
    old = next_draw(method, 4)
    made.rng.set_state(state)
    theta = made.flat.theta.detach().clone().requires_grad_()

    def feature(rows: Batch, i: int) -> Tensor:
        one = rows.rows(slice(i, i + 1))
        return F.normalize(made.features_and_logits(theta, one)[0][0], dim=0)

    others = [feature(pairs, j) for j in range(12) if valid[j % 6]]
    labels = [int(pairs.y[j]) for j in range(12) if valid[j % 6]]
    losses = []
    for i in range(6):
        if valid[i]:
            powers = [torch.exp(feature(new, i) @ other / 0.5) for other in others]
            own = [p for p, y in zip(powers, labels, strict=True) if y == int(new.y[i])]
            losses.append(-torch.stack([(p / sum(powers)).log() for p in own]).mean())
    total = torch.stack(losses).mean() * 0.5 / 0.07 + made.loss(theta, old)
    (slope,) = torch.autograd.grad(total, theta)
    before = made.flat.theta.detach().clone()
    torch.testing.assert_close(method.observe(new), total.detach())
    torch.testing.assert_close(made.flat.theta.detach(), before - 0.1 * slope)


def test_positives_and_negatives_come_from_the_memory_and_the_batch() -> None:
    """A positive one is never the sample itself; a negative one has a class of the new batch."""
    stream, made = blobs("class"), learner(mlp())
    method = method_for("er_aml", revealed(made, stream, 0), "buffer.capacity=30")
    for task in stream.tasks[:2]:
        method.memory.add(task.batch(torch.arange(6, len(task))))
    new = rows_of(stream.tasks[1], 6)
    new.y[:] = torch.tensor([2, 2, 3, 3, 3, 5])  # of class 5 there is no other sample
    drawn = set()
    for _ in range(200):
        pairs, valid = method._pairs(new)
        assert valid.tolist() == [True] * 5 + [False]
        positive, negative = pairs.rows(slice(0, 5)), pairs.rows(slice(6, 11))
        assert positive.y.equal(new.y[:5])
        assert not (negative.y == new.y[:5]).any() and set(negative.y.tolist()) <= {2, 3, 5}
        assert not any(a.equal(b) for a, b in zip(positive.x, new.x[:5], strict=True))
        drawn.update(x.numpy().tobytes() for x in pairs.x)
    assert len(drawn) > 20, "from the memory, too"


def test_each_allowed_column_is_equally_likely() -> None:
    allowed = torch.tensor([[False, True, True, False, True]]).expand(3000, 5)
    draws = torch.rand(3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = _one_of(allowed, draws).bincount(minlength=5)
    assert counts[0] == counts[3] == 0 and counts[[1, 2, 4]].min() > 900
    assert _one_of(torch.zeros(2, 4, dtype=torch.bool), draws[:2]).tolist() == [0, 0]
