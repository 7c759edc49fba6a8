"""X-DER: extended dark experience replay (Boschini et al. 2022, arXiv:2201.00766)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench.base.bounds import Count, NonNegative, Positive, Share
from cl_bench.core.criteria import masked
from cl_bench.core.decisions import decide_uniform
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.types import Batch, Task, at_least_float32
from cl_bench.methods.base import Rehearsal
from cl_bench.methods.shared.contrast import contrasts, mean_where


class XDER(Rehearsal):
    """DER++ over all classes of the stream, whose stored logits are kept up to date.

    The loss of a step is the sum of (notation of the paper: S, DER++, F, and the constraints)

    - the cross-entropy of new samples over the classes of this task,
    - alpha |f(x') - z'|^2, a mean over all classes, those of the future included,
    - beta times the cross-entropy of x'' over the classes of earlier tasks,
    - consistency times the supervised contrast of the logits of future classes, for two views of
      new and stored samples,
    - constraint times hinges with a margin: of new samples, the largest probability of an earlier
      class stays below that of this task's classes; and the largest logit of the future stays below
      that of the classes of the sample's own task.

    What a stored sample of an earlier task had as logits for later classes was a guess. When it is
    replayed, the logits of this task's and later classes are replaced by those of now: at its n-th
    replay in a task with probability 1 / n. Where the largest of them is above the logit of the
    sample's own class, they are scaled so that it is gamma times that logit. At the end of a task,
    its new samples are stored with logits whose entries for earlier classes are scaled in the same
    way.
    """

    scenarios: ClassVar[tuple[str, ...]] = ("task", "class")
    allows_folding = True
    needs_chosen_memory = True

    def __init__(
        self,
        learner: Learner,
        buffer: Callable[..., Buffer],
        replay: Count,
        alpha: NonNegative,
        beta: NonNegative,
        gamma: Share,
        constraint: NonNegative,
        margin: NonNegative,
        consistency: NonNegative,
        temperature: Positive,
    ) -> None:
        super().__init__(learner, buffer)
        self.replay, self.alpha, self.beta, self.gamma = replay, alpha, beta, gamma
        self.constraint, self.margin = constraint, margin
        self.consistency, self.temperature = consistency, temperature
        none = torch.zeros_like(learner.flat.grad[:0]).bool()
        self.owned = none.view(0, 0)  # (T, K): the classes of each task so far
        self.present = self.earlier = none  # (K,): classes of this task, and of those before it
        self.replays = learner.flat.grad[:0].clone()  # of each stored sample, in this task

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        needs = {"temperature": "consistency", "margin": "constraint"}
        return {f"method.{key}" for key, of in needs.items() if not config["method"][of]}

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        known, (tasks, classes) = self.owned, self.owned.shape
        self.owned = torch.zeros_like(self.learner.heads.live)  # larger where a run goes on
        self.owned[:tasks, :classes] = known
        self.earlier = self.owned.any(0)
        self.owned[task.t, task.y] = True
        self.present = torch.zeros_like(self.earlier).index_fill(0, task.y, True)
        self.replays = torch.zeros_like(self.learner.flat.grad[: len(self.memory)])

    def observe(self, batch: Batch) -> Tensor:
        learner, memory = self.learner, self.memory
        parts, index = [learner.augmented(batch)], None
        if not memory.empty:
            assert memory.rows is not None
            draws = [memory.draw(self.replay) for _ in range(2)]
            index = torch.cat(draws)
            parts += [learner.augmented(memory.rows.rows(draw)) for draw in draws]
        if self.consistency:
            seen = self.with_old(batch, self.replay)
            parts.append(learner.augmented(seen).cat(learner.augmented(seen)))
        stored = None if index is None else parts[1].logits
        sizes = tuple(len(part.y) for part in parts)
        whole = parts[0].cat(*parts[1:])
        arguments = stored, index, sizes, self.owned, self.present, self.earlier
        loss, outputs = learner.differentiate_logits(self._loss, whole, *arguments, apart=sizes)
        learner.step()
        if index is not None:
            past = slice(sizes[0], sizes[0] + len(index))
            self._update_stored(index, outputs[past].float())
        memory.add(batch)
        return loss

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        learner, rows = self.learner, self.memory.stored()
        with torch.no_grad(), learner.evaluating():
            theta = learner.flat.theta.detach()
            slices = [learner.augmented(part) for part in rows.slices(512)]
            now = torch.cat([learner.logits(theta, part) for part in slices]).float()
        fresh = self._scaled(now, now, rows.y, self.earlier & ~self.present)
        if rows.logits is not None:
            new = torch.isin(rows.t, task.t.unique()).unsqueeze(1)
            stored = F.pad(rows.logits, (0, now.shape[1] - rows.logits.shape[1]))
            kept = self._scaled(stored, now, rows.y, self._later(rows.t))
            fresh = torch.where(new, fresh, kept)
        self.memory.rows = rows._replace(logits=fresh)

    def _loss(
        self,
        logits: Tensor,
        whole: Batch,
        stored: Tensor | None,
        index: Tensor | None,
        sizes: tuple[int, ...],
        owned: Tensor,
        present: Tensor,
        earlier: Tensor,
    ) -> Tensor:
        logits = at_least_float32(logits)
        criterion, parts = self.learner.criterion, logits.split(sizes)
        labels, future = whole.y.split(sizes), ~(earlier | present)
        loss = criterion(parts[0], labels[0], present.expand_as(parts[0])).mean()
        loss = loss + self.constraint * self._past_hinge(parts[0], earlier & ~present, present)
        outputs, own, used = parts[0], present.expand_as(parts[0]), None
        if index is not None:
            assert stored is not None
            gap = (parts[1].to(stored.dtype) - stored).square().mean()
            labelled = criterion(parts[2], labels[2], earlier.expand_as(parts[2])).mean()
            loss = loss + self.alpha * gap + self.beta * labelled
            until = sizes[0] + len(index)
            outputs = logits[:until]
            own = torch.cat([own, owned[whole.t[sizes[0] : until]]])
            once = _first_places(index) == torch.arange(len(index), device=index.device)
            used = torch.cat([torch.ones_like(labels[0]).bool(), once])
        loss = loss + self.constraint * self._future_hinge(outputs, future, own, used)
        if not self.consistency:
            return loss
        return loss + self.consistency * self._consistency(parts[-1], labels[-1], future)

    def _past_hinge(self, logits: Tensor, past: Tensor, present: Tensor) -> Tensor:
        """Of probabilities over all classes so far; the mean of those that are above 0."""
        p = masked(logits, past | present).softmax(1)
        wrong, right = (p.masked_fill(~each, 0.0).amax(1) for each in (past, present))
        excess = wrong.detach() + self.margin - right
        return mean_where(excess, (excess > 0) & past.any())

    def _future_hinge(
        self, logits: Tensor, future: Tensor, own: Tensor, used: Tensor | None
    ) -> Tensor:
        """Of logits, the classes of each sample's own task (B, K) against those of the future."""
        wrong, right = (masked(logits, each).amax(1) for each in (future, own))
        excess = wrong + self.margin - right
        above = (excess > 0) if used is None else (excess > 0) & used
        return mean_where(excess, above)

    def _consistency(self, logits: Tensor, y: Tensor, future: Tensor) -> Tensor:
        """The contrast of two views of each sample by the direction of its future logits."""
        found = F.normalize(logits.where(future, 0.0), dim=1)
        others = ~torch.eye(len(y), dtype=torch.bool, device=y.device)
        scores = found @ found.T / self.temperature
        return contrasts(scores, y.unsqueeze(1) == y, others).mean() * future.any()

    @torch.no_grad()
    def _update_stored(self, index: Tensor, outputs: Tensor) -> None:
        """Replace stored logits of this task's and later classes, at random (see the class)."""
        rows = self.memory.rows
        assert rows is not None and rows.logits is not None
        before = rows.logits[index]
        after = self._scaled(before, outputs, rows.y[index], self._later(rows.t[index]))
        count = self.replays[index] + 1
        draws = decide_uniform(len(index), self.learner.rng, index)
        values = torch.where((draws * count < 1).unsqueeze(1), after, before)
        rows.logits[index], self.replays[index] = values[_first_places(index)], count

    def _later(self, tasks: Tensor) -> Tensor:
        """(B, K) bool: the classes that were guesses when samples of these tasks were stored.

        They are those of this task and of the future, but for the sample's own task.
        """
        return (~self.earlier | self.present) & ~self.owned[tasks]

    def _scaled(self, old: Tensor, new: Tensor, y: Tensor, classes: Tensor) -> Tensor:
        """`old` (B, K) with the logits `new` of some classes, (B, K) or (K,), made small enough.

        Where the largest of them is above the old logit of the sample's own class, they are scaled
        so that it becomes gamma times that logit. Where that logit is not positive, no
        factor does this, and they are shifted so that the largest becomes equal to it.
        """
        own = old.gather(1, y.unsqueeze(1))
        largest = masked(new, classes).amax(1, keepdim=True)
        positive = own > 0
        scaled = new * self.gamma * own / largest.where(positive, 1.0)
        lowered = torch.where(positive, scaled, new - (largest - own))
        return torch.where(classes, torch.where(largest > own, lowered, new), old)


def _first_places(index: Tensor) -> Tensor:
    """(N,): the place of the first entry with the same value."""
    return (index.unsqueeze(1) == index).to(torch.uint8).argmax(1)
