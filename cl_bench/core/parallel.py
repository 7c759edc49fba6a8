"""Processes that train one network together, as `torchrun -m cl_bench.run ...` starts them.

All of them have the same data, draw the same random numbers and hold the same parameters. Of each
batch a process sends its share through the network. The logits of all shares are put together, so
that each process computes the loss of the whole batch, and the gradients of the shares are summed
before the step. So a method need not know of the processes, and its steps are those of one process,
up to rounding. The first process alone writes files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cl_bench.base.exceptions import UserError
from cl_bench.core.types import Batch, Task, at_least_float32
from cl_bench.models.layers import RandomLayer, by_running_statistics

PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LOST = ("onnection closed", "onnection reset", "onnection refused", "recvValue", "NCCL", "gloo")
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a run: this one's rank, from 0, and their number."""

    rank: int = 0
    number: int = 1

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.number > 1

    def share(self, count: int) -> slice:
        """This process' part of `count` samples, in one piece; empty where there are too few."""
        return slice(self.rank * count // self.number, (self.rank + 1) * count // self.number)

    def chunks(self, task: Task, size: int) -> Iterator[tuple[Batch, bool]]:
        """The samples in stored order, at most `size` at a time, and whether a part is this one's.

        Each process has parts of its own as far as there are enough samples.
        """
        for number, batch in enumerate(task.chunks(min(size, -(-len(task) // self.number)))):
            yield batch, number % self.number == self.rank

    def sum_(self, *tensors: Tensor) -> None:
        """Sum each tensor over the processes, in place."""
        for tensor in tensors if self.several else ():
            if tensor.is_contiguous():
                dist.all_reduce(tensor)
            else:
                whole = tensor.contiguous()
                dist.all_reduce(whole)
                tensor.copy_(whole)

    def gathered(self, own: Tensor, count: int) -> Tensor:
        """(count, ...): the shares of all processes, of which `own` is this one's.

        A gradient goes back to the own share alone.
        """
        return _Gathered.apply(own, self, count)  # type: ignore[return-value]

    def same_(self, *tensors: Tensor) -> None:
        """Set each tensor to that of the first process, in place: kernels may round differently."""
        for tensor in tensors if self.several else ():
            dist.broadcast(tensor, 0)

    def one_after_the_other(self, work: Callable[[], T]) -> T:
        """Call `work` in the first process, and then in the others."""
        if self.rank:
            dist.barrier()
        found = work()
        if self.several and not self.rank:
            dist.barrier()
        return found


ALONE = Processes()


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, processes: Processes, count: int) -> Tensor:
        ctx.where = processes.share(count)
        whole = own.new_zeros(count, *own.shape[1:])
        whole[ctx.where] = own
        processes.sum_(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        return slope[ctx.where], None, None


class _Summed(torch.autograd.Function):
    """The sum over the processes; so is its gradient, as each uses the sum in its own share."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, processes: Processes) -> Tensor:
        ctx.processes, total = processes, x.clone()
        processes.sum_(total)
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        total = slope.clone()
        ctx.processes.sum_(total)
        return total, None


def is_lost(error: BaseException) -> bool:
    """Whether another process has ended that this one was to meet."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)


def rank() -> int:
    """The rank that torchrun gave this process; 0 without torchrun."""
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def local_rank() -> int | None:
    """The rank among the processes of this machine; None where there is one process."""
    several = dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1
    return int(os.environ["LOCAL_RANK"]) if several else None


def join(device: torch.device, held: ExitStack) -> Processes:
    """The processes that torchrun started, which meet here; they part when `held` is closed."""
    if local_rank() is None:
        return ALONE
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    held.callback(dist.destroy_process_group)
    return Processes(dist.get_rank(), dist.get_world_size())


def prepare(net: nn.Module, processes: Processes, whole: Callable[[], int | None]) -> None:
    """Let batch norm see the whole batch; UserError where a layer draws, as each process would.

    whole  gives the number of samples of the batch of which each process has a share; None where
           each has all of them
    """
    for module in net.modules() if processes.several else ():
        if isinstance(module, RandomLayer) and module.p:
            raise UserError(
                f"torchrun: {type(module).__name__} draws for each sample, in each process by "
                "itself; use a model without it, or one process"
            )
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if type(module) not in PLAIN_NORMS or module.running_mean is None:
            raise UserError(
                f"torchrun: {type(module).__name__} is none of "
                f"{', '.join(kind.__name__ for kind in PLAIN_NORMS)} with running statistics, and "
                "would see the share of each process by itself; use another model, or one process"
            )
        alone = module.forward  # as `models.layers.accept_single_samples` set it

        def forward(self: Any, x: Tensor, alone: Callable[[Tensor], Tensor] = alone) -> Tensor:
            count = whole()
            if count is None or not self.training:
                return alone(x)
            return _normalised(self, x, count, processes)

        module.forward = MethodType(forward, module)  # type: ignore[method-assign]


def _normalised(norm: Any, x: Tensor, samples: int, processes: Processes) -> Tensor:
    """Batch norm in training of a share x (B, C, ...), by the statistics of the whole batch."""
    if samples == 1:
        return by_running_statistics(norm, x)
    kind, x = x.dtype, at_least_float32(x)
    shape, dims = [1, -1] + [1] * (x.dim() - 2), [d for d in range(x.dim()) if d != 1]
    count = samples * prod(x.shape[2:])
    mean = _Summed.apply(x.sum(dims), processes) / count
    centred = x - mean.view(shape)
    variance = _Summed.apply(centred.square().sum(dims), processes) / count
    _update(norm, mean.detach(), variance.detach() * (count / max(count - 1, 1)))
    scaled = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.weight is not None:
        scaled = scaled * norm.weight.view(shape) + norm.bias.view(shape)
    return scaled.to(kind)


def _update(norm: Any, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics, as PyTorch does, with the unbiased variance."""
    tracked, rate = norm.num_batches_tracked, norm.momentum
    if tracked is not None:
        tracked.add_(1)
        rate = 1 / float(tracked) if rate is None else rate
    norm.running_mean.lerp_(mean.to(norm.running_mean), rate)
    norm.running_var.lerp_(variance.to(norm.running_var), rate)
