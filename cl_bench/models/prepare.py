"""Prepare a network for training: load weights, fold batch norm, freeze, add layers, linearise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict, get_type_hints

from torch import Tensor, nn

from cl_bench.base.bounds import Size
from cl_bench.base.exceptions import UserError
from cl_bench.models import pretrained as backbones
from cl_bench.models.added import with_lora, with_random_features
from cl_bench.models.fold import fold
from cl_bench.models.head import head_of
from cl_bench.models.imagenet import WEIGHTS
from cl_bench.models.linearized import HeadMode, Linearized
from cl_bench.models.prompts import with_prompts

Norm = Literal["batch", "folded"]


class Keys(TypedDict):
    """The keys that every model has in addition to its constructor's arguments."""

    pretrained: str | None
    norm: Norm
    linearize: bool
    head_mode: HeadMode
    fixed: str | None
    head: str | None
    lora: Size | None
    random_features: Size | None
    prompts: tuple[Size, Size, Size] | None


PREPARE_KEYS = get_type_hints(Keys, include_extras=True)


def prepare_network(
    net: nn.Module,
    x: Tensor,
    pretrained: str | None,
    norm: Norm,
    linearize: bool,
    head_mode: HeadMode,
    with_head: bool,
    fixed: str | None = None,
    lora: int | None = None,
    random_features: int | None = None,
    prompts: Sequence[int] | None = None,
) -> nn.Module:
    """Turn a freshly initialised network into the one that a run trains; `x` is any input.

    pretrained           name or path of a backbone to load; None: keep the initial values
    with_head            load the backbone's head as well
    norm=folded          fold batch norm into the layers before it, after loading
    linearize            then linearise the network at its present parameters (`Linearized`)
    others               see `trained_network`
    """
    if pretrained is not None:
        backbones.load(net, pretrained, with_head)
    if norm == "folded":
        fold(net, x)
    net = trained_network(net, head_mode, fixed, lora, random_features, prompts)
    return Linearized(net, head_mode) if linearize and head_mode != "head_only" else net


def trained_network(
    net: nn.Module,
    head_mode: HeadMode,
    fixed: str | None,
    lora: int | None,
    random_features: int | None,
    prompts: Sequence[int] | None,
) -> nn.Module:
    """A network with layers added, and without a gradient for the parameters that stay fixed.

    head_mode=head_only  train only the head
    fixed                the name of a submodule whose parameters stay as they are
    lora                 train changes of this rank of the linear layers, and the head
    random_features      the number of random features that take the place of the network's own
    prompts              the number of prompts of a pool, the tokens of each, and those that an
                         image gets; trained with the head alone
    """
    if fixed is not None:
        part = part_of(net, fixed).requires_grad_(False)
        if random_features is not None and head_of(net) in [*part.modules()]:
            raise UserError(
                f"model.fixed={fixed}: the head is in it, and model.random_features="
                f"{random_features} puts a new one in its place; fix another part"
            )
    if lora is not None:
        net = with_lora(net, lora)
    if prompts is not None:
        net = with_prompts(net, *prompts)
    if random_features is not None:
        net = with_random_features(net, random_features)
    if head_mode == "head_only":
        net.requires_grad_(False)
        head_of(net).requires_grad_(True)
    return net


def part_of(net: nn.Module, name: str, key: str = "model.fixed=") -> nn.Module:
    """The submodule that `key` names; UserError where there is none with parameters."""
    parts = dict(net.named_children())
    found = dict(net.named_modules()).get(name)
    if not name or found is None or not any(True for _ in found.parameters()):
        known = [part for part, module in parts.items() if any(True for _ in module.parameters())]
        raise UserError(
            f"{key}{name}: the network has no such part with parameters; there are "
            f"{', '.join(known)}, and their own parts"
        )
    if not any(
        p.requires_grad for p in net.parameters() if id(p) not in map(id, found.parameters())
    ):
        raise UserError(f"{key}{name}: it has all parameters of the network; name a part of it")
    return found


def check(model: dict[str, Any], has_batch_norm: bool, transform: dict[str, Any]) -> None:
    """Raise UserError where the keys of a model contradict each other; no data is loaded yet."""
    mode, linear = model["head_mode"], model["linearize"]
    if mode == "linearized" and not linear:
        raise UserError("model.head_mode=linearized: needs model.linearize=true")
    if mode == "linearized" and model.get("head_init") == "zero":
        raise UserError(
            "model.head_mode=linearized: the backbone's share is w0 J psi, and with "
            "model.head_init=zero w0 is 0; use model.head_init=same, or model.head_mode=bilinear"
        )
    fixing = fixing_key(model)
    if fixing is not None and has_batch_norm and model["norm"] == "batch":
        raise UserError(
            f"model.{fixing}: batch norm's statistics would move under a fixed backbone; "
            "use model.norm=folded"
        )
    name = backbones.resolve_name(model)
    if model.get("head_init") == "pretrained" and model.get("random_features") is not None:
        raise UserError(
            f"model.random_features={model['random_features']}: needs a new head, not that of the "
            "backbone; use model.head_init=same or zero"
        )
    if model.get("head_init") == "pretrained" and name not in WEIGHTS:
        raise UserError(
            f"model.head_init=pretrained: only {', '.join(WEIGHTS)} come with a head, and "
            f"model.pretrained is {name}"
        )
    if name is not None:
        backbones.check(name, model, transform)


def fixing_key(model: dict[str, Any]) -> str | None:
    """The key, with its value, by which a part of the network's parameters is fixed; None for none.

    Raises UserError where there are two.
    """
    keys = ("fixed", "lora", "prompts")
    found = [f"{key}={model[key]}" for key in keys if model.get(key) is not None]
    if model["linearize"]:
        found.append("linearize=true")
    elif model["head_mode"] == "head_only":
        found.append("head_mode=head_only")
    if model.get("prompts") is not None and model.get("random_features") is not None:
        found.append(f"random_features={model['random_features']}")
    if len(found) > 1:
        raise UserError(
            f"model.{found[0]}: model.{found[1]} does not go with it; leave one of them out"
        )
    return found[0] if found else None
