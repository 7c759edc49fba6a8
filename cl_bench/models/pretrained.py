"""Backbones: where they are found, whether they fit, how they are written.

A backbone is one safetensors file: the network's parameters and statistics without the head's, in
half precision or full, and in its header how it came to be (`Provenance`, as JSON).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cl_bench.base.exceptions import UserError
from cl_bench.base.files import fresh_path, require_regular, write_text

SHIPPED = Path(__file__).parent / "backbones"
IMAGENET = "imagenet1k"
PUBLISHED = "resnet18-f37072fd.pth"  # torchvision's IMAGENET1K_V1
PUBLISHED_SHA256 = "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec"
ADDRESS = "https://download.pytorch.org/models"
CLASSES = 1000  # of its head
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class Provenance:
    """How a backbone came to be; `model` and `transform` are what it asks of a run."""

    name: str
    model: dict[str, Any]  # what decides its shape and its function: target, width, activation
    transform: dict[str, Any]  # mean and std of the pixels it was trained on
    data: dict[str, Any]  # name, hash, origin
    recipe: dict[str, Any]  # the config of its training
    accuracy: float | None  # on the test images of its own classes
    commit: str | None
    versions: dict[str, str]


class Headed(Protocol):
    head: nn.Linear


def names() -> list[str]:
    """What `model.pretrained` may be beside a path."""
    return [*sorted(file.stem for file in SHIPPED.glob("*.safetensors")), IMAGENET]


def chosen(model: Mapping[str, Any]) -> str | None:
    """What `model.pretrained` means: auto is the backbone that was trained as this model."""
    if model["pretrained"] != "auto":
        return model["pretrained"]
    fitting = [name for name in names() if _fits(provenance(name).model, model)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(f"model.pretrained=auto: more than one fits; name one of {fitting}")
    spelled = ", ".join(
        f"{k}={model[k]}" for k in ("_target_", "width", "activation") if k in model
    )
    raise UserError(
        f"model.pretrained=auto: no backbone comes with {spelled}; there are {', '.join(names())}; "
        "give the path of one that scripts/pretrain.py wrote, or use model.pretrained=null"
    )


def _fits(wanted: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    return all(model.get(key) == value for key, value in wanted.items())


def identity(model: Mapping[str, Any]) -> str | None:
    """What a backbone is, wherever it lies and whatever it is called: the hash of its file."""
    name = chosen(model)
    return None if name is None else backbone_info(name)["sha256"]


def find(name: str) -> Path | None:
    """The file of a name or path; None for torchvision's weights, which torch keeps."""
    if name == IMAGENET:
        return None
    shipped, given = SHIPPED / f"{name}.safetensors", Path(os.path.expanduser(name))
    for file in (shipped, given):
        if file.is_file():
            return file
    raise UserError(
        f"model.pretrained={name}: no such backbone; there are {', '.join(names())}, the path of a "
        "file that scripts/pretrain.py wrote, and null"
    )


def provenance(name: str) -> Provenance:
    """What is known of a backbone, without its tensors."""
    file = find(name)
    if file is None:
        model = {"_target_": "cl_bench.models.resnet.TorchvisionResNet18", "activation": "relu"}
        seen = {"mean": MEAN, "std": STD}
        data = {"name": "ImageNet-1k", "layout": "torchvision"}
        return Provenance(IMAGENET, model, seen, data, {}, 0.69758, None, {})
    try:
        with safe_open(file, framework="pt") as stored:
            return Provenance(**json.loads((stored.metadata() or {})["provenance"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"model.pretrained={name}: {file} was not written by scripts/pretrain.py"
        ) from error


def backbone_info(name: str) -> dict[str, Any]:
    """What a record says of a backbone: its provenance, and the hash of its file."""
    file = find(name)
    sha = PUBLISHED_SHA256 if file is None else hashlib.sha256(file.read_bytes()).hexdigest()
    return asdict(provenance(name)) | {"sha256": sha}


def load(net: Any, name: str, with_head: bool) -> None:
    """Put the backbone's values into the network, whose head stays as it is unless asked for."""
    if with_head and net.head.out_features != CLASSES:
        raise UserError(
            f"model.head_init=pretrained: the head of {name} has {CLASSES} classes, the data has "
            f"{net.head.out_features}; use model.head_init=zero or same"
        )
    held = _published(with_head) if name == IMAGENET else _tensors(name)
    present = net.state_dict() if with_head else _backbone(net)
    wrong = [k for k in {*held, *present} if k not in held or k not in present]
    wrong += [k for k in present if k in held and held[k].shape != present[k].shape]
    if wrong:
        raise UserError(
            f"model.pretrained={name}: the network is another one ({min(wrong)} differs); it was "
            f"trained as {_spelled(provenance(name).model)}"
        )
    with torch.no_grad():
        for key, value in present.items():
            value.copy_(held[key])


def save(net: nn.Module, facts: Provenance, file: Path, half: bool) -> None:
    """Write the backbone with its provenance inside, and the same beside it as JSON."""
    tensors = {k: _stored(k, v, half) for k, v in _backbone(net).items()}
    text = json.dumps(asdict(facts), indent=1)
    file.parent.mkdir(parents=True, exist_ok=True)
    with fresh_path(file) as fresh:
        save_file(tensors, fresh, metadata={"provenance": text})
    write_text(file.with_suffix(".json"), text + "\n")


def _stored(key: str, value: Tensor, half: bool) -> Tensor:
    """Vectors, batch norm's among them, keep full precision: they are small and may be large."""
    kind = torch.float16 if half and value.dim() > 1 else torch.float32
    made = value.detach().cpu().to(kind).contiguous()
    if not bool(made.isfinite().all()):
        raise UserError(f"{key}: not finite in {kind}; write the backbone in full precision")
    return made


def check(name: str, model: Mapping[str, Any], transform: Mapping[str, Any]) -> None:
    """UserError where a run's model or pixels are not the backbone's; nothing is loaded yet.

    A backbone asked for by its name may get another activation, to be adapted to it: the run says
    so at its end (`present`).
    """
    facts = provenance(name)
    for key, value in facts.model.items():
        if model.get(key) != value and key != "activation":
            raise UserError(
                f"model.{key}={model.get(key)}: model.pretrained={name} was trained as "
                f"{_spelled(facts.model)}"
            )
    for key, value in facts.transform.items():
        if transform[key] != value:
            wanted = f"dataset.transform.{key}={value}".replace(" ", "")
            raise UserError(
                f"dataset.transform.{key}={transform[key]}: model.pretrained={name} was trained "
                f"on other pixels; use {wanted}"
            )


def _spelled(model: dict[str, Any]) -> str:
    return ", ".join(f"model.{k}={v}" for k, v in model.items())


def _backbone(net: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer but the head's, by name."""
    (head,) = (name for name, module in net.named_modules() if module is net.head)
    return {k: v for k, v in net.state_dict().items() if not k.startswith(f"{head}.")}


def _tensors(name: str) -> dict[str, Tensor]:
    file = find(name)
    assert file is not None
    with safe_open(file, framework="pt") as stored:
        return {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118


def _published(with_head: bool) -> dict[str, Tensor]:
    """torchvision's ResNet-18 from torch's own cache, downloaded where it is not there.

    Its hash is checked each time, before the file is unpickled, and nothing but tensors is read.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / PUBLISHED
    _download(file)
    require_regular(file)
    content = file.read_bytes()
    sha = hashlib.sha256(content).hexdigest()
    if sha != PUBLISHED_SHA256:
        raise UserError(
            f"model.pretrained={IMAGENET}: {file} is not torchvision's {PUBLISHED} (its SHA-256 is "
            f"{sha[:16]}..., not {PUBLISHED_SHA256[:16]}...); remove it, and it is downloaded again"
        )
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    kept = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    return {f"net.{k}": v for k, v in kept.items() if with_head or not k.startswith("fc.")}


def _download(file: Path) -> None:
    """Bring torchvision's weights to where torch keeps them, if they are not there."""
    if file.exists():
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(f"{ADDRESS}/{PUBLISHED}", str(file), progress=False)
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(
            f"model.pretrained={IMAGENET}: torchvision's {PUBLISHED} cannot be downloaded "
            f"({error}); put it at {file}, or use one of {', '.join(names()[:-1])}, or null"
        ) from error
