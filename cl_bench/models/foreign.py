"""Makes networks of other libraries fit: what draws random numbers, changes in place, or is fused.

Their parameters keep their values, and in evaluation mode they compute what they did.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from cl_bench.base.exceptions import UserError
from cl_bench.models.head import head_of
from cl_bench.models.layers import Dropout, RandomLayer, drop_batch_count, replace_module

OWN = "cl_bench.models."


class SelfAttention(nn.Module):
    """Multi-head self-attention of linear layers, in place of `nn.MultiheadAttention`.

    That layer computes with its parameters directly. Here they belong to two linear layers, so that
    they have the curvature of linear layers: in_proj (d -> 3 d: queries, keys, values) and out_proj
    (d -> d). The input is (B, T, d).
    """

    batch_first = True
    in_proj_bias = None  # keeps nn.TransformerEncoderLayer from its fused path

    def __init__(self, of: nn.MultiheadAttention) -> None:
        super().__init__()
        size, bias = of.embed_dim, of.in_proj_bias is not None
        device = of.out_proj.weight.device
        self.heads, self.dropout = of.num_heads, Dropout(of.dropout)
        self.in_proj = nn.Linear(size, 3 * size, bias=bias, device=device)
        self.out_proj = nn.Linear(size, size, bias=bias, device=device)
        with torch.no_grad():
            self.in_proj.weight.copy_(of.in_proj_weight)
            self.out_proj.weight.copy_(of.out_proj.weight)
            if bias:
                self.in_proj.bias.copy_(of.in_proj_bias)
                self.out_proj.bias.copy_(of.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """(B, T, d) -> (B, T, d), and None for the weights, which are not given."""
        if query is not key or key is not value or key_padding_mask is not None or need_weights:
            raise UserError(
                "model: attention between two sequences, with a padding mask, or whose weights are "
                "asked for, is not supported; write it with linear layers of its own"
            )
        parts = self.in_proj(query).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)  # (B, heads, T, d / heads) each
        if self.dropout.p and self.training:
            weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
            return self.out_proj((self.dropout(weights) @ v).transpose(1, 2).flatten(2)), None
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=is_causal)
        return self.out_proj(seen.transpose(1, 2).flatten(2)), None


class DropPath(RandomLayer):
    """Stochastic depth: with probability p a sample's (`by_row`) or the whole input becomes 0."""

    def __init__(self, p: float, by_row: bool) -> None:
        super().__init__()
        self.p, self.by_row = p, by_row

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        size = (len(x) if self.by_row else 1, *[1] * (x.dim() - 1))
        kept = torch.rand(size, generator=self.rng, device=x.device) >= self.p
        return x * kept / (1 - self.p)


def adopt(net: nn.Module, x: Tensor) -> nn.Module:
    """Make a network fit; `x` (1, C, H, W) is any input.

    Dropout and stochastic depth draw from the run's generator, activations are not in place, batch
    norm has no count of batches, and self-attention has linear layers. Raises UserError where the
    network draws from PyTorch's global generator in another way, since a run that is continued
    would draw other numbers.
    """
    if type(net).__module__.startswith(OWN):
        return net
    for name, module in [*net.named_modules()]:
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            drop_batch_count(module)
        new = _replacement(module)
        if new is not None and name:
            replace_module(net, name, new.train(module.training))
    if x.device.type != "meta":
        _try_forward(net, x)
    return net


def _replacement(module: nn.Module) -> nn.Module | None:
    make = REPLACEMENTS.get(type(module).__name__)
    foreign = type(module).__module__.startswith(("torch", "timm."))
    return make(module) if make is not None and foreign else None


def _attention(of: Any) -> nn.Module | None:
    plain = of._qkv_same_embed_dim and of.bias_k is None and not of.add_zero_attn
    return SelfAttention(of) if plain and of.batch_first else None


def _plain_layer_norm(of: Any) -> nn.LayerNorm:
    """timm's own layer, which computes the same."""
    new = nn.LayerNorm(of.normalized_shape, of.eps, of.weight is not None, of.bias is not None)
    new.weight, new.bias = of.weight, of.bias
    return new


REPLACEMENTS: dict[str, Callable[[Any], nn.Module | None]] = {  # by the name of a foreign class
    "Dropout": lambda of: Dropout(of.p),
    "StochasticDepth": lambda of: DropPath(of.p, of.mode == "row"),  # torchvision
    "DropPath": lambda of: DropPath(of.drop_prob or 0.0, True),  # timm
    "MultiheadAttention": _attention,
    "LayerNorm": lambda of: None if type(of) is nn.LayerNorm else _plain_layer_norm(of),
}


def _try_forward(net: nn.Module, x: Tensor) -> None:
    """Raise UserError where a pass in training mode gives no logits, or draws globally."""
    trial = copy.deepcopy(net).train()
    for module in trial.modules():
        if isinstance(module, RandomLayer):
            module.rng = Generator(x.device)
    before = torch.get_rng_state()
    with torch.no_grad():
        logits = trial(x.expand(2, *x.shape[1:]).contiguous())
    if not isinstance(logits, Tensor) or logits.shape != (2, head_of(net).out_features):
        what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"model: of 2 images the network returns {what} in training, not 2 rows of logits; "
            "without auxiliary heads it may (+model.arguments.aux_logits=false)"
        )
    if not torch.get_rng_state().equal(before):
        torch.set_rng_state(before)
        raise UserError(
            "model: the network draws from PyTorch's global generator in training, which a "
            "continued run cannot repeat; use nn.Dropout, or layers of cl_bench.models.layers"
        )
