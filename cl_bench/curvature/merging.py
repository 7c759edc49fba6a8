"""How the quadratic of a finished task joins those of the tasks before it (`conf/merging`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from torch import Tensor

from cl_bench.base.bounds import Share
from cl_bench.core.state import stored_as


@stored_as("quadratic")
class Quadratic(NamedTuple):
    """1/2 (theta - anchor)' A (theta - anchor): an approximation of the loss of past tasks."""

    curvature: Any  # A, a Curvature
    anchor: Tensor  # (P,)
    tasks: int  # how many tasks it stands for
    samples: int  # how many training samples these have


Merging = Callable[[list[Quadratic], Quadratic], list[Quadratic]]


def path_of(function: Callable) -> str:
    """The `_target_` by which a config names a function."""
    return f"{function.__module__}.{function.__qualname__}"


def decayed_sum(past: list[Quadratic], new: Quadratic, decay: Share) -> list[Quadratic]:
    """A <- A_t + decay A, with one anchor: the parameters after the last task.

    decay = 1 is consolidated EWC (Huszar 2018, arXiv:1712.03847; Yang 2022 eq. 14), below 1
    online EWC (Schwarz et al. 2018, arXiv:1805.06370), 0 forgets all but the last task.
    """
    return [_merge(old, new, decay, 1.0) for old in past] or [new]


def running_mean(
    past: list[Quadratic],
    new: Quadratic,
    by: Literal["tasks", "samples", "literal"],
    factors: Literal["weighted", "plain"],
) -> list[Quadratic]:
    """A <- ((t-1) A + A_t) / t, with one anchor: the mean over tasks (by=samples: over samples).

    With it, training in sequence is joint training where the new task's loss is weighted by 1/t
    and the penalty by (t-1)/t, as DLCFT does. Beside a loss of weight 1 all past tasks together
    count as one. by=literal weights past and new by (t-1) : t, as DLCFT's section 4.1 prints it;
    that is not joint training.

    factors  of Kronecker products, which no rule adds exactly. weighted: each factor is averaged
             with the products' own scales as weights, which gives the factors of the pooled data;
             plain: without (DLCFT's section 4.1), which differs for TK-FAC
    """

    def mean(old: Quadratic) -> Quadratic:
        before, now = (old.samples, new.samples) if by == "samples" else (old.tasks, new.tasks)
        now += old.tasks if by == "literal" else 0
        return _merge(old, new, before / (before + now), now / (before + now), factors == "plain")

    return [mean(old) for old in past] or [new]


def one_per_task(past: list[Quadratic], new: Quadratic) -> list[Quadratic]:
    """Each task keeps its own A and anchor (Kirkpatrick et al. 2017; Yang 2022 eq. 13).

    Memory and time grow with the number of tasks. A later anchor already holds what earlier tasks
    asked for, so that these count again (Huszar 2018): from three tasks on this is not what joint
    training minimises.
    """
    return [*past, new]


def _merge(
    old: Quadratic, new: Quadratic, old_weight: float, new_weight: float, plain: bool = False
) -> Quadratic:
    options = {"plain": True} if plain else {}
    curvature = new.curvature.merge(old.curvature, new_weight, old_weight, **options)
    return Quadratic(curvature, new.anchor, new.tasks + old.tasks, new.samples + old.samples)
