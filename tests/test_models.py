"""Architectures by their published parameter counts, and against torchvision's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from conftest import composed, names
from torch import nn

from cl_bench.config.build import make_network
from cl_bench.models.fold import fold, fold_in_place
from cl_bench.models.layers import ACTIVATIONS


def built(name: str, shape: tuple[int, ...], classes: int, *overrides: str) -> Any:
    node = composed(f"model={name}", *overrides).model
    return make_network(node, shape, classes)


COUNTS = [
    ("mlp", (1, 28, 28), 10, 89_610),
    ("reduced_resnet18", (3, 32, 32), 100, 1_109_240),
    ("resnet18", (3, 32, 32), 100, 11_220_132),
    ("resnet18", (3, 32, 32), 10, 11_173_962),
    ("resnet18_224", (3, 224, 224), 1000, 11_689_512),
    ("resnet32", (3, 32, 32), 10, 464_154),
    ("resnet32", (3, 32, 32), 100, 470_004),
    ("lenet", (3, 32, 32), 10, 2_995_620),
    ("alexnet", (3, 32, 32), 10, 6_533_450),
    ("alexnet", (3, 64, 64), 10, 23_310_666),
    ("large_lenet", (3, 32, 32), 12, 24_470_188),
    ("conv5", (3, 32, 32), 100, 6_644_948),
    ("pc_cnn", (3, 32, 32), 100, 1_419_940),
    ("efficientnet_lite0", (3, 64, 64), 1000, 4_652_008),
    ("efficientnet_lite1", (3, 64, 64), 1000, 5_416_680),
    ("efficientnet_lite2", (3, 64, 64), 1000, 6_092_072),
]


@pytest.mark.parametrize(("name", "shape", "classes", "count"), COUNTS)
def test_parameter_counts(name: str, shape: tuple[int, ...], classes: int, count: int) -> None:
    net = built(name, shape, classes)
    assert sum(p.numel() for p in net.parameters()) == count
    assert net(torch.zeros(2, *shape)).shape == (2, classes)


def test_every_model_is_counted() -> None:
    assert {name for name, *_ in COUNTS} == {*names("model")} - {"torchvision", "timm"}


def test_larger_images_pool_to_the_same_features() -> None:
    net = built("reduced_resnet18", (3, 84, 84), 100)
    assert net.head.in_features == 160 and net(torch.zeros(1, 3, 84, 84)).shape == (1, 100)


def test_resnet32_has_shortcuts_without_parameters() -> None:
    """Option A of He et al. (2016): every second pixel, and zeros in the channels that are added.

    31 convolutions and the head are the 32 layers. Without what a block adds, the features of an
    image are the means of its stem's output at every fourth pixel, and zeros.
    """
    net = built("resnet32", (3, 32, 32), 10).eval()
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 31 and all(m.kernel_size == (3, 3) for m in convs)
    for block in net.blocks:
        block.bn2.weight.data.zero_()
    x = torch.rand(2, 3, 32, 32)
    found, stem = net.features(x), net.stem(x)
    torch.testing.assert_close(found[:, :16], stem[:, :, ::4, ::4].mean((2, 3)))
    assert found.shape == (2, 64) and found[:, 16:].eq(0).all()


def test_torchvisions_weights_fit() -> None:
    theirs = torchvision.models.resnet18(num_classes=7)
    net = built("resnet18_224", (3, 64, 64), 7)
    odd = net.net.load_state_dict(theirs.state_dict(), strict=False)
    assert not odd.missing_keys and all("num_batches" in key for key in odd.unexpected_keys)
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(net.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("name", sorted({*names("model")} - {"torchvision", "timm"}))
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_by_argument(name: str, activation: str) -> None:
    net = built(name, (3, 32, 32), 5, f"model.activation={activation}")
    found = {type(m) for m in net.modules()} & set(ACTIVATIONS.values())
    assert found == {ACTIVATIONS[activation]}


@pytest.mark.parametrize("name", names("model"))
def test_head_at_zero(name: str) -> None:
    net = built(name, (3, 32, 32), 5, "model.head_init=zero")
    assert net(torch.rand(2, 3, 32, 32)).eq(0).all()


SIGNED = ["mlp", "pc_cnn", "conv5", "reduced_resnet18", "lenet"]  # one of each class


@pytest.mark.parametrize("name", SIGNED)
def test_signed_features(name: str) -> None:
    """The same parameters; the head sees what the last activation would have seen."""
    plain, signed = [
        built(name, (3, 32, 32), 10, f"model.signed_features={value}") for value in (False, True)
    ]
    assert signed.load_state_dict(plain.state_dict())
    seen = {}
    for kind, net in (("plain", plain), ("signed", signed)):
        net.eval().head.register_forward_pre_hook(lambda _, x, kind=kind: seen.update({kind: x[0]}))
        with torch.no_grad():
            net(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert plain.state_dict().keys() == signed.state_dict().keys()
    assert seen["plain"].min() >= 0 > seen["signed"].min()
    if "resnet" not in name:  # whose mean over positions comes after the activation
        torch.testing.assert_close(seen["signed"].relu(), seen["plain"])


def test_without_hidden_layers_signed_features_are_those_of_convolutions() -> None:
    words = "model.hidden=[]", "model.last=same", "model.signed_features=true"
    kinds = [type(m) for m in built("conv5", (3, 32, 32), 10, *words).modules()]
    assert kinds.count(nn.ReLU) == 4 and kinds.count(nn.BatchNorm2d) == 5
    words = "model.hidden=[]", "model.last=linear", "model.signed_features=true"
    kinds = [type(m) for m in built("conv5", (3, 32, 32), 10, *words).modules()]
    assert kinds.count(nn.ReLU) == 4, "they have either sign already"


def test_starts() -> None:
    torch.manual_seed(0)
    weight = built("mlp", (1, 28, 28), 10, "model.init=xavier").features[1].weight.detach()
    assert weight.abs().max() <= (6 / 884) ** 0.5 and weight.std() == pytest.approx(
        (2 / 884) ** 0.5, rel=0.02
    )
    weight = built("mlp", (1, 28, 28), 10, "model.init=kaiming").features[1].weight.detach()
    assert weight.std() == pytest.approx((2 / 784) ** 0.5, rel=0.02)
    net = built("mlp", (1, 28, 28), 10, "model.init=xavier")
    assert all(m.bias.eq(0).all() for m in net.modules() if isinstance(m, nn.Linear))


def with_random_batch_norm(name: str) -> tuple[Any, list[nn.BatchNorm2d]]:
    """A network in float64 and evaluation mode, and its batch norms, whose values are random."""
    torch.manual_seed(0)
    net = built(name, (3, 64, 64), 5).double().eval()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        for part in norm.state_dict().values():
            part.uniform_(0.5, 2)
    return net, norms


FOLDED = ["reduced_resnet18", "resnet32", "resnet18_224", "efficientnet_lite0"]


@pytest.mark.parametrize("name", FOLDED)
def test_folding_keeps_what_the_network_computes(name: str) -> None:
    """To 1e-10 in float64, whatever the statistics and weights of batch norm are."""
    net, norms = with_random_batch_norm(name)
    x = torch.rand(2, 3, 64, 64).double()
    before = net(x)
    folded = fold(net, x[:1])
    torch.testing.assert_close(folded(x), before, rtol=1e-10, atol=1e-10)
    left = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not left and not list(folded.buffers())
    assert all(m.bias is not None for m in folded.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("name", FOLDED)
def test_folding_in_place(name: str) -> None:
    """The same function and the same parameters, of which batch norm adds its bias alone."""
    net, norms = with_random_batch_norm(name)
    x, shapes = torch.rand(2, 3, 64, 64).double(), [p.shape for p in net.parameters()]
    before = net(x)
    fold_in_place(net, x[:1])
    torch.testing.assert_close(net(x), before, rtol=1e-10, atol=1e-10)
    assert [p.shape for p in net.parameters()] == shapes
    image = torch.randn(1, norms[0].num_features, 2, 2).double()
    shifted = image + norms[0].bias.view(1, -1, 1, 1)
    torch.testing.assert_close(norms[0](image), shifted, rtol=1e-12, atol=1e-12)


def test_a_model_can_start_folded() -> None:
    net = built("reduced_resnet18", (3, 32, 32), 100, "model.norm=folded")
    assert net.training and not list(net.buffers())
    assert all(p.requires_grad for p in net.parameters())
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 100)


def test_la_mamls_network() -> None:
    """Three halvings of 32 x 32 leave 4 x 4 x 160; weights have a variance of 2 / fan-in (He)."""
    torch.manual_seed(0)
    net = built("pc_cnn", (3, 32, 32), 100)
    kinds = [type(layer).__name__ for layer in net.features]
    assert kinds == ["Conv2d", "ReLU"] * 3 + ["Flatten"] + ["Linear", "ReLU"] * 2
    assert net.features[:7](torch.zeros(1, 3, 32, 32)).shape == (1, 2560)
    for layer in (net.features[2], net.features[7], net.head):
        assert not layer.bias.any()
        fan_in = layer.weight[0].numel()
        assert float(layer.weight.detach().var()) == pytest.approx(2 / fan_in, rel=0.05)
    assert built("pc_cnn", (3, 31, 9), 5)(torch.zeros(2, 3, 31, 9)).shape == (2, 5)
