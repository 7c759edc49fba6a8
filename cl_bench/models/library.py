"""Networks of torchvision by their names, and what is known of them and of those of timm.

The head is replaced by a linear layer with a row for each class. Networks for images of one size,
as vision transformers are, are built for the size of the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from http.client import HTTPException
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from cl_bench.base.bounds import Text
from cl_bench.base.exceptions import UserError, one_line
from cl_bench.models.head import head_of
from cl_bench.models.layers import HeadInit, initialise, replace_module

TORCHVISION = "cl_bench.models.library.torchvision_network"
TIMM = "cl_bench.models.timm_networks.timm_network"
Pixels = dict[str, Any]  # mean and std, and the side of the images as `resize`


def torchvision_network(
    shape: Sequence[int],
    num_classes: int,
    name: Text,
    weights: Text | None,
    head_init: HeadInit,
    arguments: dict[str, Any],
) -> nn.Module:
    """The network `name` of torchvision.models for images of `shape` (C, H, W).

    weights    None: as initialised | DEFAULT | a name such as IMAGENET1K_V1
    arguments  more arguments of torchvision's function
    """
    from torchvision import models

    if shape[0] != 3:
        raise UserError(f"model=torchvision: its networks see 3 channels, the data has {shape[0]}")
    given = {"image_size": shape[1]} if name.startswith("vit_") else {}
    given |= arguments
    if weights is None:
        net = built(lambda: models.get_model(name, weights=None, num_classes=num_classes, **given))
        return _with_head(net, num_classes, num_classes, head_init)
    found = models.get_model_weights(name)[weights]
    classes = len(found.meta["categories"])
    net = built(lambda: models.get_model(name, weights=None, num_classes=classes, **given))
    state = fetched(f"{name} {weights}", lambda: found.get_state_dict(check_hash=True))
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"model.weights={weights}: of another network ({one_line(error)}); the size of its "
            f"images is {pixels(TORCHVISION, name, weights)['resize']}"
        ) from None
    return _with_head(net, classes, num_classes, head_init)


def tagged(name: str, weights: str | None) -> str:
    """The name by which timm has a network with its weights."""
    return name if weights in (None, "DEFAULT") else f"{name}.{weights}"


def built(make: Callable[[], nn.Module]) -> nn.Module:
    """A network; UserError in place of the library's error about its arguments."""
    try:
        return make()
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"model.arguments: {one_line(error, 200)}") from None


def fetched(what: str, fetch: Callable[[], Any]) -> Any:
    """What is downloaded or in the library's cache; UserError where neither can be had."""
    try:
        return fetch()
    except (OSError, RuntimeError, HTTPException, ImportError) as error:
        raise UserError(
            f"model.weights: {what} cannot be loaded ({one_line(error, 200)}); put the file into "
            "the library's cache, or use model.weights=null"
        ) from None


def _with_head(net: nn.Module, classes: int, num_classes: int, head_init: HeadInit) -> nn.Module:
    """Find the last linear layer of `classes` outputs, and replace it where K is another number."""
    names = [
        name
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == classes
    ]
    if not names:
        raise UserError("model.name: the network's last layer is not linear; use another one")
    net.head_name = names[-1]  # type: ignore[assignment]
    if classes != num_classes:
        old = head_of(net)
        replace_module(net, names[-1], nn.Linear(old.in_features, num_classes))
    initialise(net, head_of(net), "torch", head_init)
    return net


def check(model: Mapping[str, Any]) -> None:
    """Raise UserError where a library does not have the network or the weights; loads nothing."""
    target, name, weights = model["_target_"], model.get("name"), model.get("weights")
    if target not in (TORCHVISION, TIMM):
        return
    if target == TIMM and find_spec("timm") is None:
        raise UserError('model=timm: timm is not installed; pip install -e ".[timm]" installs it')
    known = _names(target)
    if name not in known:
        close = get_close_matches(str(name), known, 5, 0.4) or known[:5]
        raise UserError(f"model.name={name}: no such network; there are {', '.join(close)}, ...")
    tags = _weights(target, str(name))
    if weights is not None and weights not in tags:
        there = ", ".join(tags) or "none"
        raise UserError(f"model.weights={weights}: {name} has no such weights; there are {there}")


def _names(target: str) -> list[str]:
    if target == TIMM:
        timm = import_module("timm")  # not a statement: only runs with its networks depend on it
        return timm.list_models()
    from torchvision import models

    return models.list_models(module=models)


def _weights(target: str, name: str) -> list[str]:
    """The values that `weights` may have."""
    if target == TIMM:
        timm = import_module("timm")
        found = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    else:
        from torchvision import models

        found = list(models.get_model_weights(name).__members__)
        found.remove("DEFAULT") if "DEFAULT" in found else None
    return ["DEFAULT", *found] if found else []


def backbone_info(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a record says of a library's weights, with their hash; None where there are none."""
    if model.get("weights") is None or model["_target_"] not in (TORCHVISION, TIMM):
        return None
    library = "timm" if model["_target_"] == TIMM else "torchvision"
    name, weights = model["name"], model["weights"]
    state = fetched(f"{name} {weights}", lambda: _state(model["_target_"], name, weights))
    sha = hashlib.sha256()
    for key, value in sorted(state.items()):
        sha.update(key.encode() + value.contiguous().numpy().tobytes())
    return {
        "name": f"{library} {name} {weights}",
        "sha256": sha.hexdigest(),  # of the tensors
        "model": {key: model[key] for key in ("_target_", "name")},
        "data": {"name": "ImageNet or more, as the library says"},
        "versions": {library: version(library)},
    }


def _state(target: str, name: str, weights: str) -> Mapping[str, Tensor]:
    if target == TIMM:
        timm = import_module("timm")
        return timm.create_model(tagged(name, weights), pretrained=True).state_dict()
    from torchvision import models

    return models.get_model_weights(name)[weights].get_state_dict(check_hash=True)


def pixels(target: str, name: str, weights: str) -> Pixels:
    """Mean, standard deviation and size of the images that weights were trained on."""
    if target == TIMM:
        timm = import_module("timm")
        given = timm.get_pretrained_cfg(tagged(name, weights))
        assert given is not None
        return {
            "mean": [*given.mean],
            "std": [*given.std],
            "resize": given.input_size[-1],
        }
    from torchvision import models

    made = models.get_model_weights(name)[weights].transforms()
    return {"mean": [*made.mean], "std": [*made.std], "resize": made.crop_size[0]}
