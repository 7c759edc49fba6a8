"""Compares a linearised network with the network itself (`bench.py --linearized`)."""

from __future__ import annotations

from typing import Any

from contenders import Contender, rounds
from ratios import Ratios

from cl_bench.core.types import Task
from cl_bench.engine import checkpoint

COMMON = ["dataset=seqcifar100", "schedule.batch_size=128"]
COMMON += ["optimizer.lr=1e-4", "schedule.epochs=1", "runtime.threads=1"]
NETWORKS = {
    "non-linear": [],
    "folded": ["model.norm=folded"],
    "linearized": ["model.norm=folded", "model.linearize=true"],
}
FACTORED = ("kfac", "tkfac", "ekfac")


def linearized(overrides: list[str], tasks: int, found: Ratios) -> None:
    """Compare steps and tests; on the linearised network also curvatures and their memory."""
    base = [*COMMON, "dataset.train_per_task=512", *overrides]
    found.overrides = base
    nets = {name: Contender("method=finetune", *base, *keys) for name, keys in NETWORKS.items()}
    chosen = nets["non-linear"].stream.tasks[:tasks]
    seconds = rounds(chosen, {name: made.train for name, made in nets.items()})
    tests = [nets["non-linear"].stream.tests[task.id] for task in chosen]
    asked = rounds(tests, {n: (lambda t, m=m: m.evaluate(t, 256)) for n, m in nets.items()})
    print(
        f"\n{len(chosen[0])} images a task, median of {len(chosen)}; as multiples of the folded net"
    )
    for name in nets:
        step, test = (s[name] / s["folded"] for s in (seconds, asked))
        print(f"{name:14} a step {step:.2f}, a test {test:.2f}")
        found.add(f"the {name} network", "cost of a step over that of the folded network", step)
        found.add(f"the {name} network", "cost of a test over that of the folded network", test)
    alone = "method=dlcft", "model.pretrained=null", "schedule.warm_up=none"
    penalised = [*base, *NETWORKS["linearized"], *alone]
    for name in FACTORED:
        made = Contender(*penalised, f"curvature={name}")
        passes = rounds(chosen, {"pass": finishing(made)})["pass"]
        step = rounds(chosen, {"step": made.train})["step"]
        ratio, cost = passes / seconds["linearized"], step / seconds["linearized"]
        state = checkpoint.state_bytes(made.method) / 2**20
        print(f"{name}: a pass {ratio:.2f} epochs, a step with it {cost:.2f}, {state:.1f} MiB kept")
        label = f"curvature={name}"
        found.add(label, "a pass over an epoch of training of the tangent", ratio)
        found.add(label, "memory kept", state, "MiB")


def finishing(made: Contender) -> Any:
    """A function that returns the seconds of the work after a task, such as its curvature."""

    def run(task: Task) -> float:
        made.method.learner.reveal(made.stream.live(task.id), task.t[:1], made.stream.live_at_end)
        return made.finish(task)

    return run
