"""The tangent model against its closed form, torch.func.jvp and its own definition (float64)."""

from __future__ import annotations

from typing import Any

import pytest
import reference as ref
import torch
from conftest import identity, learner, machine, mlp, resnet, two_blocks
from torch import Generator, Tensor, nn
from torch.func import functional_call, jvp

from cl_bench.core.types import Batch
from cl_bench.curvature.kfac import KFAC, TKFAC
from cl_bench.curvature.products import hessian
from cl_bench.models.fold import fold
from cl_bench.models.linearized import HeadMode, Linearized
from cl_bench.models.prepare import prepare_network

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def networks() -> list[Any]:
    torch.manual_seed(0)
    conv = resnet(norm="folded", activation="leaky_relu")
    pooled = nn.Sequential(conv.stem, nn.MaxPool2d(2), nn.Flatten())  # type: ignore[arg-type]
    return [conv.double(), mlp(6, (3, 8, 8), activation="tanh").double(), Pooled(pooled).double()]


class Pooled(nn.Module):
    """A maximum chooses by what the fixed network says."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(64, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=Generator().manual_seed(1), dtype=torch.float64)


def moved(net: Linearized, scale: float = 0.1) -> Linearized:
    g = Generator().manual_seed(2)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=g, dtype=p.dtype), alpha=scale)
    return net


@pytest.mark.parametrize("mode", ["bilinear", "linearized"])
@pytest.mark.parametrize("index", range(3))
def test_at_zero_it_is_the_network(index: int, mode: Any) -> None:
    x = images()
    expected = networks()[index](x)
    torch.testing.assert_close(Linearized(networks()[index], mode)(x), expected, **EXACT)


@pytest.mark.parametrize("index", range(3))
def test_linearized_is_the_first_order_expansion(index: int) -> None:
    """f + J (theta - theta0) by torch.func.jvp, in all parameters at once."""
    x, net = images(), networks()[index]
    origin = {k: p.detach().clone() for k, p in net.named_parameters()}
    made = moved(Linearized(net, "linearized"))
    theta = {k.removeprefix("body."): p.detach() for k, p in made.named_parameters()}
    (head,) = {k.rsplit(".", 1)[0] for k in origin} - {
        k.rsplit(".", 1)[0] for k in made.places.values()
    }
    shift = {k: theta[k] - (origin[k] if k.startswith(head) else 0) for k in origin}
    fresh = networks()[index]
    value, slope = jvp(  # type: ignore[misc]
        lambda p: functional_call(fresh, p, (x,)), (origin,), (shift,)
    )
    torch.testing.assert_close(made(x), value + slope, **EXACT)


def test_bilinear_equals_the_closed_form_of_two_layers() -> None:
    """w (tanh(W x + b) + (1 - tanh^2) (dW x + db)) + c (DLCFT eq. 6 and 7)."""
    torch.manual_seed(0)
    net = mlp(3, (1, 2, 2), hidden=[5], activation="tanh").double()
    first: Any = net.features[1]
    w, b = first.weight.detach().clone(), first.bias.detach().clone()
    made = moved(Linearized(net, "bilinear"), 1.0)
    psi = {k: p.detach() for k, p in made.body.named_parameters()}
    x = torch.randn(7, 1, 2, 2, dtype=torch.float64)
    flat = x.flatten(1)
    g = torch.tanh(flat @ w.T + b)
    tangent = (1 - g * g) * (flat @ psi["features.1.weight"].T + psi["features.1.bias"])
    expected = (g + tangent) @ made.head.weight.T + made.head.bias
    torch.testing.assert_close(made(x), expected, **EXACT)


@pytest.mark.parametrize("index", range(3))
def test_it_is_linear_in_psi(index: int) -> None:
    """f(p + q) - f(p) - f(q) + f(0) = 0 for a fixed head, however far p and q go."""
    x, made = images(), Linearized(networks()[index], "bilinear")
    g = Generator().manual_seed(5)
    parts = [
        {
            k: torch.randn(p.shape, generator=g, dtype=p.dtype)
            for k, p in made.body.named_parameters()
        }
        for _ in range(2)
    ]
    both = {k: parts[0][k] + parts[1][k] for k in parts[0]}
    zero = {k: torch.zeros_like(p) for k, p in both.items()}
    values = []
    for psi in (both, *parts, zero):
        values.append(functional_call(made, {f"body.{k}": p for k, p in psi.items()}, (x,)))
    left = values[0] - values[1] - values[2] + values[3]
    torch.testing.assert_close(left, torch.zeros_like(left), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "estimate", [KFAC("exact", None, "diagonal"), TKFAC("exact", None, "diagonal", "exact")]
)
def test_the_backbones_factors_do_not_depend_on_psi(estimate: Any) -> None:
    """With a squared loss: A is what the fixed network saw, G what the head sends back."""
    made, task = ref.case("tangent", "mse")
    one: Any = estimate(made, task)
    with torch.no_grad():
        for p in made.net.body.parameters():  # type: ignore[union-attr]
            p.normal_()
    two: Any = estimate(made, task)
    for before, after in zip(one.blocks[:-1], two.blocks[:-1], strict=True):
        torch.testing.assert_close(after.a, before.a, **EXACT)
        torch.testing.assert_close(after.g, before.g, **EXACT)
    assert not torch.allclose(one.blocks[-1].a, two.blocks[-1].a), "the head sees other features"


def test_at_zero_it_has_the_networks_factors() -> None:
    made, task = ref.case("conv", "mse")
    before: Any = KFAC("exact", None, "diagonal")(made, task)
    again, _ = ref.case("conv", "mse")
    tangent = learner(Linearized(again.net, "bilinear"), transform=again.transform)
    tangent.criterion = again.criterion
    after: Any = KFAC("exact", None, "diagonal")(tangent, task)
    for one, two in zip(before.blocks, after.blocks, strict=True):
        torch.testing.assert_close(two.a, one.a, **EXACT)
        torch.testing.assert_close(two.g, one.g, **EXACT)


@pytest.mark.parametrize("mode", ["linearized", "head_only"])
def test_a_squared_loss_is_quadratic(mode: HeadMode) -> None:
    """The same Hessian everywhere."""
    torch.manual_seed(0)
    net = prepare_network(
        mlp(4, (2, 2, 2), hidden=[5], activation="tanh"),
        images(),
        None,
        "batch",
        mode == "linearized",
        mode,
        with_head=False,
    )
    _, task = ref.case("mlp", "mse")
    made = learner(net.double(), transform=ref.case("mlp")[0].transform)
    made.criterion = ref.CRITERIA["mse"]
    before = hessian(made, task)
    with torch.no_grad():
        made.flat.theta.add_(torch.randn_like(made.flat.theta))
    torch.testing.assert_close(hessian(made, task), before, **EXACT)


def test_head_only_trains_the_head_alone() -> None:
    net = prepare_network(
        resnet(), torch.zeros(1, 3, 8, 8), None, "folded", False, "head_only", with_head=False
    )
    made = learner(net)
    assert set(made.flat.slices) == {"head.weight", "head.bias"}
    body = {k: v.clone() for k, v in net.state_dict().items() if not k.startswith("head")}
    x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    made.descend(Batch(x, torch.arange(4), torch.zeros(4, dtype=torch.long)))
    assert all(net.state_dict()[k].equal(v) for k, v in body.items())
    found: Any = KFAC("exact", None, "diagonal")
    assert len(found(made, task_of(x)).blocks) == 1


def task_of(x: Tensor) -> Any:
    from cl_bench.core.types import Task

    return Task(0, x, torch.arange(len(x)), torch.zeros(len(x), dtype=torch.long))


def gradients(channels_last: bool, compiled: bool) -> Tensor:
    rt = machine()
    rt.channels_last = channels_last
    if compiled:
        rt.compiler = lambda f: torch.compile(f, backend="aot_eager", fullgraph=True)
    torch.manual_seed(0)
    folded = fold(two_blocks("leaky_relu"), torch.zeros(1, 3, 8, 8))
    net = Linearized(folded, "bilinear")
    with torch.no_grad():
        for p in net.body.parameters():
            p.normal_(std=0.1)
    made = learner(rt.place(net), rt, transform=identity(rt.device, channels=3))
    x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    made.gradient(Batch(x, torch.arange(4), torch.zeros(4, dtype=torch.long)))
    views = made.flat.views(made.flat.grad)
    return torch.cat([view.reshape(-1) for view in views.values()])


def test_layout_and_compiler_change_nothing() -> None:
    plain = gradients(False, False)
    torch.testing.assert_close(gradients(True, False), plain)
    torch.testing.assert_close(gradients(False, True), plain)
