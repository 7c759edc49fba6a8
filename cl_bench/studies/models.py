"""Three models on vectors for studies of the Taylor expansion: linear, logistic, a small MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

HIDDEN = 8


@dataclass(frozen=True)
class Model:
    """theta (P,), x (n, d) -> (n,); its mean loss; what data it is tried on."""

    name: str
    size: Callable[[int], int]  # of d inputs
    output: Callable[[Tensor, Tensor], Tensor]
    regression: bool
    width: float  # of the uniform features about 0
    lr: float
    steps: int

    def loss(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Mean squared error (no 1/2, as in the note), or logistic loss."""
        out = self.output(theta, x)
        return F.mse_loss(out, y) if self.regression else F.binary_cross_entropy_with_logits(out, y)


def _linear(theta: Tensor, x: Tensor) -> Tensor:
    return x @ theta


def _mlp(theta: Tensor, x: Tensor) -> Tensor:
    d = x.shape[1]
    parts = theta.split([d * HIDDEN, HIDDEN, HIDDEN, 1])
    return (x @ parts[0].view(d, HIDDEN) + parts[1]).tanh() @ parts[2] + parts[3]


MODELS = {
    "linear": Model("linear", lambda d: d, _linear, True, 500.0, 1e-5, 50_000),
    "logistic": Model("logistic", lambda d: d, _linear, False, 1.0, 1.0, 3000),
    "mlp": Model("mlp", lambda d: (d + 2) * HIDDEN + 1, _mlp, False, 1.0, 1.0, 3000),
}


def trained(model: Model, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Full-batch gradient descent from theta; a quadratic's by its Gram matrix."""
    if model.regression:
        gram, target = 2 * x.T @ x / len(x), 2 * x.T @ y / len(x)
        for _ in range(model.steps):
            theta = theta - model.lr * (gram @ theta - target)
        return theta
    slope = torch.func.grad(model.loss)
    for _ in range(model.steps):
        theta = theta - model.lr * slope(theta, x, y)
    return theta


def hessian(model: Model, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(P, P): rows by reverse mode twice."""
    slope = torch.func.grad(lambda th: model.loss(th, x, y))
    return torch.func.jacrev(slope)(theta).detach()


def features(model: Model, count: int, d: int, rng: Generator) -> Tensor:
    """(count, d), uniform about zero."""
    return model.width * (2 * torch.rand(count, d, generator=rng, dtype=torch.float64) - 1)


def labelled(model: Model, x: Tensor, truth: Tensor, rng: Generator) -> Tensor:
    """x'truth and normal noise, or a draw with these log-odds."""
    if model.regression:
        return x @ truth + torch.randn(len(x), generator=rng, dtype=torch.float64)
    return (torch.rand(len(x), generator=rng, dtype=torch.float64) < (x @ truth).sigmoid()).double()


def fitted(model: Model, d: int, count: int, rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """theta trained on the last four fifths of `count` samples; all of x and y."""
    x = features(model, count, d, rng)
    truth = 2 * torch.randn(d, generator=rng, dtype=torch.float64)
    y = labelled(model, x, truth, rng)
    theta = 0.3 * torch.randn(model.size(d), generator=rng, dtype=torch.float64)
    fifth = count // 5
    return trained(model, theta, x[fifth:], y[fifth:]), x, y
