"""Refuses an optimizer that cannot be used, by building it on a small parameter and stepping once.

The signatures of PyTorch's optimizers do not say which values they allow; their constructors raise
errors instead. Weight decay is left out, since `Learner.step` adds it.
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
from cl_bench.config.schema import as_yaml

SAFE_LR = 1e-3  # used where the given learning rate may be what is wrong


def check(optimizer: dict[str, Any]) -> None:
    """Raise UserError where it cannot be built, cannot step, or has a weight decay of its own."""
    target = optimizer["_target_"]
    own = {k: v for k, v in optimizer.items() if not k.startswith("_") and k != "weight_decay"}
    requirement = option_types.unmet_requirement(own.get("momentum", 0.0), Factor)
    if requirement is not None and target.startswith("torch.optim."):  # which take any momentum
        raise UserError(f"optimizer.momentum={own['momentum']}: must be {requirement}")
    if _needs_closure(target):
        raise UserError(
            f"optimizer._target_={target}: its step needs a closure that evaluates the loss again; "
            "use one whose step needs none, torch.optim.Adam or cl_bench.core.optim.SGD"
        )
    reason = _error_of(target, own)
    if reason is not None:
        raise _user_error(target, own, reason)
    if _decays(target, own):
        raise UserError(
            f"optimizer._target_={target}: has a weight decay of its own, which would also "
            "decay the rows of classes to come; use torch.optim.Adam, cl_bench.core.optim.SGD or "
            "another one, with optimizer.weight_decay"
        )


def _needs_closure(target: str) -> bool:
    """Whether its `step` has an argument without a default."""
    _, *others = inspect.signature(get_object(target).step).parameters.values()
    return any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in others)


def _stepped(target: str, options: dict[str, Any]) -> Tensor:
    """A parameter of ones, of shape (4,), after one step with a gradient of zeros."""
    theta = nn.Parameter(torch.ones(4))
    theta.grad = torch.zeros(4)
    optimizer = get_object(target)([theta], **options)
    _ = [group["lr"] for group in optimizer.param_groups]  # annealing sets it, so it must be there
    optimizer.step()
    return theta.detach()


def _error_of(target: str, options: dict[str, Any]) -> str | None:
    """The optimizer's error message for these options; None where it accepts them."""
    try:
        theta = _stepped(target, options)
    except Exception as error:
        return one_line(error)
    return None if theta.isfinite().all() else "a step is not finite"


def _user_error(target: str, options: dict[str, Any], reason: str) -> UserError:
    """A UserError that names the one option at fault, or the optimizer where there is no such one.

    An option is at fault if the optimizer accepts the others without it.
    """
    for name, value in options.items():
        others = {k: v for k, v in options.items() if k != name}
        if _error_of(target, {**others, "lr": SAFE_LR} if name == "lr" else others) is None:
            return UserError(f"optimizer.{name}={as_yaml(value)}: {target} refuses it: {reason}")
    return UserError(f"optimizer._target_={target}: refuses its options: {reason}")


def _decays(target: str, options: dict[str, Any]) -> bool:
    """Whether a parameter with a zero gradient moves, with a learning rate of 1."""
    rate = {"lr": 1.0} if "lr" in inspect.signature(get_object(target)).parameters else {}
    return not bool((_stepped(target, {**options, **rate}) == 1).all())
