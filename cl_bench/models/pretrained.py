"""Backbones, which are pre-trained networks without head: finding, checking, loading, writing.

A backbone is one safetensors file with the network's parameters and statistics, in half or full
precision. Its header says how it was trained (`Provenance`, as JSON). Weights for ImageNet that
others publish are in `imagenet`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cl_bench.base.exceptions import UserError
from cl_bench.base.files import fresh_path, write_text
from cl_bench.models.head import head_name, head_of
from cl_bench.models.imagenet import CLASSES, WEIGHTS, ImageNetWeights

SHIPPED = Path(__file__).parent / "backbones"


@dataclass(frozen=True)
class Provenance:
    """How a backbone was trained; a run that loads it must have this `model` and `transform`."""

    name: str
    model: dict[str, Any]  # the keys of the model config that fix it: target, width, activation
    transform: dict[str, Any]  # mean and std of the training pixels
    data: dict[str, Any]  # name, hash and origin of the training data
    recipe: dict[str, Any]  # the config of the training
    accuracy: float | None  # on the test images of the training data's classes
    commit: str | None
    versions: dict[str, str]
    side: int | None = None  # pixels that images are resized to; None: they keep their size
    licence: str | None = None  # of published weights
    part: str | None = None  # the part of the network that is stored; None: all but the head


def names() -> list[str]:
    """The names that `model.pretrained` may have; it may also be a path."""
    return [*sorted(file.stem for file in SHIPPED.glob("*.safetensors")), *WEIGHTS]


def resolve_name(model: Mapping[str, Any]) -> str | None:
    """The backbone that `model.pretrained` selects: a name, a path, or None.

    auto selects the one that was trained with this model; UserError where there is not exactly one.
    """
    if model["pretrained"] != "auto":
        return model["pretrained"]
    fitting = [name for name in names() if _fits(provenance(name).model, model)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(f"model.pretrained=auto: more than one fits; name one of {fitting}")
    spelled = ", ".join(
        f"{k}={model[k]}" for k in ("_target_", "width", "depth", "activation") if k in model
    )
    raise UserError(
        f"model.pretrained=auto: no backbone comes with {spelled}; there are {', '.join(names())}; "
        "give the path of one that scripts/pretrain.py wrote, or use model.pretrained=null"
    )


def trained_activation(model: Mapping[str, Any]) -> str | None:
    """The activation that the backbone of `model` was trained with; None where it has none.

    With model.pretrained=auto it is that of the one backbone whose other keys are the model's, and
    None where there is not exactly one.
    """
    name = model["pretrained"]
    if name is None:
        return None
    if name != "auto":
        return provenance(name).model.get("activation")
    others = [provenance(other).model for other in names()]
    fitting = [m for m in others if _fits(m, {**model, "activation": m.get("activation")})]
    return fitting[0].get("activation") if len(fitting) == 1 else None


def _fits(wanted: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    return all(model.get(key) == value for key, value in wanted.items())


def backbone_hash(model: Mapping[str, Any]) -> str | None:
    """The SHA-256 of the backbone's file, which identifies it under any name; None: no backbone."""
    name = resolve_name(model)
    return None if name is None else backbone_info(name)["sha256"]


def find_file(name: str) -> Path:
    """The file of a backbone that this package or the user made; UserError where there is none."""
    shipped, given = SHIPPED / f"{name}.safetensors", Path(os.path.expanduser(name))
    for file in (shipped, given):
        if file.is_file():
            return file
    raise UserError(
        f"model.pretrained={name}: no such backbone; there are {', '.join(names())}, the path of a "
        "file that scripts/pretrain.py wrote, and null"
    )


def provenance(name: str) -> Provenance:
    """The provenance of a backbone, read without its tensors."""
    if name in WEIGHTS:
        return _published(WEIGHTS[name])
    file = find_file(name)
    try:
        with safe_open(file, framework="pt") as stored:
            return Provenance(**json.loads((stored.metadata() or {})["provenance"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"model.pretrained={name}: {file} was not written by scripts/pretrain.py"
        ) from error


def _published(weights: ImageNetWeights) -> Provenance:
    return Provenance(
        weights.name,
        weights.model,
        weights.transform,
        data={"name": "ImageNet-1k", "layout": "torchvision"},
        recipe={},
        accuracy=weights.accuracy,
        commit=None,
        versions={},
        side=weights.side,
        licence=weights.licence,
    )


def backbone_info(name: str) -> dict[str, Any]:
    """The provenance of a backbone and the hash of its file, for the record."""
    published = WEIGHTS.get(name)
    if published is not None:
        return asdict(_published(published)) | {"sha256": published.sha256}
    sha = hashlib.sha256(find_file(name).read_bytes()).hexdigest()
    return asdict(provenance(name)) | {"sha256": sha}


def load(net: Any, name: str, with_head: bool) -> None:
    """Copy a backbone's values into `net`; its head is kept unless `with_head`.

    Of a backbone that is a part of a network, all other values are kept. Raises UserError where
    names or shapes differ.
    """
    if with_head and head_of(net).out_features != CLASSES:
        raise UserError(
            f"model.head_init=pretrained: the head of {name} has {CLASSES} classes, the data has "
            f"{head_of(net).out_features}; use model.head_init=zero or same"
        )
    stored = WEIGHTS[name].read(with_head) if name in WEIGHTS else _read_tensors(name)
    present = net.state_dict() if with_head else _backbone(net, provenance(name).part)
    wrong = [k for k in {*stored, *present} if k not in stored or k not in present]
    wrong += [k for k in present if k in stored and stored[k].shape != present[k].shape]
    if wrong:
        raise UserError(
            f"model.pretrained={name}: the network is another one ({min(wrong)} differs); it was "
            f"trained as {_format_model(provenance(name).model)}"
        )
    with torch.no_grad():
        for key, value in present.items():
            value.copy_(stored[key])


def save(net: nn.Module, origin: Provenance, file: Path, half: bool) -> None:
    """Write a backbone with its provenance in the header, and the provenance as a JSON file too."""
    tensors = {k: _to_stored(k, v, half) for k, v in _backbone(net, origin.part).items()}
    text = json.dumps(asdict(origin), indent=1)
    file.parent.mkdir(parents=True, exist_ok=True)
    with fresh_path(file) as fresh:
        save_file(tensors, fresh, metadata={"provenance": text})
    write_text(file.with_suffix(".json"), text + "\n")


def _to_stored(key: str, value: Tensor, half: bool) -> Tensor:
    """A tensor in float16 where `half`, else in float32; UserError where it overflows.

    Vectors, such as batch norm's statistics, keep float32: they are few, and may have large values.
    """
    dtype = torch.float16 if half and value.dim() > 1 else torch.float32
    tensor = value.detach().cpu().to(dtype).contiguous()
    if not bool(tensor.isfinite().all()):
        raise UserError(f"{key}: not finite in {dtype}; write the backbone in full precision")
    return tensor


def check(name: str, model: Mapping[str, Any], transform: Mapping[str, Any]) -> None:
    """Raise UserError where a run's model or normalisation differs from the backbone's.

    Nothing is loaded yet. Another activation is allowed for a backbone that is chosen by name: the
    run adapts it, and says so at its end.
    """
    origin = provenance(name)
    for key, value in origin.model.items():
        if model.get(key) != value and key != "activation":
            raise UserError(
                f"model.{key}={model.get(key)}: model.pretrained={name} was trained as "
                f"{_format_model(origin.model)}"
            )
    for key, value in origin.transform.items():
        if transform[key] != value:
            wanted = f"dataset.transform.{key}={value}".replace(" ", "")
            raise UserError(
                f"dataset.transform.{key}={transform[key]}: model.pretrained={name} was trained "
                f"on other pixels; use {wanted}"
            )


def _format_model(model: dict[str, Any]) -> str:
    return ", ".join(f"model.{k}={v}" for k, v in model.items())


def _backbone(net: nn.Module, part: str | None) -> dict[str, Tensor]:
    """Every parameter and buffer except the head's, or those of a part alone, by name."""
    head, values = f"{head_name(net)}.", net.state_dict()
    if part is not None:
        return {k: v for k, v in values.items() if k.startswith(f"{part}.")}
    return {k: v for k, v in values.items() if not k.startswith(head)}


def _read_tensors(name: str) -> dict[str, Tensor]:
    with safe_open(find_file(name), framework="pt") as stored:
        return {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
