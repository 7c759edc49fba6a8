"""What all networks share: activations by name, ways to start, batch norm that can be compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

Activation = Literal["relu", "leaky_relu", "elu", "gelu", "tanh"]
Init = Literal["torch", "xavier", "kaiming"]
HeadInit = Literal["zero", "same"]

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


def batch_norm(channels: int, kind: Callable = nn.BatchNorm2d) -> nn.Module:
    """Batch norm that does not count batches (`stop_counting`)."""
    return stop_counting(kind(channels))


def stop_counting(norm: nn.Module) -> nn.Module:
    """Leave `num_batches_tracked` out: unused, and torch.func refuses to count in place.

    Loading a state_dict then leaves it out, too: PyTorch adds it to one from a file without
    versions (safetensors), and would call it unexpected.
    """
    norm.num_batches_tracked = None  # type: ignore[assignment]
    norm.register_load_state_dict_pre_hook(_without_count)
    return norm


def _without_count(norm: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    state_dict.pop(f"{prefix}num_batches_tracked", None)


def accept_single_samples(net: nn.Module) -> None:
    """Let every batch norm of a network see its running statistics where a batch has one sample.

    One sample has no variance of its own: in training mode PyTorch refuses it where a channel is
    one number, and normalises an image by itself elsewhere. The running statistics stay as they
    are then. It holds whoever calls the network: new samples, replay, inner loops.
    """
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = MethodType(_normalised, module)


def _normalised(norm: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    """(B, C, ...) -> (B, C, ...), as PyTorch's own forward but for B = 1."""
    if norm.training and len(x) == 1 and norm.running_mean is not None:
        mean, variance = norm.running_mean, norm.running_var
        return F.batch_norm(x, mean, variance, norm.weight, norm.bias, False, 0.0, norm.eps)
    return type(norm).forward(norm, x)


class Dropout(nn.Module):
    """Each value is 0 with probability p, the others are scaled by 1 / (1 - p), in training mode.

    Drawn from `rng`, which the learner sets: a run's draws are its own, and go on where it stopped.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.rng: Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        kept = torch.rand(x.shape, generator=self.rng, device=x.device) >= self.p
        return x * kept / (1 - self.p)


def set_dropout_generator(net: nn.Module, rng: Generator) -> None:
    """Let all of a network's dropouts draw from one generator."""
    for module in net.modules():
        if isinstance(module, Dropout):
            module.rng = rng


def batch_norm_buffers(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that training moves: batch norm's, by their names in the network."""
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield from module.named_buffers(prefix=name)


def put(net: nn.Module, name: str, module: nn.Module) -> None:
    """A module in another's place."""
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, module)


def initialise(net: nn.Module, head: nn.Linear, init: Init, head_init: HeadInit) -> None:
    """Start every Linear and Conv2d in the same way, the head perhaps at zero (house.md D4)."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            _start(module, init)
    if head_init == "zero":
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)


def _start(module: nn.Linear | nn.Conv2d, init: Init) -> None:
    if init == "torch":
        return
    if init == "xavier":
        nn.init.xavier_uniform_(module.weight)
    else:
        nn.init.kaiming_normal_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
