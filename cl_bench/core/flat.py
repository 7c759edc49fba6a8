"""All trainable parameters of a network as views of one contiguous vector theta (P,)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


class FlatParams:
    """The vectors theta (P,) and grad (P,), of which every parameter and its gradient is a view.

    Build it after the network is on its device. Two operations of PyTorch would separate the
    parameters from theta and must not be used: `zero_grad(set_to_none=True)`, and `deepcopy` of the
    network (keep `theta.clone()` instead).
    With `channels_last`, a convolution's weight (O, I, H, W) is stored as (O, H, W, I) and seen
    through a permuted view, which is exactly PyTorch's channels_last layout.
    """

    def __init__(self, net: nn.Module, channels_last: bool) -> None:
        params = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self.owners = {name: net.get_submodule(name.rpartition(".")[0]) for name in params}
        self.shapes = {name: p.shape for name, p in params.items()}
        self.sizes = [p.numel() for p in params.values()]
        self.channels_last = channels_last
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        self.slices = {
            name: slice(end - size, end)
            for name, size, end in zip(params, self.sizes, ends, strict=True)
        }
        self.theta = nn.Parameter(torch.cat([self._stored(p.data) for p in params.values()]))
        self.grad = torch.zeros_like(self.theta.data)
        self.theta.grad = self.grad
        values, grads = self.views(self.theta.data), self.views(self.grad)
        for name, p in params.items():
            p.data, p.grad = values[name], grads[name]

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Split `vector` (P,) into views by parameter name; differentiable in `vector`."""
        parts = vector.split(self.sizes)
        return {
            name: self._shaped(part, shape)
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }

    def parts(self, vector: Tensor, chosen: Callable[[nn.Module], bool]) -> Iterator[Tensor]:
        """Views of `vector` (P,) for the parameters of those modules that `chosen` accepts."""
        for name, view in self.views(vector).items():
            if chosen(self.owners[name]):
                yield view

    def mask_outside(self, kind: type[nn.Module], only: str | None = None) -> Tensor | None:
        """(P,) bool: False for parameters of modules of this kind; None where there are none.

        only  the name of one of their parameters, such as weight; None: all of them
        """
        mask = torch.ones_like(self.grad, dtype=torch.bool)
        for name, view in self.views(mask).items():
            own = name.rpartition(".")[2]
            if isinstance(self.owners[name], kind) and only in (None, own):
                view.zero_()
        return None if bool(mask.all()) else mask

    def _stored(self, p: Tensor) -> Tensor:
        return (p.permute(0, 2, 3, 1) if self._permuted(p.shape) else p).reshape(-1)

    def _shaped(self, part: Tensor, shape: torch.Size) -> Tensor:
        if not self._permuted(shape):
            return part.view(shape)
        out, channels, height, width = shape
        return part.view(out, height, width, channels).permute(0, 3, 1, 2)

    def _permuted(self, shape: torch.Size) -> bool:
        return self.channels_last and len(shape) == 4
