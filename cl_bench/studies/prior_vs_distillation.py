"""Prior and distillation on a real network (Yun 2020 section 3).

After the first task, at w0: L(w; new) + d'Hd / 2 on the one side, on the other L(w; new) +
E KL(p_w0 || p_w) over the old data. Equal gradients at w0; H of the KL is the Fisher, so they part
at third order in d, here along the way that the new task's own training goes.
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
from cl_bench.studies.page import Page

Scales = Annotated[
    list[Positive], Field(min_length=2, description="a list of two numbers above 0, or more")
]


def study(
    learner: Learner, stream: Stream, order: Generator, schedule: Schedule, scales: Scales
) -> Page:
    """Train on task 0, measure there with its data, along the displacement of task 1."""
    _refuse(learner, stream, scales)
    old, new = stream.tasks[:2]
    _train(learner, stream, old, order, schedule)
    then = learner.snapshot()
    start = then.theta.double()
    _train(learner, stream, new, order, schedule)
    move = learner.flat.theta.detach() - start
    learner.restore(then)
    learner.net.double()  # from here on all is measured in float64, at w0, as the old task ended
    learner.flat.theta.data = start
    learner.reveal(stream.live(1), new.t.unique(), stream.live_at_end)
    probe = Probe(learner, old, stream.live(1)[0].view(1, 1, -1))
    prior, distilled = probe.gradients(start, Batch(new.x[:256], new.y[:256], new.t[:256]))
    fisher = float(move @ ggn_product(learner, old)(move))
    curved = probe.curvature(start, move)
    rows: list[dict[str, Any]] = []
    for scale in scales:
        kept, quadratic = probe.divergence(start + scale * move), scale**2 * fisher / 2
        gap = abs(kept - quadratic)
        rows.append({"scale of d": scale, "KL": kept, "quadratic": quadratic, "difference": gap})
    rows[0]["order"] = None
    for before, row in pairwise(rows):
        grown = row["difference"] / before["difference"]
        row["order"] = log(grown) / log(row["scale of d"] / before["scale of d"])
    findings = [
        f"gradients of both objectives at w0: relative difference {_apart(prior, distilled):.1e}",
        f"curvature along d: of the KL {curved:.6g}, of the Fisher {fisher:.6g} "
        f"(relative difference {abs(curved - fisher) / fisher:.1e})",
        f"their difference grows with order {rows[1]['order']:.2f} of |d| at first (3 expected)",
        f"at the whole of d, |d| = {float(move.norm()):.3g}: KL {rows[-1]['KL']:.3g}, "
        f"quadratic {rows[-1]['quadratic']:.3g}",
    ]
    title = f"Prior and distillation, {learner.flat.theta.numel()} parameters, {len(old)} samples"
    return Page(title, findings, rows, lambda f: _draw(f, rows))


def _refuse(learner: Learner, stream: Stream, scales: list[Positive]) -> None:
    """One line for what this study cannot do."""
    if not isinstance(learner.criterion, CrossEntropy):
        raise UserError(
            "study=prior_vs_distillation: the KL is softmax's; use criterion=cross_entropy"
        )
    if len(stream.tasks) < 2 or len(scales) < 2:
        raise UserError("study=prior_vs_distillation: needs two tasks and two scales or more")


class Probe:
    """KL to the network at w0 on all the old data."""

    def __init__(self, learner: Learner, old: Task, live: Tensor) -> None:
        self.learner, self.live, self.old = learner, live, old
        self.outputs = [(b, self._logits(learner.flat.theta.detach(), b)) for b in old.chunks(500)]

    def _logits(self, theta: Tensor, batch: Batch) -> Tensor:
        with self.learner.evaluating(full_precision=True):
            return self.learner.logits(theta, batch)

    def _kl(self, theta: Tensor, batch: Batch, outputs: Tensor) -> Tensor:
        return divergence(outputs, self._logits(theta, batch), self.live, 1.0).sum() / len(self.old)

    def divergence(self, theta: Tensor) -> float:
        """E KL(p_w0 || p_theta)."""
        with torch.no_grad():
            return float(sum(self._kl(theta, batch, outputs) for batch, outputs in self.outputs))

    def curvature(self, theta: Tensor, v: Tensor) -> float:
        """v' (Hessian of the KL) v, by reverse mode twice."""
        total = 0.0
        for batch, outputs in self.outputs:
            slope = torch.func.grad(lambda th, b=batch, s=outputs: self._kl(th, b, s))
            total += float(v @ torch.func.vjp(slope, theta)[1](v)[0])
        return total

    def gradients(self, theta: Tensor, new: Batch) -> tuple[Tensor, Tensor]:
        """Of both whole objectives at w0; the quadratic's own is A (w0 - w0) = 0."""
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
    for batch in task.batches(schedule.batch_size, order, schedule.epochs):
        learner.descend(batch)


def _apart(one: Tensor, two: Tensor) -> float:
    return float((one - two).norm() / one.norm())


def _draw(figure: Any, rows: list[dict[str, Any]]) -> None:
    axes = figure.add_subplot(
        xlabel="share of the displacement d", ylabel="nats", xscale="log", yscale="log"
    )
    x = [row["scale of d"] for row in rows]
    for name, mark in (("KL", "o-"), ("quadratic", "s--"), ("difference", "^:")):
        axes.plot(x, [row[name] for row in rows], mark, label=name)
    axes.legend()
    axes.grid(alpha=0.3)
