"""What all networks share: activations by name, ways to start, batch norm that can be compiled."""

from __future__ import annotations

from typing import Literal

from torch import nn

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


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Without `num_batches_tracked`: unused, and torch.func refuses to count in place."""
    norm = nn.BatchNorm2d(channels)
    norm.num_batches_tracked = None
    return norm


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
