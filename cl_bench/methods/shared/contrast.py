"""The supervised contrastive loss (Khosla et al. 2020, arXiv:2004.11362)."""

from __future__ import annotations

from torch import Tensor

FAR = -1e9  # in place of minus infinity: a softmax over no class at all then has no NaN


def contrasts(scores: Tensor, wanted: Tensor, allowed: Tensor) -> Tensor:
    """(A,): for each anchor, minus the mean of log softmax over its wanted others.

    scores   (A, M): similarities of A anchors and M others, over the temperature
    wanted   (A, M) bool: others of the anchor's class; an anchor without any has loss 0
    allowed  bool, as scores or one row of them: others that the softmax is over
    """
    wanted = wanted & allowed
    log_p = scores.masked_fill(~allowed, FAR).log_softmax(1)
    return -log_p.where(wanted, 0.0).sum(1) / wanted.sum(1).clamp(min=1)


def mean_where(values: Tensor, used: Tensor) -> Tensor:
    """The mean of the values that are used; 0 where none is."""
    return values.where(used, 0.0).sum() / used.sum().clamp(min=1)
