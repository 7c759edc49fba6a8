"""A network with its loss, the gradient of that loss, and the optimizer's step along it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cl_bench.base.exceptions import UserError
from cl_bench.core.criteria import Criterion
from cl_bench.core.gradient import Objective, engine
from cl_bench.core.inner_loop import InnerLoop
from cl_bench.core.mlp_gradient import LossSlope, mlp_gradient
from cl_bench.core.network import BatchNorm, NetworkFunction
from cl_bench.core.optim import Optimizer
from cl_bench.core.runtime import Runtime
from cl_bench.core.types import Batch, Task, Transform


class Learner(NetworkFunction):
    """theta moves, nothing else does: `gradient` fills `flat.grad`, `step` applies it."""

    def __init__(
        self,
        net: nn.Module,
        criterion: Criterion,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        weight_decay: float,
        transform: Transform,
        machine: Runtime,
    ) -> None:
        super().__init__(net, transform, machine)
        self.criterion = criterion
        self.rng = machine.memory  # for a method's own draws (CPU): replay, sampled memories
        self.weight_decay, self._make_optimizer = weight_decay, optimizer
        self.optimizer = optimizer([self.flat.theta])
        self.moved = self.flat.theta  # what the optimizer moves
        self.task: Task | None = None  # the one that is learned now
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self.annealed = 1.0  # what learning rates are multiplied by now
        self.evaluated = 0  # gradients so far, of one sample each
        self._decay_mask: Tensor | None = None  # (P,): the weight decay of each parameter
        self._movable: Tensor | None = None  # (P,) bool: parameters that may move; None: all
        self._engine = engine(self.flat, machine.compiler)
        perceptron = mlp_gradient(net, self.flat) if machine.precision == "fp32" else None
        self.mlp = perceptron if machine.compiler is None else None
        self._fill = self._fill_by_engine if self.mlp is None else self._fill_by_mlp
        sequence = None
        if perceptron is not None and machine.compiler is not None:
            sequence = perceptron.compiled_sequence(machine.compiler, criterion.with_slope)
        self.inner = InnerLoop(self, self._sgd_step, self._count, sequence)

    def begin_task(self, live: Tensor, tasks: Tensor, ever: Tensor | None) -> None:
        """Reveal the classes that compete now, (T, K) bool, and start with a fresh optimizer.

        `tasks` are the ids of the tasks that are learned now: one, or all of a joined stream;
        `ever`, (T, K) bool, the classes that will have competed at the stream's end (None: all).

        A gradient of zero still lets momentum and weight decay move a head that is not in use:
        the optimizer's state starts anew, and decay leaves the rows of other classes alone.
        """
        self.reveal(live, tasks, ever)
        self.annealed = 1.0
        self.drive(self.flat.theta)

    def drive(self, vector: nn.Parameter) -> None:
        """Let a fresh optimizer move this vector, by its `grad`, until the next task begins."""
        vector.grad = torch.zeros_like(vector) if vector.grad is None else vector.grad
        self.moved, self.optimizer = vector, self._make_optimizer([vector])
        self.anneal(self.annealed)

    def reveal(self, live: Tensor, tasks: Tensor, ever: Tensor | None) -> None:
        """The classes of `begin_task` alone: when a run continues, or before its first task."""
        self.heads.reveal(live, ever)
        used = self.heads.in_use(live[tasks].any(0)) if self.weight_decay else None
        self._decay_mask = None if used is None else used * self.weight_decay

    def anneal(self, factor: float) -> None:
        """Set the learning rate to so much of the config's; a method's own rates follow."""
        self.annealed = factor
        for group, lr in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = lr * factor

    def train(self, frozen: bool) -> None:
        """Training mode; `frozen`: batch norm's statistics and weights stay as they are."""
        self.frozen = frozen
        self._set_mode(True)
        self._movable = self.flat.outside(BatchNorm) if frozen else None
        if self._movable is not None and self._decay_mask is not None:
            self._decay_mask *= self._movable

    def losses(self, theta: Tensor, batch: Batch) -> Tensor:
        """(B,): each sample's loss over the classes that are live for its task."""
        return self.criterion(self.logits(theta, batch), batch.y, self.heads.competing(batch))

    def loss(self, theta: Tensor, batch: Batch) -> Tensor:
        """The mean of `losses`."""
        return self.losses(theta, batch).mean()

    def gradient(self, batch: Batch) -> Tensor:
        """Fill `flat.grad` with the gradient of the mean loss on the augmented batch; returns it.

        What is returned is the loss, detached, still on the device.
        """
        return self.loss_gradient(self.augmented(batch))

    def loss_gradient(self, batch: Batch) -> Tensor:
        """`gradient` of a batch that is augmented already."""
        self._count(batch)
        loss = self._fill(batch)
        return self._held_still(loss)

    def gradient_of(self, objective: Objective, *args: Any) -> Tensor:
        """Fill `flat.grad` with d objective(theta, *args) / d theta; returns the detached value.

        Batches among `args` are augmented first, by one draw outside any graph. A compiled
        objective is kept by its identity: pass a function or a bound method, not a new lambda.
        """
        return self.differentiate(
            objective, *(self.augmented(a) if isinstance(a, Batch) else a for a in args)
        )

    def differentiate(self, objective: Objective, *args: Any) -> Tensor:
        """`gradient_of` batches that are augmented already."""
        self._count(*args)
        return self._held_still(self._engine(objective, args, has_aux=False))

    def differentiate_with(self, objective: Callable, *args: Any) -> tuple[Tensor, Tensor]:
        """The same for an objective that returns a tensor beside its value (logits to store)."""
        self._count(*args)
        value, aux = self._engine(objective, args, has_aux=True)
        return self._held_still(value), aux.detach()

    @torch.no_grad()
    def step(self) -> None:
        """One step of the optimizer on theta, weight decay included."""
        if self._decay_mask is not None:
            self.flat.grad.addcmul_(self.flat.theta, self._decay_mask)
        self.optimizer.step()

    def descend(self, batch: Batch) -> Tensor:
        """`gradient`, then `step`: what plain training does with a batch."""
        loss = self.gradient(batch)
        self.step()
        return loss

    def descend_on(self, objective: Objective, *args: Any) -> Tensor:
        """`gradient_of`, then `step`."""
        value = self.gradient_of(objective, *args)
        self.step()
        return value

    @property
    def lr(self) -> float:
        """The optimizer's learning rate now."""
        return self.optimizer.param_groups[0]["lr"]

    def movable(self, gradient: Tensor) -> Tensor:
        """The gradient (P,), 0 for parameters that may not move now (frozen batch norm)."""
        return gradient if self._movable is None else gradient * self._movable

    def augmented(self, batch: Batch) -> Batch:
        """The batch under one random draw of the augmentation."""
        return batch._replace(x=self.transform.draw(batch.x, self.machine.draws))

    def mlp_inputs(self, batch: Batch) -> tuple[Tensor, LossSlope]:
        """A batch for `mlp`: pixels (B, D), and the criterion as a function of its logits."""
        competing = self.heads.competing(batch)
        x = self.transform.view(batch.x).to(self.flat.grad.dtype)
        return x, lambda z: self.criterion.with_slope(z, batch.y, competing)

    def state_dict(self) -> dict[str, Any]:
        """What the rest of a run depends on: weights, statistics, the optimizer's state."""
        return {
            "theta": self.flat.theta.detach(),
            "channels_last": self.flat.channels_last,
            "buffers": dict(self.net.named_buffers()),
            "moved": None if self.moved is self.flat.theta else self.moved.detach(),
            "optimizer": self.optimizer.state_dict(),
            "masked": self.heads.masked,
            "evaluated": self.evaluated,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load it in place: the parameters stay views of theta."""
        before = state["channels_last"]
        if before != self.flat.channels_last:
            raise UserError(
                f"it was written with runtime.channels_last={str(before).lower()}, on another "
                "device; go on there"
            )
        self.flat.theta.copy_(state["theta"])
        for name, buffer in self.net.named_buffers():
            buffer.copy_(state["buffers"][name])
        if state["moved"] is not None:
            self.drive(nn.Parameter(state["moved"]))
        self.optimizer.load_state_dict(state["optimizer"])
        self.heads.masked, self.evaluated = state["masked"], state["evaluated"]

    def _fill_by_engine(self, batch: Batch) -> Tensor:
        return self._engine(self.loss, (batch,), has_aux=False)

    def _fill_by_mlp(self, batch: Batch) -> Tensor:
        assert self.mlp is not None
        return self.mlp.fill(*self.mlp_inputs(batch))

    def _held_still(self, value: Tensor) -> Tensor:
        """Take parameters that may not move out of `flat.grad`; returns the value, detached."""
        if self._movable is not None:
            self.flat.grad.mul_(self._movable)
        return value.detach()

    def _count(self, *args: Any) -> None:
        self.evaluated += sum(len(a.y) for a in args if isinstance(a, Batch))

    def _sgd_step(self, batch: Batch, lr: float) -> Tensor:
        """theta <- theta - lr gradient of the augmented batch's loss, which is returned."""
        if self.mlp is not None:
            self._count(batch)
            return self.mlp.descend(*self.mlp_inputs(batch), lr)
        loss = self.loss_gradient(batch)
        self.flat.theta.detach().sub_(self.flat.grad, alpha=lr)
        return loss
