"""What is done to any network before it is trained: pre-trained, folded, linearized, frozen."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from cl_bench.base.exceptions import UserError
from cl_bench.models import pretrained as backbones
from cl_bench.models.fold import fold
from cl_bench.models.linearized import HeadMode, Linearized

Norm = Literal["batch", "folded"]
PREPARED = {  # keys of every model beside its constructor's
    "pretrained": str | None,
    "norm": Norm,
    "linearize": bool,
    "head_mode": HeadMode,
}


def prepared(
    net: nn.Module,
    x: Tensor,
    pretrained: str | None,
    norm: Norm,
    linearize: bool,
    head_mode: HeadMode,
    with_head: bool,
) -> nn.Module:
    """The network that a run trains, from one with its own initial values; x is any input.

    with_head            the backbone's own head too, where it has one
    norm=folded          batch norm merged into the convolutions, after the backbone is loaded
    linearize            the tangent model at what is there then (`Linearized`)
    head_mode=head_only  the head alone is trained
    """
    if pretrained is not None:
        backbones.load(net, pretrained, with_head)
    if norm == "folded":
        fold(net, x)
    if head_mode == "head_only":
        net.requires_grad_(False)
        net.head.requires_grad_(True)
        return net
    return Linearized(net, head_mode) if linearize else net


def check(model: dict[str, Any], has_batch_norm: bool, transform: dict[str, Any]) -> None:
    """UserError, before any data is loaded, where a model's keys make no sense together."""
    mode, linear = model["head_mode"], model["linearize"]
    if mode == "linearized" and not linear:
        raise UserError("model.head_mode=linearized: needs model.linearize=true")
    if mode == "linearized" and model.get("head_init") == "zero":
        raise UserError(
            "model.head_mode=linearized: the backbone's share is w0 J psi, and with "
            "model.head_init=zero w0 is 0; use model.head_init=same, or model.head_mode=bilinear"
        )
    if has_batch_norm and model["norm"] == "batch" and (linear or mode == "head_only"):
        key = "linearize=true" if linear else "head_mode=head_only"
        raise UserError(
            f"model.{key}: batch norm's statistics would move under a fixed backbone; "
            "use model.norm=folded"
        )
    name = backbones.chosen(model)
    if model.get("head_init") == "pretrained" and name != backbones.IMAGENET:
        raise UserError(
            f"model.head_init=pretrained: only model.pretrained={backbones.IMAGENET} has a head, "
            f"and it is {name}"
        )
    if name is not None:
        backbones.check(name, model, transform)
