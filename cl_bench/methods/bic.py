"""BiC: distillation, exemplars and a bias correction (Wu et al. 2019, arXiv:1905.13260)."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench.base.bounds import Count, Part, Positive
from cl_bench.base.exceptions import UserError
from cl_bench.base.memory_size import size_key
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer, capacity_of
from cl_bench.core.types import Batch, Task, in_float64, to_device_of
from cl_bench.methods.shared.exemplars import Distilled
from cl_bench.methods.shared.head_rows import refuse_linearised_head

MOMENTUM = 0.9
PENALTY = 0.1  # of beta^2 / 2
FALLS = (0.3, 0.6, 0.8, 0.9)  # parts of the steps after which the rate falls to a tenth


class BiC(Distilled):
    """Distillation on old classes (`Distilled`), and a correction of the logits of new ones.

    A share `held_out` of the memory holds images that no step has seen: `schedule.holdout` of each
    task's images is kept from training, and exemplars are chosen from it for this part. After a
    task, alpha z + beta takes the place of each logit z of a new class (eq. 4). It is fitted to
    this part as it was before the task, and to as many random ones of the task's held-out images
    of each class. From alpha = 1 and beta = 0, `steps` steps of gradient descent on all of them
    lower their mean loss (eq. 5) and, as in the authors' code, 0.05 beta^2. They have momentum 0.9,
    and the rate `rate` falls to a tenth after 30, 60, 80 and 90 % of them. The correction is
    written into the rows of the head.

    Where the images are separable, the loss has no minimum, and alpha would grow without limit: the
    number of steps bounds it.
    """

    scenarios: ClassVar[tuple[str, ...]] = ("class",)
    uses_held_out: ClassVar[bool] = True
    divides_memory_by: ClassVar[str] = "held_out"

    def __init__(
        self,
        learner: Learner,
        buffer: partial[Buffer],
        replay: Count,
        temperature: Positive,
        held_out: Part,
        steps: Count,
        rate: Positive,
    ) -> None:
        size = size_key(buffer.keywords)
        replayed, unseen = _sizes(buffer.keywords[size], held_out)
        super().__init__(learner, partial(buffer, **{size: replayed}), replay, temperature)
        self.unseen = buffer(**{size: unseen}, rng=learner.rng)
        self.steps, self.rate = steps, rate
        self.alpha, self.beta = 1.0, 0.0  # of the last task

    @staticmethod
    def check(config: dict[str, Any]) -> None:
        options, held_out = config["method"]["buffer"], config["method"]["held_out"]
        per_class = options.get("per_class")
        if per_class and not min(_sizes(per_class, held_out)):
            raise UserError(
                f"buffer.per_class={per_class}: method=bic keeps method.held_out={held_out:g} of "
                "them from training, which leaves none; use more, or a smaller share"
            )
        if not per_class and capacity_of(options) is None:
            raise UserError(
                "method=bic: a share of the memory is never trained on; use a memory with a "
                "capacity, such as buffer=herding"
            )

    @staticmethod
    def parts_of_memory(options: dict[str, Any]) -> tuple[int, ...]:
        capacity = capacity_of(options["buffer"])
        return () if capacity is None else _sizes(capacity, options["held_out"])

    def capacity(self) -> dict[str, float]:
        return {"stored": len(self.memory) + len(self.unseen)}

    def check_network(self, task: Task) -> None:
        refuse_linearised_head(self.learner.net, "bic")
        if self.learner.heads.bias_of(self.learner.flat.theta) is None:
            raise UserError("method=bic: corrects the bias of the head, and this head has none")

    def validate(self, held_out: Task) -> None:
        """Correct the rows of new classes, and then choose images of the held-out ones."""
        if bool(self.past.any()):
            self._correct(self._balanced(held_out))
        self.unseen.begin_task(held_out)
        for batch in held_out.chunks(512):
            self.unseen.add(batch)
        self.unseen.choose(held_out, self.learner.unit_features)
        self.unseen.end_task()

    def _balanced(self, held_out: Task) -> Batch:
        """The images of earlier tasks that no step has seen, and as many of each class of this."""
        old = self.unseen.stored()
        count = int(old.y.bincount().max())
        order = torch.randperm(len(held_out), generator=self.learner.rng)
        labels = held_out.y.cpu()[order]
        chosen = torch.cat([order[labels == label][:count] for label in labels.unique()])
        return old.cat(held_out.batch(to_device_of(chosen, held_out.y)))

    @torch.no_grad()
    def _correct(self, rows: Batch) -> None:
        """Write the correction into the rows of this task's classes."""
        learner, new = self.learner, self.now & ~self.past
        theta = learner.flat.theta.detach()
        with learner.evaluating():
            logits = torch.cat([learner.logits(theta, part) for part in rows.slices(512)])
        self.alpha, self.beta = self._fitted(logits, rows, new)
        learner.heads.rows_of(theta)[new] *= self.alpha
        bias = learner.heads.bias_of(theta)
        assert bias is not None
        bias[new] = self.alpha * bias[new] + self.beta

    def _fitted(self, logits: Tensor, rows: Batch, new: Tensor) -> tuple[float, float]:
        """alpha and beta after the steps on the mean loss of these logits (B, K)."""
        criterion, competing = self.learner.criterion, self.learner.heads.competing(rows)
        logits = in_float64(logits)
        y, new = rows.y.to(logits.device), new.to(logits.device)
        competing = None if competing is None else competing.to(logits.device)
        found = torch.tensor([1.0, 0.0], dtype=logits.dtype, device=logits.device)
        found.requires_grad_()
        optimizer = torch.optim.SGD([found], lr=self.rate, momentum=MOMENTUM)
        ends = [round(part * self.steps) for part in FALLS]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, ends)
        for _ in range(self.steps):
            with torch.enable_grad():
                corrected = torch.where(new, found[0] * logits + found[1], logits)
                loss = criterion(corrected, y, competing).mean() + PENALTY / 2 * found[1] ** 2
            (found.grad,) = torch.autograd.grad(loss, found)
            optimizer.step()
            schedule.step()
        alpha, beta = found.tolist()
        return alpha, beta


def _sizes(capacity: int, held_out: float) -> tuple[int, int]:
    """The samples of the memory, or of a class, that are replayed, and those no step sees."""
    unseen = max(round(held_out * capacity), 1)
    return capacity - unseen, unseen
