"""Gives a config the pixels and the activation that its pre-trained backbone was trained with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cl_bench.base.exceptions import UserError
from cl_bench.config.nodes import resolved

PIXELS = {"mean", "std", "crop", "resize"}  # keys of dataset.transform that are read or set


def apply(cfg: DictConfig, overrides: Iterable[str]) -> dict[str, Any]:
    """Set the keys that a backbone fixes, except for those that `overrides` set.

    These are mean and std of the pixels, the activation, and the size of the images, where the
    backbone's is known and neither a size nor a crop is chosen. Returns the keys that changed with
    their new values. What is wrong in a config is left for `check_config` to refuse.
    """
    keys = (override.split("=")[0].lstrip("+~") for override in overrides)
    typed = [key for key in keys if "." in key]  # the others choose options of groups
    try:
        wanted = _fixed(cfg, typed)
    except (UserError, OmegaConfBaseException, TypeError, AttributeError, KeyError, ValueError):
        return {}  # values of a wrong type, which are not checked yet
    changed = {k: v for k, v in wanted.items() if OmegaConf.select(cfg, k) != v}
    for key, value in changed.items():
        OmegaConf.update(cfg, key, value)
    return changed


def _fixed(cfg: DictConfig, typed: list[str]) -> dict[str, Any]:
    """The keys that the backbone fixes and that were not typed."""
    weights = OmegaConf.select(cfg, "model.weights")
    if OmegaConf.select(cfg, "model.pretrained") is None and weights is None:
        return {}
    # only these: Hydra's own settings, where a config has them, cannot be resolved outside of a job
    plain, found = {key: resolved(cfg[key]) for key in ("model", "dataset")}, dict[str, Any]()
    model, transform = plain["model"], OmegaConf.select(cfg, "dataset.transform") or {}
    if not set(transform) >= PIXELS or "_target_" not in (cfg.dataset.get("source") or {}):
        return {}  # `check_config` says what is missing
    from cl_bench.models import library, pretrained  # imports PyTorch

    def free(key: str) -> bool:
        return not any(key == one or key.startswith(f"{one}.") for one in typed)

    if weights is not None:
        library.check(model)
        pixels = library.pixels(model["_target_"], model["name"], weights)
        return _free_pixels(pixels, plain, transform, free)
    activation = pretrained.trained_activation(model)
    if activation is not None and free("model.activation"):
        model["activation"] = found["model.activation"] = activation
    name = pretrained.resolve_name(model)
    if name is None:
        return found
    origin = pretrained.provenance(name)
    pixels = {**origin.transform, "resize": origin.side}
    return found | _free_pixels(pixels, plain, transform, free)


def _free_pixels(
    pixels: dict[str, Any],
    plain: dict[str, Any],
    transform: dict[str, Any],
    free: Callable[[str], bool],
) -> dict[str, Any]:
    """Mean, std and, where neither a size nor a crop is chosen, the size of a backbone's images."""
    from cl_bench.data.published import known_contents  # imports PyTorch

    contents = known_contents(plain["dataset"]["source"])
    wanted = {key: value for key, value in pixels.items() if key != "resize"}
    side = pixels["resize"]
    if contents is not None and not transform["crop"] and not transform["resize"]:
        wanted |= {} if side in (None, contents.shape[1]) else {"resize": side}
    named = {f"dataset.transform.{key}": value for key, value in wanted.items()}
    return {key: value for key, value in named.items() if free(key)}
