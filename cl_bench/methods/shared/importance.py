"""The importance of each layer in HALRP, by the curvature of the loss (Li et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from hydra.utils import get_object
from torch import Tensor

from cl_bench.base.exceptions import UserError
from cl_bench.core.flat import FlatParams
from cl_bench.curvature.base import Curvature
from cl_bench.curvature.layer_hessian import LayerProducts

Importance = Literal["mean", "trace", "norm", "none", "flat"]


def check_importance(importance: Importance, curvature: dict[str, Any]) -> None:
    """Raise UserError where the importance of a layer would be a trace that may be negative."""
    kind = get_object(curvature["_target_"])
    indefinite = not kind.penalty or kind.may_be_negative(curvature)
    if indefinite and importance in ("trace", "mean"):
        raise UserError(
            f"method.importance={importance}: a Hessian's trace may be negative; use norm, or "
            "another curvature"
        )


def layer_importances(
    curvature: Curvature | LayerProducts,
    flat: FlatParams,
    names: Sequence[str],
    kind: Literal["mean", "trace", "norm"],
) -> Tensor:
    """(L,): the norm or trace of each weight's block, or (mean) its trace over its size."""
    size = curvature.block_norm if kind == "norm" else curvature.block_trace
    found = torch.stack([size(flat.slices[name]) for name in names])
    sizes = [flat.shapes[name].numel() if kind == "mean" else 1 for name in names]
    return found / found.new_tensor(sizes)
