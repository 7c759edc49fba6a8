"""How large a network is, before it is built: whether a curvature and the machine can hold it."""

from __future__ import annotations

import os
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from torch import nn

from cl_bench.data.check import shape_and_classes
from cl_bench.models.prepare import PREPARED
from cl_bench.types import UserError

COPIES = 3  # of the parameters at least: as they are built, as one vector, and its gradient
BYTES = 4  # of a float32


def check(plain: dict[str, Any]) -> None:
    """UserError where a resolved config's network is too large for its curvature or the machine.

    Where the data is not known before it is read, neither is the network.
    """
    known = shape_and_classes(plain["dataset"])
    if known is None:
        return
    count = parameters(plain["model"], *known)
    there, wanted = _memory(), COPIES * BYTES * count
    if there is not None and wanted > there:
        raise UserError(
            f"model: {count:,} parameters take at least {wanted / 2**30:.0f} GiB, this machine has "
            f"{there / 2**30:.0f}; use a smaller one (model.hidden, model.width)"
        )
    curvature = plain["method"].get("curvature")
    if curvature is not None:
        most = get_object(curvature["_target_"]).most_parameters(curvature)
        if most is not None and count > most:
            raise UserError(
                f"curvature: a dense matrix of {count} parameters (at most {most}); use a smaller "
                "model, kfac or diag_fisher"
            )


def parameters(model: dict[str, Any], shape: tuple[int, int, int], num_classes: int) -> int:
    """How many parameters of a resolved `model` are trained; nothing is allocated."""
    own = {key: value for key, value in model.items() if key not in PREPARED}
    with torch.device("meta"):
        net = instantiate(OmegaConf.create(own), _convert_="all")(
            shape=shape, num_classes=num_classes
        )
    trained = net.head if model["head_mode"] == "head_only" else net
    norms = nn.modules.batchnorm._BatchNorm if model["norm"] == "folded" else ()
    left_out = [p for m in trained.modules() if isinstance(m, norms) for p in m.parameters()]
    return sum(p.numel() for p in trained.parameters()) - sum(p.numel() for p in left_out)


def _memory() -> int | None:
    """The bytes of memory that the machine has; None where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
