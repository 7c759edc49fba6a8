"""A network as a function of one vector, with its loss, its gradient and its step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from cl_bench.core.criteria import Criterion
from cl_bench.core.flat import FlatParams
from cl_bench.core.gradient import Backward, Objective
from cl_bench.core.inner_loop import Inner
from cl_bench.core.mlp_gradient import Slope, chain
from cl_bench.core.optim import Optimizer
from cl_bench.core.types import Batch, Snapshot, Task, Transform
from cl_bench.models.layers import accept_single_samples, dropouts, statistics


class Machine(Protocol):
    """What a learner needs of the runtime: generators, mixed precision, a compiler or none."""

    memory: Generator  # on the CPU: what a method draws (replay)
    draws: Generator  # on the device: augmentation
    precision: Literal["fp32", "bf16"]
    channels_last: bool
    compiler: Callable[[Callable], Callable] | None

    def autocast(self) -> AbstractContextManager: ...


class Learner:
    """theta moves, nothing else does: `gradient` fills `flat.grad`, `step` applies it."""

    def __init__(
        self,
        net: nn.Module,
        criterion: Criterion,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        weight_decay: float,
        transform: Transform,
        machine: Machine,
    ) -> None:
        self.net, self.criterion, self.transform, self.machine = net, criterion, transform, machine
        self.rng = machine.memory  # for a method's own draws (CPU): replay, sampled memories
        self.flat = FlatParams(net, machine.channels_last)
        self.weight_decay, self._build = weight_decay, optimizer
        self.optimizer = optimizer([self.flat.theta])
        self.moved = self.flat.theta  # what the optimizer moves
        self.task: Task | None = None  # the one that is learned now
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self.annealed = 1.0  # what learning rates are multiplied by now
        self.masked = self.full_precision = self.frozen = False
        self.evaluated = 0  # gradients so far, of one sample each
        self._held: Tensor | None = None  # (P,) bool: parameters that may move
        self._backward = Backward(self.flat, machine.compiler)
        perceptron = chain(net, self.flat) if machine.precision == "fp32" else None
        self.chain = perceptron if machine.compiler is None else None  # else the compiler's graphs
        self.inner = Inner(self, perceptron)
        dropouts(net, machine.draws)
        accept_single_samples(net)

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
        self.moved, self.optimizer = vector, self._build([vector])
        self.anneal(self.annealed)

    def reveal(self, live: Tensor, tasks: Tensor, ever: Tensor | None) -> None:
        """Set what competes alone: on the way back from a checkpoint, or before the first task."""
        self.live, self.ever = live, ever
        self.masked = self.masked or not bool(live.all())  # stays: one compiled graph for all
        used = self.in_use(live[tasks].any(0)) if self.weight_decay else None
        self._decay_mask = None if used is None else used * self.weight_decay

    def anneal(self, factor: float) -> None:
        """Set the learning rate to so much of the config's; a method's own rates follow."""
        self.annealed = factor
        for group, lr in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = lr * factor

    def train(self, frozen: bool) -> None:
        """Training mode; `frozen`: batch norm's statistics and weights stay as they are."""
        self.frozen = frozen
        self._mode(True)
        self._held = self.flat.outside(nn.modules.batchnorm._BatchNorm) if frozen else None
        if self._held is not None and self._decay_mask is not None:
            self._decay_mask *= self._held

    def logits(self, theta: Tensor, batch: Batch) -> Tensor:
        """(B, K), unmasked; pure but for batch norm's running statistics in training mode."""
        x = self.transform.view(batch.x).to(theta.dtype)
        with self._autocast():
            if theta is self.flat.theta:
                return self.net(x)
            return functional_call(self.net, self.flat.views(theta), (x,))

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """(B, d): what the network makes of a batch before its head."""
        x = self.transform.view(batch.x).to(self.flat.theta.dtype)
        with self._autocast():
            network: Any = self.net
            return network.features(x)

    def losses(self, theta: Tensor, batch: Batch) -> Tensor:
        """(B,): each sample's loss over the classes that are live for its task."""
        return self.criterion(self.logits(theta, batch), batch.y, self.competing(batch))

    def competing(self, batch: Batch) -> Tensor | None:
        """(B, K) bool: the classes that are live for each sample's task; None: all of them."""
        return self.live[batch.t] if self.masked else None

    def competing_in(self, task: Task) -> Tensor:
        """(K,) bool: the classes that are live for some of a task's samples."""
        return self.live[task.t.unique()].any(0)

    def reachable(self, batch: Batch) -> Tensor | None:
        """(B, K) bool: the classes that will ever compete for each sample's task; None: all."""
        return None if self.ever is None else self.ever[batch.t]

    def loss(self, theta: Tensor, batch: Batch) -> Tensor:
        """The mean of `losses`."""
        return self.losses(theta, batch).mean()

    def gradient(self, objective: Objective, *args: Any) -> Tensor:
        """Fill `flat.grad` with d objective(theta, *args) / d theta; returns the detached value.

        Batches among `args` are augmented first, by one draw outside any graph. A compiled
        objective is kept by its identity: pass a function or a bound method, not a new lambda.
        """
        return self.differentiate(
            objective, *(self.augmented(a) if isinstance(a, Batch) else a for a in args)
        )

    def differentiate(self, objective: Objective, *args: Any) -> Tensor:
        """`gradient` of batches that are augmented already."""
        return self._filled(objective, args, False).detach()

    def differentiate_with(self, objective: Callable, *args: Any) -> tuple[Tensor, Tensor]:
        """The same for an objective that returns a tensor beside its value (logits to store)."""
        value, beside = self._filled(objective, args, True)
        return value.detach(), beside.detach()

    @torch.no_grad()
    def step(self) -> None:
        """One step of the optimizer on theta, weight decay included."""
        if self._decay_mask is not None:
            self.flat.grad.addcmul_(self.flat.theta, self._decay_mask)
        self.optimizer.step()

    def descend(self, objective: Objective, *args: Any) -> Tensor:
        """`gradient`, then `step`."""
        value = self.gradient(objective, *args)
        self.step()
        return value

    @property
    def lr(self) -> float:
        """The optimizer's learning rate now."""
        return self.optimizer.param_groups[0]["lr"]

    def held(self, gradient: Tensor) -> Tensor:
        """The gradient (P,) without the parameters that may not move now (frozen batch norm)."""
        return gradient if self._held is None else gradient * self._held

    def in_use(self, live: Tensor) -> Tensor:
        """(P,): 1 for each parameter, 0 in the head's rows of classes that are not `live` (K,)."""
        mask = torch.ones_like(self.flat.grad)
        for rows in self.flat.parts(mask, lambda module: module is self.net.head):
            rows[~live] = 0.0
        return mask

    def augmented(self, batch: Batch) -> Batch:
        """The batch under one random draw of the augmentation."""
        return batch._replace(x=self.transform.draw(batch.x, self.machine.draws))

    def snapshot(self) -> Snapshot:
        """A copy of what `logits` depends on, to ask later (a teacher)."""
        buffers = {name: b.detach().clone() for name, b in statistics(self.net)}
        return Snapshot(self.flat.theta.detach().clone(), buffers)

    @torch.no_grad()
    def go_back(self, then: Snapshot) -> None:
        """Be the network of that time again."""
        self.flat.theta.copy_(then.theta)
        for name, buffer in statistics(self.net):
            buffer.copy_(then.buffers[name])

    def recall(self, then: Snapshot, batch: Batch) -> Tensor:
        """(B, K): what the network said then, in evaluation mode, without a graph."""
        x = self.transform.view(batch.x).to(then.theta.dtype)
        with self.evaluating(self.full_precision), torch.no_grad(), self._autocast():
            return functional_call(self.net, {**self.flat.views(then.theta), **then.buffers}, (x,))

    @contextmanager
    def evaluating(self, full_precision: bool = False) -> Iterator[None]:
        """Evaluation mode inside (without mixed precision for a curvature); as before outside."""
        before = self.net.training, self.full_precision
        self._mode(False)
        self.full_precision = full_precision
        try:
            yield
        finally:
            self._mode(before[0])
            self.full_precision = before[1]

    def _autocast(self) -> AbstractContextManager:
        return nullcontext() if self.full_precision else self.machine.autocast()

    def _mode(self, training: bool) -> None:
        self.net.train(training)
        if self.frozen:
            for module in self.net.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _filled(self, objective: Objective, args: tuple, more: bool) -> Any:
        """Fill `flat.grad`; returns what the objective returned, `more` than its value perhaps."""
        self.evaluated += sum(len(a.y) for a in args if isinstance(a, Batch))
        if self.chain is not None and objective == self.loss:
            found = self.chain.fill(*self.seen(*args))
        else:
            found = self._backward(objective, args, more)
        if self._held is not None:
            self.flat.grad.mul_(self._held)
        return found

    def seen(self, batch: Batch) -> tuple[Tensor, Slope]:
        """A batch for the chain: what it reads, and the criterion as a function of its logits."""
        competing = self.competing(batch)
        x = self.transform.view(batch.x).to(self.flat.grad.dtype)
        return x, lambda z: self.criterion.with_slope(z, batch.y, competing)
