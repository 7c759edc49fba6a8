"""Networks of timm by their names, with the weights that timm has; it is an optional package."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import timm
from torch import nn

from cl_bench.base.bounds import Text
from cl_bench.base.exceptions import UserError
from cl_bench.models.layers import HeadInit, initialise
from cl_bench.models.library import built, fetched, tagged


def _require_whole_patches(name: str, side: int, arguments: dict[str, Any]) -> None:
    """Raise UserError where patches would leave out a margin of the images."""
    named = re.search(r"patch(\d+)", name)
    size = arguments.get("patch_size", int(named[1]) if named else 1)
    if isinstance(size, int) and size > 0 and side % size and "dynamic_img_pad" not in arguments:
        raise UserError(
            f"model.name={name}: patches of {size} pixels do not fill images of {side}; use "
            "+model.arguments.patch_size=<a divisor of it>, or another dataset.transform.resize"
        )


def timm_network(
    shape: Sequence[int],
    num_classes: int,
    name: Text,
    weights: Text | None,
    head_init: HeadInit,
    arguments: dict[str, Any],
) -> nn.Module:
    """The network `name` of timm for images of `shape` (C, H, W).

    weights    None: as initialised | DEFAULT | a tag of timm's, such as augreg_in21k
    arguments  more arguments of timm.create_model
    """
    given: dict[str, Any] = {"in_chans": shape[0], "num_classes": num_classes}
    if timm.get_pretrained_cfg_value(name, "fixed_input_size"):
        given["img_size"] = tuple(shape[1:])
        _require_whole_patches(name, shape[1], arguments)
    given |= arguments

    def make() -> nn.Module:
        return timm.create_model(tagged(name, weights), pretrained=weights is not None, **given)

    net = built(make) if weights is None else fetched(f"{name} {weights}", lambda: built(make))
    classifier: Any = net.get_classifier()  # type: ignore[operator]
    names = [key for key, module in net.named_modules() if module is classifier]
    if not names or not isinstance(classifier, nn.Linear):
        raise UserError(f"model.name={name}: its last layer is not linear; use another network")
    net.head_name = names[0]  # type: ignore[assignment]
    initialise(net, classifier, "torch", head_init)
    return net
