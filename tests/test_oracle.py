"""Curvature against curvlinops, where it has the same matrix."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import reference as ref
import torch
from conftest import learner
from torch import Tensor, nn

from cl_bench.curvature.base import Estimator
from cl_bench.curvature.dense import FullFisher, FullHessian
from cl_bench.curvature.kfac import EKFAC, KFAC

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it uses torch.jit.script
    curvlinops: Any = pytest.importorskip("curvlinops")

PAIRS: list[tuple[str, Estimator]] = [
    ("GGNLinearOperator", FullFisher("exact", None)),
    ("HessianLinearOperator", FullHessian("raw", None)),
    ("KFACLinearOperator", KFAC("exact", None, "diagonal")),
    ("EKFACLinearOperator", EKFAC("exact", None, "diagonal")),
    ("KFACLinearOperator reduce", KFAC("exact", None, "diagonal", "reduce")),
]


class Tokens(nn.Module):
    """Linear layers that are applied to each of three tokens; their mean, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh())
        self.head = nn.Linear(3, ref.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x.reshape(len(x), 3, 20)).mean(1))


def case(kind: str, criterion: str) -> tuple[Any, Any]:
    made, task = ref.case("conv" if kind == "linear of tokens" else kind, criterion)
    if kind == "linear of tokens":
        torch.manual_seed(2)
        made = learner(Tokens().double(), transform=made.transform)
        made.criterion = ref.CRITERIA[criterion]
    return made, task


def theirs(name: str, made: Any, task: Any, criterion: str) -> Tensor:
    """(P, P) in the order of the flat vector; MSELoss is 2 / K of ours a sample."""
    net = made.net.eval()
    x = made.transform.view(task.x)
    loss: nn.Module = nn.CrossEntropyLoss()
    target, scale = task.y, 1.0
    if criterion == "mse":
        loss, scale = nn.MSELoss(), ref.CLASSES / 2
        target = 3.0 * nn.functional.one_hot(task.y, ref.CLASSES).double()
    options: dict[str, Any] = {}
    if "KFAC" in name:
        kind = curvlinops.FisherType.TYPE2
        options = {"fisher_type": kind, "separate_weight_and_bias": False}
        options["kfac_approx"] = "reduce" if "reduce" in name else "expand"
    parameters = [p for p in net.parameters() if p.requires_grad]
    operator = getattr(curvlinops, name.split()[0])(net, loss, parameters, [(x, target)], **options)
    count = made.flat.theta.numel()
    return scale * operator @ torch.eye(count, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("criterion", ["ce", "mse"])
@pytest.mark.parametrize("kind", ["mlp", "conv", "linear of tokens"])
@pytest.mark.parametrize(("name", "estimate"), PAIRS, ids=[name for name, _ in PAIRS])
def test_same_matrix(name: str, estimate: Estimator, kind: str, criterion: str) -> None:
    made, task = case(kind, criterion)
    ours = ref.dense(estimate(made, task).matvec, made.flat.theta.numel())
    torch.testing.assert_close(ours, theirs(name, made, task, criterion), rtol=1e-8, atol=1e-10)
