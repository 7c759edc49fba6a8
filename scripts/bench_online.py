"""Measures the cost of single-pass methods per sample and per gradient (`bench.py --online`)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from contenders import Contender, rounds
from ratios import Ratios
from torch import Tensor

from cl_bench.core.types import Batch, Task
from cl_bench.methods.lamaml import LaMAML

NAMES = ("finetune", "er", "agem", "gem", "ewc", "emcl", "emcl_replay", "lamaml", "mer")
SECOND = "lamaml method.order=second method.slice_size=2"
PLAIN: dict[str, tuple[str, ...]] = {
    **{name: (f"method={name}",) for name in NAMES},
    SECOND: tuple(f"method={SECOND}".split()),
}
COMPILED = ("emcl", "mer")


def online(overrides: list[str], tasks: int, compiled: bool, found: Ratios) -> None:
    """Measure whole tasks after two others, so that each method has a memory or a penalty."""
    running = contenders(["runtime.threads=1", *overrides], compiled)
    first, *chosen = running["finetune"].stream.tasks[1 : tasks + 2]
    for each in running.values():
        for task in (each.stream.tasks[0], first):
            each.train(task)
            each.finish(task)
    before = {name: each.method.learner.sample_gradients for name, each in running.items()}
    samples = dict.fromkeys(running, 0)

    def whole(name: str, task: Task) -> float:
        samples[name] += len(task)
        return running[name].train(task) + running[name].finish(task)

    seconds = rounds(chosen, {name: partial(whole, name) for name in running})
    print(f"\n{len(first)} samples a task, after two others; median of {len(chosen)} tasks")
    heads = "us / sample", "of finetune", "gradients", "us each", "of finetune's"
    print(f"{'':26}" + "".join(f"{head:>14}" for head in heads))
    plain = seconds["finetune"] / len(first)
    for name, value in seconds.items():
        each = value / len(first)
        taken = (running[name].method.learner.sample_gradients - before[name]) / samples[name]
        print(
            f"{name:26}{1e6 * each:14.1f}{each / plain:14.2f}{taken:14.1f}"
            f"{1e6 * each / taken:14.1f}{each / taken / plain:14.2f}"
        )
        label = f"method={name}" if name in PLAIN else name
        found.add(label, "cost of a sample over plain training's", each / plain)
        found.add(label, "cost of a gradient over plain training's", each / taken / plain)
        if f"{name}, autograd" in seconds:
            speed = seconds[f"{name}, autograd"] / value
            found.add(label, "training speed over that by autograd", speed)


def contenders(base: list[str], compiled: bool) -> dict[str, Contender]:
    """The methods, and some of them compiled.

    Of a plain convolutional network (`model=pc_cnn`), methods that step on single samples are added
    with gradients by autograd, and La-MAML's second order through one graph of the inner loop.
    """
    running = {name: Contender(*given, *base) for name, given in PLAIN.items()}
    for name in COMPILED if compiled else ():
        words = f"method={name}", "runtime.compile=true"
        running[" ".join(words)] = Contender(*words, *base)
    if running["mer"].method.learner.direct is not None:
        for name in ("emcl", "mer", SECOND):
            running[f"{name}, autograd"] = by_autograd(Contender(*PLAIN[name], *base))
    return running


def by_autograd(made: Contender) -> Contender:
    """The contender without the gradients that need no autograd, and with La-MAML's plain graph."""
    made.method.learner.direct = None
    if isinstance(made.method, LaMAML):
        made.method._second = partial(whole_graph, made.method)  # type: ignore[method-assign]
    return made


def whole_graph(method: Any, slices: list[Batch], seen: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """La-MAML's second-order gradients by one backward pass through all inner steps."""
    learner = method.learner
    theta = learner.flat.theta.detach().clone().requires_grad_()
    a = method.a.clone().requires_grad_()
    rates, fast, losses = a.relu(), theta, []
    for each in slices:
        (g,) = torch.autograd.grad(learner.loss(fast, each), fast, create_graph=True)
        fast = fast - rates * g.clamp(-method.clip, method.clip)
        losses.append(learner.loss(fast, seen))
    loss = torch.stack(losses).mean()
    learner.sample_gradients += sum(2 * len(each.y) + len(seen.y) for each in slices)
    slope, slope_a = torch.autograd.grad(loss, (theta, a))
    return loss.detach(), slope, slope_a
