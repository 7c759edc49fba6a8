"""Gives a config the pixels and the activation that its pre-trained backbone was trained with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cl_bench.base.exceptions import UserError
from cl_bench.config.nodes import resolved

if TYPE_CHECKING:
    from cl_bench.models.pretrained import Provenance


def apply(cfg: DictConfig, overrides: Iterable[str]) -> None:
    """Set the keys that a backbone fixes, except for those that `overrides` set.

    These are mean and std of the pixels, the activation, and the size of the images, where the
    backbone's is known and neither a size nor a crop is chosen. What is wrong in a config is left
    for `check_config` to refuse.
    """
    if OmegaConf.select(cfg, "model.pretrained", throw_on_resolution_failure=False) is None:
        return
    from cl_bench.models import pretrained  # imports PyTorch

    typed = {override.split("=")[0].lstrip("+~") for override in overrides}
    try:
        plain = resolved(cfg)
        model: dict[str, Any] = plain["model"]
        activation = pretrained.trained_activation(model)
        if activation is not None and "model.activation" not in typed:
            cfg.model.activation = model["activation"] = activation
        name = pretrained.resolve_name(model)
        if name is None:
            return
        for key, value in _pixels(plain["dataset"], pretrained.provenance(name)).items():
            if f"dataset.transform.{key}" not in typed:
                cfg.dataset.transform[key] = value
    except (UserError, OmegaConfBaseException, KeyError, TypeError, AttributeError):
        return


def _pixels(dataset: dict[str, Any], origin: Provenance) -> dict[str, Any]:
    """The keys of dataset.transform that the backbone fixes."""
    from cl_bench.data.check import shape_and_classes

    known, chosen = shape_and_classes(dataset), dataset["transform"]
    if known is None or origin.side is None or chosen["crop"] or chosen["resize"]:
        return origin.transform
    side = known[0][1]
    return origin.transform if side == origin.side else origin.transform | {"resize": origin.side}
