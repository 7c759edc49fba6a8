"""Measures the cost of single-pass methods per sample and per gradient (`bench.py --online`)."""

from __future__ import annotations

from functools import partial

from contenders import Contender, rounds

from cl_bench.core.types import Task

PLAIN = ("finetune", "er", "agem", "gem", "ewc", "emcl", "lamaml", "mer")
COMPILED = ("emcl", "mer")


def online(overrides: list[str], tasks: int, compiled: bool) -> None:
    """Measure whole tasks after two others, so that each method has a memory or a penalty."""
    base = ["runtime.threads=1", *overrides]
    running = {name: Contender(f"method={name}", *base) for name in PLAIN}
    if compiled:
        for name in COMPILED:
            running[f"{name} compiled"] = Contender(f"method={name}", "runtime.compile=true", *base)
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
    print(f"{'':20}" + "".join(f"{head:>14}" for head in heads))
    plain = seconds["finetune"] / len(first)
    for name, value in seconds.items():
        each = value / len(first)
        taken = (running[name].method.learner.sample_gradients - before[name]) / samples[name]
        print(
            f"{name:20}{1e6 * each:14.1f}{each / plain:14.2f}{taken:14.1f}"
            f"{1e6 * each / taken:14.1f}{each / taken / plain:14.2f}"
        )
