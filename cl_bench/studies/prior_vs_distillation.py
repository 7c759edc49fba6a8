"""A quadratic prior against distillation on a network (Yun 2020, section 3).

After the first task, at w0, the one objective is L(w; new) + d'Fd / 2 with d = w - w0, the other
L(w; new) + E KL(p_w0 || p_w) over the old data. Their gradients at w0 are equal, and the Hessian of
the KL there is the Fisher matrix F, so they differ from third order in d on. This study measures
both along the displacement d that training on the new task makes.
"""

from __future__ import annotations

from itertools import pairwise
from math import log
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Generator, Tensor

from cl_bench.base.bounds import Positive
from cl_bench.base.exceptions import UserError
from cl_bench.core.criteria import CrossEntropy
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Stream, Task
from cl_bench.curvature.products import ggn_product
from cl_bench.engine.schedule import Schedule
from cl_bench.methods.lwf import divergence
from cl_bench.results.page import Page

Scales = Annotated[
    list[Positive], Field(min_length=2, description="a list of two numbers above 0, or more")
]


def study(
    learner: Learner, stream: Stream, order: Generator, schedule: Schedule, scales: Scales
) -> Page:
    """Train on task 0, then compare both objectives along the displacement that task 1 makes."""
    _refuse(learner, stream, scales)
    old, new = stream.tasks[:2]
    _train(learner, stream, old, order, schedule)
    snapshot = learner.snapshot()
    start = snapshot.theta.double()
    _train(learner, stream, new, order, schedule)
    move = learner.flat.theta.detach() - start
    learner.restore(snapshot)
    learner.net.double()  # all is measured in float64, at w0
    learner.flat.theta.data = start
    learner.reveal(stream.live(1), new.t.unique(), stream.live_at_end)
    old_data = OldData(learner, old, stream.live(1)[0].view(1, 1, -1))
    prior, distilled = old_data.gradients(start, Batch(new.x[:256], new.y[:256], new.t[:256]))
    fisher = float(move @ ggn_product(learner, old)(move))
    curvature = old_data.curvature(start, move)
    divergences = [old_data.divergence(start + scale * move) for scale in scales]
    rows = _rows(scales, divergences, fisher)
    relative = float((prior - distilled).norm() / prior.norm())
    findings = [
        f"gradients of both objectives at w0: relative difference {relative:.1e}",
        f"curvature along d: of the KL {curvature:.6g}, of the Fisher {fisher:.6g} "
        f"(relative difference {abs(curvature - fisher) / fisher:.1e})",
        f"their difference grows with order {rows[1]['order']:.2f} of |d| at first (3 expected)",
        f"at the whole of d, |d| = {float(move.norm()):.3g}: KL {rows[-1]['KL']:.3g}, "
        f"quadratic {rows[-1]['quadratic']:.3g}",
    ]
    title = f"Prior and distillation, {learner.flat.theta.numel()} parameters, {len(old)} samples"
    return Page(title, findings, rows, lambda f: _draw(f, rows))


def _rows(scales: Scales, divergences: list[float], fisher: float) -> list[dict[str, Any]]:
    """KL and quadratic term at each scale of d, and the order at which their difference grows."""
    rows: list[dict[str, Any]] = []
    for scale, kl in zip(scales, divergences, strict=True):
        row = {"scale of d": scale, "KL": kl, "quadratic": scale**2 * fisher / 2}
        rows.append(row | {"difference": abs(kl - row["quadratic"]), "order": None})
    for before, row in pairwise(rows):
        growth = row["difference"] / before["difference"]
        row["order"] = log(growth) / log(row["scale of d"] / before["scale of d"])
    return rows


def _refuse(learner: Learner, stream: Stream, scales: list[Positive]) -> None:
    """Raise UserError for another loss than cross-entropy, and for too few tasks or scales."""
    if not isinstance(learner.criterion, CrossEntropy):
        raise UserError(
            "study=prior_vs_distillation: the KL is softmax's; use criterion=cross_entropy"
        )
    if len(stream.tasks) < 2 or len(scales) < 2:
        raise UserError("study=prior_vs_distillation: needs two tasks and two scales or more")


class OldData:
    """The KL divergence from the network at w0, over all data of the old task.

    `live` (1, 1, K): the classes that the softmax is over.
    """

    def __init__(self, learner: Learner, old: Task, live: Tensor) -> None:
        self.learner, self.live, self.old = learner, live, old
        self.outputs = [(b, self._logits(learner.flat.theta.detach(), b)) for b in old.chunks(500)]

    def _logits(self, theta: Tensor, batch: Batch) -> Tensor:
        with self.learner.evaluating(full_precision=True):
            return self.learner.logits(theta, batch)

    def _kl(self, theta: Tensor, batch: Batch, outputs: Tensor) -> Tensor:
        return divergence(outputs, self._logits(theta, batch), self.live, 1.0).sum() / len(self.old)

    def divergence(self, theta: Tensor) -> float:
        """The mean of KL(p_w0 || p_theta) over the samples."""
        with torch.no_grad():
            return float(sum(self._kl(theta, batch, outputs) for batch, outputs in self.outputs))

    def curvature(self, theta: Tensor, v: Tensor) -> float:
        """v'Hv with the Hessian H of the mean KL at theta, by reverse mode twice."""
        total = 0.0
        for batch, outputs in self.outputs:
            slope = torch.func.grad(lambda th, b=batch, s=outputs: self._kl(th, b, s))
            total += float(v @ torch.func.vjp(slope, theta)[1](v)[0])
        return total

    def gradients(self, theta: Tensor, new: Batch) -> tuple[Tensor, Tensor]:
        """The gradients of both objectives at w0, where that of the quadratic term is zero."""
        with self.learner.evaluating(full_precision=True):
            plain = torch.func.grad(lambda th: self.learner.loss(th, new))(theta)
        kept = torch.zeros_like(theta)
        for batch, outputs in self.outputs:
            kept += torch.func.grad(lambda th, b=batch, s=outputs: self._kl(th, b, s))(theta)
        return plain, plain + kept


def _train(
    learner: Learner, stream: Stream, task: Task, order: Generator, schedule: Schedule
) -> None:
    learner.begin_task(stream.live(task.id), task.t.unique(), stream.live_at_end)
    learner.train(frozen=False)
    for batch in task.batches(schedule.batch_size, order, schedule.epochs_of(task)):
        learner.descend(learner.arriving(batch))


def _draw(figure: Any, rows: list[dict[str, Any]]) -> None:
    axes = figure.add_subplot(
        xlabel="share of the displacement d", ylabel="nats", xscale="log", yscale="log"
    )
    x = [row["scale of d"] for row in rows]
    for name, mark in (("KL", "o-"), ("quadratic", "s--"), ("difference", "^:")):
        axes.plot(x, [row[name] for row in rows], mark, label=name)
    axes.legend()
    axes.grid(alpha=0.3)
