"""Linearised networks (Mu et al. 2020; LQF, Achille et al. 2021; DLCFT eq. 6 and 7)."""

from __future__ import annotations

import warnings
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from cl_bench.models.head import head_name, head_of
from cl_bench.models.layers import plain_attention, replace_module

HeadMode = Literal["bilinear", "linearized", "head_only"]


class Linearized(nn.Module):
    """A network with features g(x; psi0) + J(x) psi: psi0 is fixed, psi is trained from zero.

    g is the network's body, J its Jacobian in the parameters, and (w, b) the head.

    bilinear    f = w (g + J psi) + b (DLCFT eq. 7): linear in psi, and linear in (w, b)
    linearized  f = w g + b + w0 J psi: the first-order expansion at (psi0, w0, b0)

    One forward pass in forward mode gives g and J psi, and the backward pass goes through J psi
    only. psi has the names and shapes of the parameters of the body.
    """

    def __init__(self, net: nn.Module, head_mode: Literal["bilinear", "linearized"]) -> None:
        super().__init__()
        _load_decompositions()
        head = head_of(net)
        replace_module(net, head_name(net), nn.Identity())
        self.body, self.head = net, head
        self.places = {name.replace(".", "/"): name for name, _ in net.named_parameters()}
        for place, name in self.places.items():
            psi = net.get_parameter(name)
            self.register_buffer(place, psi.detach().clone())
            nn.init.zeros_(psi)
        if head_mode == "linearized":
            self.register_buffer("w0", head.weight.detach().clone())
        self.head_mode = head_mode

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        g, moved = self._dual(x)
        if self.head_mode == "bilinear":
            return self.head(g + moved)
        return self.head(g) + F.linear(moved, self.get_buffer("w0"))

    def head_input(self, x: Tensor) -> Tensor:
        """(B, d): g + J psi."""
        g, moved = self._dual(x)
        return g + moved

    def _dual(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """g(x; psi0) and J(x) psi."""
        psi = dict(self.body.named_parameters())
        with plain_attention(self.body), forward_ad.dual_level():
            theta = {
                name: forward_ad.make_dual(self.get_buffer(place), psi[name])
                for place, name in self.places.items()
            }
            g, moved = forward_ad.unpack_dual(functional_call(self.body, theta, (x,)))
        assert moved is not None
        return g, moved


def _load_decompositions() -> None:
    """Import the module that PyTorch imports for its first dual tensor, without its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import torch._decomp.decompositions_for_jvp  # noqa: F401
