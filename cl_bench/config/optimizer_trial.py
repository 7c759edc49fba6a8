"""Whether a config's optimizer can serve: it is built on a small parameter, and takes a step.

What a foreign optimizer allows is not written in a signature; but it says so itself when it is
tried. Weight decay is done by `Learner.step`, so it is left out of the trial.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from hydra.utils import get_object
from torch import Tensor, nn

from cl_bench.base.bounds import Factor
from cl_bench.base.exceptions import UserError, one_line
from cl_bench.config import option_types
from cl_bench.config.schema import typed

LR = 1e-3  # of the trial, where the one that is given may be what is wrong


def check(optimizer: dict[str, Any]) -> None:
    """UserError where it cannot be built or cannot step, or decays weights in its own way."""
    target = optimizer["_target_"]
    own = {k: v for k, v in optimizer.items() if not k.startswith("_") and k != "weight_decay"}
    requirement = option_types.fault(own.get("momentum", 0.0), Factor)
    if requirement is not None and target.startswith("torch.optim."):  # which take any momentum
        raise UserError(f"optimizer.momentum={own['momentum']}: must be {requirement}")
    if _needs_closure(target):
        raise UserError(
            f"optimizer._target_={target}: its step needs a closure that evaluates the loss again; "
            "use one whose step needs none, torch.optim.Adam or cl_bench.core.optim.SGD"
        )
    reason = _refusal(target, own)
    if reason is not None:
        raise _refused(target, own, reason)
    if _decays(target, own):
        raise UserError(
            f"optimizer._target_={target}: moves parameters whose gradient is zero, by a weight "
            "decay of its own; weight decay is L2 on the parameters in use: use torch.optim.Adam, "
            "cl_bench.core.optim.SGD or another, with optimizer.weight_decay"
        )


def _needs_closure(target: str) -> bool:
    """Whether its `step` has an argument without a default."""
    _, *others = inspect.signature(get_object(target).step).parameters.values()
    return any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in others)


def _stepped(target: str, options: dict[str, Any]) -> Tensor:
    """A parameter of ones, (4,) as the flat vector is, after a step along a gradient of zero."""
    theta = nn.Parameter(torch.ones(4))
    theta.grad = torch.zeros(4)
    optimizer = get_object(target)([theta], **options)
    _ = [group["lr"] for group in optimizer.param_groups]  # what annealing sets
    optimizer.step()
    return theta.detach()


def _refusal(target: str, options: dict[str, Any]) -> str | None:
    """What it says against its options; None where it takes them."""
    try:
        theta = _stepped(target, options)
    except Exception as error:
        return one_line(error)
    return None if theta.isfinite().all() else "a step is not finite"


def _refused(target: str, options: dict[str, Any], reason: str) -> UserError:
    """Names the option without which it would serve, or itself where no single one is at fault."""
    for name, value in options.items():
        others = {k: v for k, v in options.items() if k != name}
        if _refusal(target, {**others, "lr": LR} if name == "lr" else others) is None:
            return UserError(f"optimizer.{name}={typed(value)}: {target} refuses it: {reason}")
    return UserError(f"optimizer._target_={target}: refuses its options: {reason}")


def _decays(target: str, options: dict[str, Any]) -> bool:
    """Whether a parameter without a gradient moves, at a rate that shows it."""
    rate = {"lr": 1.0} if "lr" in inspect.signature(get_object(target)).parameters else {}
    return not bool((_stepped(target, {**options, **rate}) == 1).all())
