"""A network with its loss, the gradient of that loss, and the optimizer's step along it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cl_bench.core.criteria import Criterion
from cl_bench.core.direct import LossOfLogits, of_theta, without_autograd
from cl_bench.core.gradient import Objective, clip_norm, make_engine
from cl_bench.core.inner_loop import InnerLoop
from cl_bench.core.network import BatchNorm, NetworkFunction
from cl_bench.core.optim import Optimizer, capturable, is_plain_sgd, load_state
from cl_bench.core.runtime import Runtime
from cl_bench.core.types import Batch, Snapshot, Task, Transform


class Learner(NetworkFunction):
    """A network with its loss and optimizer: `gradient` fills `flat.grad`, `step` moves theta.

    Eight functions compute a gradient. Which one to call:

    gradient of               | augments first | batch augmented already | augments, then `step`
    mean loss on a batch      | `gradient`     | `loss_gradient`         | `descend`
    objective(theta, *args)   | `gradient_of`  | `differentiate`         | `descend_on`
    objective with 2 outputs  |                | `differentiate_with`    |
    loss(logits, batch, *args)|                | `differentiate_logits`  |

    The second column serves a method that needs the same augmented batch more than once: it calls
    `augmented` itself. All functions count into `sample_gradients`, leave out frozen parameters,
    and return the loss or value, detached and on the device.
    """

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
        self.rng = machine.memory  # CPU generator for the draws of a method and its buffer
        self.weight_decay = weight_decay
        self._make_optimizer = optimizer if machine.graphs is None else capturable(optimizer)
        self.optimizer, self.optimized = self._make_optimizer([self.flat.theta]), self.flat.theta
        self.task: Task | None = None  # the task that is learned now
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self.lr_factor: Any = 1.0  # the schedule's, on all learning rates; may be a tensor
        self.sample_gradients = 0  # number of gradients so far, a batch of B counted as B
        self._decay_mask: Tensor | None = None  # (P,): the weight decay of each parameter
        self._unfrozen: Tensor | None = None  # (P,) bool: parameters that may change; None: all
        self.clip: float | None = None  # largest norm of a step's gradient, before weight decay
        self.precondition: Callable[[Tensor], Tensor] | None = None  # of `flat.grad` in `step`
        self._engine = make_engine(self)
        self.direct, sequence = without_autograd(self, criterion)
        self._objectives: dict[Any, Callable] = {}  # of `differentiate_logits`
        self.inner = InnerLoop(self, self._sgd_step, self._count, sequence)

    def begin_task(
        self, live: Tensor, tasks: Tensor, live_at_end: Tensor | None, fresh: bool = True
    ) -> None:
        """Set the classes that compete during a task, and the optimizer that moves theta.

        live         (T, K) bool: the classes that compete for a sample of each task now
        tasks        ids of the tasks that are learned now: one, or all of a joined stream
        live_at_end  (T, K) bool: `live` after the last task; None: all classes
        fresh        start an optimizer without state. One that goes on has momentum, which moves
                     head rows of classes that do not compete, though their gradient is zero
        """
        self.reveal(live, tasks, live_at_end)
        self.anneal(1.0)
        if fresh or self.optimized is not self.flat.theta:
            self.restart_optimizer(self.flat.theta)

    def restart_optimizer(self, vector: nn.Parameter) -> None:
        """Let a fresh optimizer move `vector` by its `grad`, until the next task begins."""
        vector.grad = torch.zeros_like(vector) if vector.grad is None else vector.grad
        self.optimized, self.optimizer = vector, self._make_optimizer([vector])
        self.anneal(self.lr_factor)

    def reveal(self, live: Tensor, tasks: Tensor, live_at_end: Tensor | None) -> None:
        """Set the classes that compete, whose head rows alone decay, and keep the optimizer.

        Called alone when a run continues within a task, and before the first task.
        """
        self.heads.reveal(live, live_at_end)
        used = self.heads.in_use(live[tasks].any(0)) if self.weight_decay else None
        self._decay_mask = None if used is None else used * self.weight_decay

    def anneal(self, factor: float | Tensor) -> None:
        """Multiply the config's learning rate by `factor`; methods read `lr_factor` for theirs."""
        self.lr_factor = factor
        for group, lr in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = lr * factor

    def train(self, frozen: bool, train_biases: bool = False) -> None:
        """Set training mode; `frozen` fixes batch norm, but not its biases with `train_biases`."""
        self.frozen = frozen
        self._set_mode(True)
        fixed = BatchNorm, "weight" if train_biases else None
        self._unfrozen = self.flat.mask_outside(*fixed) if frozen else None
        if self._unfrozen is not None and self._decay_mask is not None:
            self._decay_mask *= self._unfrozen

    def snapshot_logits(self, snapshot: Snapshot, batch: Batch) -> Tensor:
        found = None if self.direct is None else self.direct.logits_at(snapshot.theta, batch)
        return super().snapshot_logits(snapshot, batch) if found is None else found

    def losses(self, theta: Tensor, batch: Batch) -> Tensor:
        """(B,): each sample's loss over the classes that compete for its task."""
        return self.criterion(self.logits(theta, batch), batch.y, self.heads.competing(batch))

    def loss(self, theta: Tensor, batch: Batch) -> Tensor:
        """The mean of `losses`."""
        return self.losses(theta, batch).mean()

    def gradient(self, batch: Batch) -> Tensor:
        """Augment the batch and fill `flat.grad` with the gradient of its mean loss."""
        return self.loss_gradient(self.augmented(batch))

    def loss_gradient(self, batch: Batch) -> Tensor:
        """`gradient` for a batch that is augmented already."""
        self._count(batch)
        return self._zero_frozen(self._fill(batch))

    def gradient_of(self, objective: Objective, *args: Any) -> Tensor:
        """Augment the batches in `args`; fill `flat.grad` with d objective(theta, *args) / d theta.

        Returns the objective's value, detached. With runtime.compile there is one graph for each
        objective: pass a function or a bound method, not a new lambda each time.
        """
        return self.differentiate(
            objective, *(self.augmented(a) if isinstance(a, Batch) else a for a in args)
        )

    def differentiate(self, objective: Objective, *args: Any) -> Tensor:
        """`gradient_of` for batches that are augmented already."""
        self._count(*args)
        return self._zero_frozen(self._engine(objective, args, has_aux=False))

    def differentiate_with(self, objective: Callable, *args: Any) -> tuple[Tensor, Tensor]:
        """`differentiate` for an objective that returns (value, tensor); returns both, detached.

        DER stores the tensor, the logits of the batch.
        """
        self._count(*args)
        value, aux = self._engine(objective, args, has_aux=True)
        return self._zero_frozen(value), aux.detach()

    def differentiate_logits(
        self, loss: LossOfLogits, batch: Batch, *args: Any, apart: tuple[int, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """Of loss(logits, batch, *args): its value and the logits; `apart`: see `of_theta`."""
        self._count(batch)
        if self.direct is not None:
            return self.direct.fill_of_logits(loss, batch, args)
        if (loss, apart) not in self._objectives:  # the same function each time, for the compiler
            self._objectives[loss, apart] = of_theta(self, loss, apart)
        value, logits = self._engine(self._objectives[loss, apart], (batch, *args), has_aux=True)
        return self._zero_frozen(value), logits.detach()

    @torch.no_grad()
    def step(self) -> None:
        """Clip `flat.grad`, add weight decay, precondition it, and make a step of the optimizer."""
        clip_norm(self.flat.grad, self.clip)
        if self._decay_mask is not None:
            self.flat.grad.addcmul_(self.flat.theta, self._decay_mask)
        if self.precondition is not None:
            self.flat.grad.copy_(self.precondition(self.flat.grad))
        self.optimizer.step()

    def descend(self, batch: Batch) -> Tensor:
        """`gradient`, then `step`; plain SGD of a perceptron leaves `flat.grad` as it was."""
        if self._is_plain_sgd():
            return self._sgd_step(self.augmented(batch), self.lr)
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

    def mask_frozen(self, gradient: Tensor) -> Tensor:
        """Set the entries of a gradient (P,) to 0 where parameters are frozen (batch norm)."""
        return gradient if self._unfrozen is None else gradient * self._unfrozen

    def state_dict(self) -> dict[str, Any]:
        """Parameters, statistics, optimizer state and counters, for a checkpoint."""
        return {
            **self.network_state(),
            "optimized": None if self.optimized is self.flat.theta else self.optimized.detach(),
            "optimizer": self.optimizer.state_dict(),
            "masked": self.heads.masked,
            "sample_gradients": self.sample_gradients,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state in place, so that parameters stay views of theta.

        Raises UserError where the checkpoint has another memory layout (channels_last).
        """
        self.load_network_state(state)
        if state["optimized"] is not None:
            self.restart_optimizer(nn.Parameter(state["optimized"]))
        load_state(self.optimizer, state["optimizer"])
        self.heads.masked, self.sample_gradients = state["masked"], state["sample_gradients"]

    def _fill(self, batch: Batch) -> Tensor:
        if self.direct is None:
            return self._engine(self.loss, (batch,), has_aux=False)
        return self.direct.fill(batch, self.criterion)

    def _is_plain_sgd(self) -> bool:
        """Whether `step` only subtracts lr gradient, and needs no gradient vector for that."""
        changes = self._decay_mask, self.clip, self.precondition, self._unfrozen
        own = self.direct is not None and self.optimized is self.flat.theta
        return own and is_plain_sgd(self.optimizer) and all(each is None for each in changes)

    def _zero_frozen(self, value: Tensor) -> Tensor:
        """Set `flat.grad` to 0 where parameters are frozen; returns `value`, detached."""
        if self._unfrozen is not None:
            self.flat.grad.mul_(self._unfrozen)
        return value.detach()

    def _count(self, *args: Any) -> None:
        self.sample_gradients += sum(len(a.y) for a in args if isinstance(a, Batch))

    def _sgd_step(self, batch: Batch, lr: float) -> Tensor:
        """theta <- theta - lr gradient, without the optimizer; returns the mean loss before it."""
        if self.direct is not None:
            self._count(batch)
            return self.direct.descend(batch, self.criterion, lr)
        loss = self.loss_gradient(batch)
        self.flat.theta.detach().sub_(self.flat.grad, alpha=lr)
        return loss
