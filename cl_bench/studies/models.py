"""Small models of vectors, whose Hessian is cheap: linear and logistic regression, and an MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

HIDDEN = 8


@dataclass(frozen=True)
class Model:
    """A function of its parameters (P,) and inputs (n, d), with its training and its data."""

    name: str
    size: Callable[[int], int]  # d -> P
    output: Callable[[Tensor, Tensor], Tensor]  # theta (P,), x (n, d) -> (n,)
    regression: bool  # else binary classification
    width: float  # features are uniform in [-width, width]
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
    """The parameters (P,) after full-batch gradient descent from theta.

    Steps of linear regression use the Gram matrix, which is made once.
    """
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
    """The Hessian of the mean loss (P, P), its rows by reverse mode twice."""
    slope = torch.func.grad(lambda th: model.loss(th, x, y))
    return torch.func.jacrev(slope)(theta).detach()


def features(model: Model, count: int, d: int, rng: Generator) -> Tensor:
    """Features (count, d), uniform about zero."""
    return model.width * (2 * torch.rand(count, d, generator=rng, dtype=torch.float64) - 1)


def labelled(model: Model, x: Tensor, truth: Tensor, rng: Generator) -> Tensor:
    """Labels (n,): x'truth with normal noise, or drawn with x'truth as log-odds."""
    if model.regression:
        return x @ truth + torch.randn(len(x), generator=rng, dtype=torch.float64)
    return (torch.rand(len(x), generator=rng, dtype=torch.float64) < (x @ truth).sigmoid()).double()


def fitted(model: Model, d: int, count: int, rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Parameters trained on the last four fifths of `count` samples, and all samples x and y."""
    x = features(model, count, d, rng)
    truth = 2 * torch.randn(d, generator=rng, dtype=torch.float64)
    y = labelled(model, x, truth, rng)
    theta = 0.3 * torch.randn(model.size(d), generator=rng, dtype=torch.float64)
    fifth = count // 5
    return trained(model, theta, x[fifth:], y[fifth:]), x, y
