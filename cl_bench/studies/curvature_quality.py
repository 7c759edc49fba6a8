"""Compares the quadratic prediction of curvatures with the measured rise of a past task's loss.

With theta_0 the parameters after task 0 and d = theta - theta_0, a quadratic penalty predicts that
the loss of task 0 rises by 1/2 d'Hd. Here task 1 is learned without a penalty, and 1/2 d'Hd of each
curvature H of task 0 is set beside three exact numbers: the rise of the loss itself; its
second-order part in the outputs f, the mean of 1/2 (f - f0)' R (f - f0) with R the Hessian of the
loss in the outputs; and 1/2 d'Gd with the Gauss-Newton matrix G, which these curvatures
approximate. On a network that is linear in its parameters, the last two are equal. A further row
has the sum of 1/2 d'Gd over the layers, with d restricted to each of them: what a curvature sees
that is exact within the layers and has no entries between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from cl_bench.base.bounds import Count
from cl_bench.base.exceptions import UserError
from cl_bench.core.flat import FlatParams
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Stream, Task
from cl_bench.curvature.base import Curvature
from cl_bench.curvature.products import ggn_product
from cl_bench.curvature.roots import output_roots
from cl_bench.engine import experiment
from cl_bench.engine.evaluation import Evaluation
from cl_bench.engine.schedule import Schedule
from cl_bench.engine.session import Host, Progress, Session
from cl_bench.methods.finetune import Finetune
from cl_bench.models.head import head_name
from cl_bench.results.page import Page

EXACT = "Gauss-Newton, exact"
LAYERS = "Gauss-Newton, each layer alone"
HALF = "1/2 d'Hd"
CHUNK = 500  # samples in a forward pass


class Rise:
    """Measures the rise of a past task's loss and its curvatures' predictions (a `Probe`)."""

    def __init__(
        self, learner: Learner, old: Task, curvatures: dict[str, Curvature], every: int
    ) -> None:
        self.old, self.curvatures = old, curvatures
        self.every: int | None = every
        self.anchor = learner.flat.theta.detach().clone()
        self.head, net = torch.zeros_like(self.anchor), learner.net
        prefix = head_name(net)
        for name, view in learner.flat.views(self.head).items():
            view.fill_(name.startswith(f"{prefix}."))  # 1 for the head's parameters
        self.step, self.rows = 0, list[dict[str, Any]]()

    def __call__(self, learner: Learner, stream: Stream, task: Task) -> dict[str, float]:
        """Append a row for each curvature, once theta has moved; first called at step 0."""
        move, step = learner.flat.theta.detach() - self.anchor, self.step
        self.step += self.every or 0
        if not bool(move.any()):
            return {}
        rise, in_outputs = self._rises(learner)
        exact = ggn_product(learner, self.old, self.anchor)
        products = {EXACT: exact, **{k: c.matvec for k, c in self.curvatures.items()}}
        parts = {
            HALF: move,
            "of the head": self.head * move,
            "of the body": move - self.head * move,
        }
        table = {
            name: {key: float(d @ product(d)) / 2 for key, d in parts.items()}
            for name, product in products.items()
        }
        whole, head = table[EXACT][HALF], table[EXACT]["of the head"]
        alone = sum(float(part @ exact(part)) for part in by_layer(learner.flat, move)) / 2
        layers = {HALF: alone, "of the head": head, "of the body": alone - head}
        for name, halves in {EXACT: table.pop(EXACT), LAYERS: layers, **table}.items():
            share = halves[HALF] / whole if whole else None
            row = {"step": step, "curvature": name, **halves, "share": share}
            self.rows.append(row | {"rise": rise, "in outputs": in_outputs})
        return {}

    @torch.no_grad()
    def _rises(self, learner: Learner) -> tuple[float, float]:
        """The rise of the mean loss on the old task, and its second-order part in the outputs."""
        rise, second = 0.0, 0.0
        with learner.evaluating(full_precision=True):
            for batch in self.old.chunks(CHUNK):
                before, after = (
                    learner.logits(t, batch) for t in (self.anchor, learner.flat.theta)
                )
                losses = self._losses(learner, after, batch) - self._losses(learner, before, batch)
                rise += float(losses.sum())
                roots = output_roots(learner, batch, before, None)
                second += float((roots * (after - before)).sum(-1).square().sum()) / 2
        return rise / len(self.old), second / len(self.old)

    def _losses(self, learner: Learner, logits: Tensor, batch: Batch) -> Tensor:
        return learner.criterion(logits, batch.y, learner.heads.competing(batch))


def by_layer(flat: FlatParams, move: Tensor) -> Iterator[Tensor]:
    """For each module with parameters, `move` (P,) with zeros in place of all others."""
    for module in dict.fromkeys(flat.owners.values()):
        part = torch.zeros_like(move)
        views = zip(flat.views(part).items(), flat.views(move).values(), strict=True)
        for (name, view), values in views:
            if flat.owners[name] is module:
                view.copy_(values)
        yield part


def study(
    learner: Learner,
    stream: Stream,
    order: Generator,
    schedule: Schedule,
    curvatures: dict[str, Any],
    points: Count,
) -> Page:
    """Learn task 0, take its curvatures, learn task 1, and measure `points` times meanwhile.

    The last measurement is at the end of task 1.
    """
    _refuse(learner, stream, schedule)
    old, new = stream.tasks[:2]
    for estimator in curvatures.values():
        estimator.check(learner, old)
    evaluation = Evaluation("final", "test", 0.1, False, None, CHUNK)
    progress = Progress.start(stream)
    session = Session(Finetune(learner), stream, schedule, evaluation, order, progress, Host())
    experiment.learn(session, old)
    found = {name: estimator(learner, old) for name, estimator in curvatures.items()}
    probe = Rise(learner, old, found, -(-schedule.steps(new) // points))
    session.probe, progress.done, progress.step, progress.order = probe, 1, 0, None
    experiment.learn(session, new)
    if not probe.rows or not probe.rows[-1]["share"]:
        raise UserError(
            "study=curvature_quality: learning task 1 does not move the outputs on task 0; use a "
            "network of which they share more than the head, and optimizer.lr above 0"
        )
    rows = [row | {"step": min(row["step"], progress.step)} for row in probe.rows]
    last = [row for row in rows if row["step"] == progress.step]
    exact, half = last[0], last[0][HALF]
    findings = [
        f"task 0's loss rises by {exact['rise']:.4g}; its second-order part in the outputs is "
        f"{exact['in outputs']:.4g}, and 1/2 d'Gd with the exact Gauss-Newton matrix {half:.4g}",
        *(f"{row['curvature']}: {row['share']:.1%} of 1/2 d'Gd" for row in last[1:]),
    ]
    title = f"Curvature against the rise of the past loss, {learner.flat.theta.numel()} parameters"
    return Page(title, findings, rows, lambda figure: _draw(figure, rows))


def _refuse(learner: Learner, stream: Stream, schedule: Schedule) -> None:
    """Raise UserError where the curvatures are not those of the loss that is measured."""
    if len(stream.tasks) < 2:
        raise UserError("study=curvature_quality: needs two tasks; use dataset.tasks=2 or more")
    grow = not bool(stream.live(0)[0].equal(stream.live(1)[0]))
    if grow and not learner.criterion.squared:
        raise UserError(
            "study=curvature_quality: with new competitors a softmax has another curvature; use "
            "criterion=scaled_mse, or scenario=task or data"
        )
    if learner.snapshot().buffers and schedule.batch_norm != "frozen":
        raise UserError(
            "study=curvature_quality: batch norm's statistics move besides the parameters; use "
            "model.norm=folded, or schedule.batch_norm=frozen"
        )


def _draw(figure: Any, rows: list[dict[str, Any]]) -> None:
    axes = figure.add_subplot(xlabel="steps on task 1", ylabel="rise of task 0's loss")
    for name in dict.fromkeys(row["curvature"] for row in rows):
        part = [row for row in rows if row["curvature"] == name]
        steps = [row["step"] for row in part]
        if name == EXACT:
            axes.plot(steps, [row["rise"] for row in part], "k-", label="true")
            axes.plot(steps, [row["in outputs"] for row in part], "k--", label="second order")
        axes.plot(steps, [row[HALF] for row in part], "o-", label=name)
    axes.legend()
    axes.grid(alpha=0.3)
