"""Losses against torch's, Hessian roots against autograd's Hessian."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.func import jacrev, vmap

from cl_bench.core.criteria import CrossEntropy, Live, ScaledMSE

LOGITS = torch.randn(5, 4, generator=Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 1, 0, 1])
SOME = torch.tensor([True, True, False, True]).expand(5, 4)


def hessians(criterion: CrossEntropy | ScaledMSE, live: Live) -> Tensor:
    """(B, K, K) by autograd."""

    def single(f: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        return criterion(f[None], y[None], None if live is None else mask[None]).squeeze(0)

    masks = torch.ones_like(LOGITS, dtype=torch.bool) if live is None else live
    return vmap(jacrev(jacrev(single)))(LOGITS, Y, masks)


def outer(root: Tensor) -> Tensor:
    return torch.einsum("rbi,rbj->bij", root, root)


def test_cross_entropy() -> None:
    expected = F.cross_entropy(LOGITS, Y, reduction="none")
    torch.testing.assert_close(CrossEntropy()(LOGITS, Y, None), expected)
    sliced = F.cross_entropy(LOGITS[:, [0, 1, 3]], Y, reduction="none")
    torch.testing.assert_close(CrossEntropy()(LOGITS, Y, SOME), sliced)


@pytest.mark.parametrize("live", [None, SOME], ids=["all", "some"])
@pytest.mark.parametrize("criterion", [CrossEntropy(), ScaledMSE(15.0)], ids=["ce", "mse"])
def test_slopes_are_autograds(criterion: CrossEntropy | ScaledMSE, live: Live) -> None:
    z = LOGITS.clone().requires_grad_()
    losses = criterion(z, Y, live)
    found = criterion.losses_and_gradients(LOGITS, Y, live)
    torch.testing.assert_close(found[0], losses.detach())
    torch.testing.assert_close(found[1], torch.autograd.grad(losses.sum(), z)[0])


@pytest.mark.parametrize("live", [None, SOME], ids=["all", "some"])
def test_exact_root_of_cross_entropy(live: Live) -> None:
    root = CrossEntropy().hessian_root(LOGITS, live, None)
    assert root.shape == (4, 5, 4)
    torch.testing.assert_close(outer(root), hessians(CrossEntropy(), live))


@pytest.mark.parametrize("live", [None, SOME], ids=["all", "some"])
def test_drawn_root_of_cross_entropy_is_right_on_average(live: Live) -> None:
    rng, draws = Generator().manual_seed(1), 20_000
    many = LOGITS.repeat(draws, 1)
    mask = None if live is None else live.repeat(draws, 1)
    root = CrossEntropy().hessian_root(many, mask, rng)
    mean = outer(root).view(draws, 5, 4, 4).mean(0)
    torch.testing.assert_close(mean, hessians(CrossEntropy(), live), rtol=0, atol=0.02)


def test_scaled_mse() -> None:
    """1/2 the sum over classes: not divided by K, and not halved twice."""
    criterion = ScaledMSE(15.0)
    target = 15.0 * F.one_hot(Y, 4)
    expected = 0.5 * (target - LOGITS).square().sum(1)
    torch.testing.assert_close(criterion(LOGITS, Y, None), expected)
    sliced = 0.5 * (target - LOGITS)[:, [0, 1, 3]].square().sum(1)
    torch.testing.assert_close(criterion(LOGITS, Y, SOME), sliced)
    torch.testing.assert_close(
        outer(criterion.hessian_root(LOGITS, None, None)), hessians(criterion, None)
    )


def test_scaled_mse_covers_classes_that_are_not_live() -> None:
    root = ScaledMSE(15.0).hessian_root(LOGITS, SOME, None)
    torch.testing.assert_close(outer(root), torch.eye(4, dtype=torch.float64).expand(5, 4, 4))
    drawn = ScaledMSE(15.0).hessian_root(LOGITS.repeat(20_000, 1), None, Generator().manual_seed(0))
    mean = outer(drawn).mean(0)
    torch.testing.assert_close(mean, torch.eye(4, dtype=torch.float64), rtol=0, atol=0.03)


def test_loss_is_never_taken_in_half_precision() -> None:
    low = LOGITS.to(torch.bfloat16)
    assert CrossEntropy()(low, Y, SOME).dtype == torch.float32
    assert ScaledMSE(1.0)(low, Y, SOME).dtype == torch.float32
    assert CrossEntropy()(LOGITS, Y, None).dtype == torch.float64
