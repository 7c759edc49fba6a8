"""Prepare a network for training: load pre-trained weights, fold batch norm, linearise, freeze."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from cl_bench.base.exceptions import UserError
from cl_bench.models import pretrained as backbones
from cl_bench.models.fold import fold
from cl_bench.models.head import head_of
from cl_bench.models.imagenet import WEIGHTS
from cl_bench.models.linearized import HeadMode, Linearized

Norm = Literal["batch", "folded"]
PREPARE_KEYS = {  # keys that every model has in addition to its constructor's arguments
    "pretrained": str | None,
    "norm": Norm,
    "linearize": bool,
    "head_mode": HeadMode,
    "fixed": str | None,
    "head": str | None,
}


def prepare_network(
    net: nn.Module,
    x: Tensor,
    pretrained: str | None,
    norm: Norm,
    linearize: bool,
    head_mode: HeadMode,
    with_head: bool,
    fixed: str | None = None,
) -> nn.Module:
    """Turn a freshly initialised network into the one that a run trains; `x` is any input.

    pretrained           name or path of a backbone to load; None: keep the initial values
    with_head            load the backbone's head as well
    norm=folded          fold batch norm into the layers before it, after loading
    linearize            then linearise the network at its present parameters (`Linearized`)
    head_mode=head_only  train only the head
    fixed                the name of a submodule whose parameters stay as they are
    """
    if pretrained is not None:
        backbones.load(net, pretrained, with_head)
    if norm == "folded":
        fold(net, x)
    if head_mode == "head_only":
        net.requires_grad_(False)
        head_of(net).requires_grad_(True)
        return net
    if fixed is not None:
        part_of(net, fixed).requires_grad_(False)
    return Linearized(net, head_mode) if linearize else net


def part_of(net: nn.Module, name: str, key: str = "model.fixed=") -> nn.Module:
    """The submodule that `key` names; UserError where there is none with parameters."""
    parts = dict(net.named_children())
    found = dict(net.named_modules()).get(name)
    if not name or found is None or not any(True for _ in found.parameters()):
        known = [part for part, module in parts.items() if any(True for _ in module.parameters())]
        raise UserError(
            f"{key}{name}: the network has no such part with parameters; there are "
            f"{', '.join(known)}, and their own parts"
        )
    if not any(
        p.requires_grad for p in net.parameters() if id(p) not in map(id, found.parameters())
    ):
        raise UserError(f"{key}{name}: it has all parameters of the network; name a part of it")
    return found


def check(model: dict[str, Any], has_batch_norm: bool, transform: dict[str, Any]) -> None:
    """Raise UserError where the keys of a model contradict each other; no data is loaded yet."""
    mode, linear = model["head_mode"], model["linearize"]
    if mode == "linearized" and not linear:
        raise UserError("model.head_mode=linearized: needs model.linearize=true")
    if mode == "linearized" and model.get("head_init") == "zero":
        raise UserError(
            "model.head_mode=linearized: the backbone's share is w0 J psi, and with "
            "model.head_init=zero w0 is 0; use model.head_init=same, or model.head_mode=bilinear"
        )
    fixed = model.get("fixed")
    if fixed is not None and (linear or mode == "head_only"):
        raise UserError(
            f"model.fixed={fixed}: goes with neither model.linearize=true nor "
            "model.head_mode=head_only; leave one of them out"
        )
    if has_batch_norm and model["norm"] == "batch" and (linear or mode == "head_only" or fixed):
        key = f"fixed={fixed}" if fixed else "head_mode=head_only"
        key = "linearize=true" if linear else key
        raise UserError(
            f"model.{key}: batch norm's statistics would move under a fixed backbone; "
            "use model.norm=folded"
        )
    name = backbones.resolve_name(model)
    if model.get("head_init") == "pretrained" and name not in WEIGHTS:
        raise UserError(
            f"model.head_init=pretrained: only {', '.join(WEIGHTS)} come with a head, and "
            f"model.pretrained is {name}"
        )
    if name is not None:
        backbones.check(name, model, transform)
