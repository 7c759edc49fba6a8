"""Networks of timm by their names, with the weights that timm has; it is an optional package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
from torch import nn

from cl_bench.base.bounds import Text
from cl_bench.base.exceptions import UserError
from cl_bench.models.layers import HeadInit, initialise
from cl_bench.models.library import built, fetched, tagged


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
