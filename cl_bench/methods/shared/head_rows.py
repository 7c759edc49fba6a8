"""Refuses linearised networks where a method needs the features, or the rows of the head."""

from __future__ import annotations

from torch import nn

from cl_bench.base.exceptions import UserError
from cl_bench.models.head import head_of
from cl_bench.models.linearized import Linearized


def refuse_linearised(net: nn.Module, method: str) -> None:
    """Raise UserError where no layer has the network's features, or they are not trained."""
    own = {id(parameter) for parameter in head_of(net).parameters()}
    if not any(p.requires_grad for p in net.parameters() if id(p) not in own):
        raise UserError(
            f"model.head_mode=head_only: method={method} trains the features of the network; use "
            "model.head_mode=bilinear"
        )
    if isinstance(net, Linearized):
        raise UserError(
            f"model.linearize=true: method={method} trains the features of the network; use "
            "model.linearize=false"
        )


def refuse_linearised_head(net: nn.Module, method: str) -> None:
    """Raise UserError where the head is linearised, so that its rows alone do not decide."""
    if isinstance(net, Linearized) and net.head_mode == "linearized":
        raise UserError(
            f"model.head_mode=linearized: method={method} writes the rows of the head, which is "
            "linearised together with the network; use model.head_mode=bilinear"
        )
