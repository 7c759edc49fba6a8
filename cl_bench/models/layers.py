"""What all networks share: activations, initialisation, dropout, and changes to batch norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from types import MethodType
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Activation = Literal["relu", "relu6", "leaky_relu", "elu", "gelu", "tanh"]
Init = Literal["torch", "xavier", "kaiming"]
HeadInit = Literal["zero", "same"]
PublishedHead = HeadInit | Literal["pretrained"]  # of networks whose published weights have a head

ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


def batch_norm(channels: int, kind: Callable = nn.BatchNorm2d, **options: float) -> nn.Module:
    """A new batch norm layer without a count of batches (`drop_batch_count`)."""
    return drop_batch_count(kind(channels, **options))


def drop_batch_count(norm: nn.Module) -> nn.Module:
    """Remove the buffer `num_batches_tracked`, which is not used.

    torch.func refuses to increase it in place. Loading a state_dict ignores it as well: PyTorch
    adds it to one from a file without version numbers (safetensors), and would then refuse it.
    """
    norm.num_batches_tracked = None  # type: ignore[assignment]
    norm.register_load_state_dict_pre_hook(_without_count)
    return norm


def _without_count(norm: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    state_dict.pop(f"{prefix}num_batches_tracked", None)


def accept_single_samples(net: nn.Module) -> None:
    """Make every batch norm use its running statistics for a batch of one sample.

    A single sample has no variance over the batch: in training mode PyTorch refuses it where each
    channel is one number, and normalises an image by its own pixels elsewhere. For such a batch the
    running statistics are not updated.
    """
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = MethodType(_forward, module)


def _forward(norm: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    """PyTorch's forward of batch norm, (B, C, ...) -> (B, C, ...), except for B = 1."""
    if norm.training and len(x) == 1 and norm.running_mean is not None:
        return by_running_statistics(norm, x)
    return type(norm).forward(norm, x)


def by_running_statistics(norm: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    """The forward of batch norm in training as it is in evaluation."""
    norm.training = False
    try:
        return type(norm).forward(norm, x)
    finally:
        norm.training = True


class RandomLayer(nn.Module):
    """A layer that draws from a generator of the run, so that a resumed run makes the same draws.

    In training mode it drops with probability p.
    """

    p: float

    def __init__(self) -> None:
        super().__init__()
        self.rng: Generator | None = None  # set by `set_dropout_generator`


class Dropout(RandomLayer):
    """In training mode each value is 0 with probability p, and the others times 1 / (1 - p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        kept = torch.rand(x.shape, generator=self.rng, device=x.device) >= self.p
        return x * kept / (1 - self.p)


def set_dropout_generator(net: nn.Module, rng: Generator) -> None:
    """Make all layers of a network that draw, such as dropout, draw from `rng`."""
    for module in net.modules():
        if isinstance(module, RandomLayer):
            module.rng = rng


def batch_norm_buffers(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The running statistics of all batch norm layers, by their names in the network."""
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield from module.named_buffers(prefix=name)


def linear_layers(widths: Sequence[int], activation: Activation) -> list[nn.Module]:
    """Linear layers from each width to the next one, each followed by the activation."""
    pairs = [(nn.Linear(*pair), ACTIVATIONS[activation]()) for pair in pairwise(widths)]
    return [layer for pair in pairs for layer in pair]


class WithSignedFeatures:
    """What networks with the option `signed_features` share."""

    @classmethod
    def unused_options(cls, options: dict[str, Any]) -> set[str]:
        """Without it a config has the hash that it had before there was this option."""
        return set() if options.get("signed_features") else {"signed_features"}


def sequence(layers: Sequence[nn.Module], signed: bool) -> nn.Sequential:
    """The layers one after the other; if `signed`, no activation comes after the last with weights.

    Without layers with weights they stay as they are.
    """
    weighted = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear | nn.Conv2d)]
    last = weighted[-1] if signed and weighted else len(layers)
    kept = [layer for layer in layers[last:] if type(layer) not in ACTIVATIONS.values()]
    return nn.Sequential(*layers[:last], *kept)


def plain_attention(net: nn.Module) -> AbstractContextManager:
    """Inside the block attention is computed step by step, if the network has any.

    Fused attention has neither a derivative in forward mode nor a second derivative.
    """
    return sdpa_kernel(SDPBackend.MATH) if _attends(net) else nullcontext()


def _attends(net: nn.Module) -> bool:
    known = getattr(net, "_attends", None)
    if known is None:
        known = any("Attention" in type(module).__name__ for module in net.modules())
        net._attends = known  # type: ignore[assignment]
    return known


def replace_module(net: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the submodule called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, module)


def initialise(net: nn.Module, head: nn.Linear, init: Init, head_init: PublishedHead) -> None:
    """Initialise every Linear and Conv2d by `init`, and with head_init=zero set the head to 0."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            _initialise_layer(module, init)
    if head_init == "zero":
        for parameter in head.parameters():
            nn.init.zeros_(parameter)


def _initialise_layer(module: nn.Linear | nn.Conv2d, init: Init) -> None:
    if init == "torch":
        return
    if init == "xavier":
        nn.init.xavier_uniform_(module.weight)
    else:
        nn.init.kaiming_normal_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
