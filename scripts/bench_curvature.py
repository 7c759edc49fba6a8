"""Measures curvatures and penalties relative to training (`bench.py --curvature`)."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from contenders import Contender, composed, rounds
from ratios import Ratios

from cl_bench.base.exceptions import UserError
from cl_bench.config.build import build, make_network, without_keys
from cl_bench.core.criteria import CrossEntropy
from cl_bench.core.learner import Learner
from cl_bench.core.types import Task

BACKENDS = {
    "diag_fisher empirical": ["curvature=diag_fisher", "curvature.labels=empirical"],
    "diag_fisher sampled": ["curvature=diag_fisher", "curvature.labels=sampled"],
    "diag_fisher exact": ["curvature=diag_fisher", "curvature.labels=exact"],
    "diag_batched": ["curvature=diag_batched"],
    "diag_hessian 10 probes": ["curvature=diag_hessian"],
    "hessian_row_sums": ["curvature=hessian_row_sums", "curvature.samples=null"],
    "mas": ["curvature=mas"],
    "kfac": ["curvature=kfac"],
    "kfac exact": ["curvature=kfac", "curvature.labels=exact"],
    "tkfac": ["curvature=tkfac"],
    "ekfac": ["curvature=ekfac"],
}
PENALTIES = {
    "diagonal, implicit": ["method=ewc"],
    "diagonal, explicit": ["method=ewc", "method.step=explicit"],
    **{
        f"kfac, {step}, every {n}": ["method=osla", f"method.step={step}", f"method.every={n}"]
        for step in ("implicit", "explicit")
        for n in (1, 10, 25)
    },
    "si": ["method=si"],
}


def curvature(overrides: list[str], tasks: int, only: str | None, found: Ratios) -> None:
    """Compare curvatures with an epoch of training, and then penalties with plain steps.

    Also the per-sample Fisher with a loop, the growth over 100 tasks, and K-FAC with curvlinops.

    only  names of curvatures (`BACKENDS`), with commas between them, of which passes alone are
          measured; UserError for an unknown one
    """
    names = list(BACKENDS) if only is None else [name.strip() for name in only.split(",")]
    for name in names:
        if name not in BACKENDS:
            raise UserError(f"--only {name}: must be one of {', '.join(BACKENDS)}")
    base = ["runtime.threads=1", *overrides]
    plain = Contender("method=finetune", *base)
    chosen = plain.stream.tasks[:tasks]
    passes(plain, chosen, base, names, found)
    if only is not None:
        return
    few, learner = Task(0, *(getattr(chosen[0], f)[:200] for f in "xyt")), plain.method.learner
    loop = looped_fisher(plain, few)
    empirical = build(composed(*base, *BACKENDS["diag_fisher empirical"]).curvature)
    timed = _timed(plain, partial(empirical, learner))
    fast = statistics.median(timed(few) for _ in range(5))
    print(f"per-sample Fisher of {len(few)} samples: {loop / fast:.0f} times faster than a loop")
    steps(base, chosen, found)
    growth(overrides, found)
    against_curvlinops(64, found)


def passes(
    plain: Contender, chosen: list[Task], base: list[str], names: list[str], found: Ratios
) -> None:
    """Compare a pass of each curvature over a task with an epoch of training on it."""
    learner = plain.method.learner
    plain.train(chosen[0])
    runners: dict[str, Callable[[Task], float]] = {"an epoch of training": plain.train}
    for name in names:
        made = build(composed(*base, *BACKENDS[name]).curvature)
        runners[name] = _timed(plain, partial(made, learner))
    seconds = rounds(chosen, runners)
    print(f"\none pass over {len(chosen[0])} samples, median of {len(chosen)} tasks")
    for name, value in seconds.items():
        epochs = value / seconds["an epoch of training"]
        print(f"{name:32}{value:9.3f} s{epochs:9.2f} epochs")
        if name in BACKENDS:
            found.add(" ".join(BACKENDS[name]), "a pass over an epoch of training", epochs)


def _timed(plain: Contender, run: Callable[[Task], object]) -> Callable[[Task], float]:
    """A function of a task that gives the seconds which `run` takes on it."""

    def seconds(task: Task) -> float:
        started = plain.machine.seconds()
        run(task)
        return plain.machine.seconds() - started

    return seconds


def looped_fisher(plain: Contender, task: Task) -> float:
    """Seconds to estimate the diagonal Fisher by one backward pass per sample, in a Python loop."""
    learner = plain.method.learner
    total, started = torch.zeros_like(learner.flat.grad), plain.machine.seconds()
    for single in next(task.chunks(len(task))).slices(1):
        learner.flat.grad.zero_()
        learner.loss(learner.flat.theta, single).backward()
        total += learner.flat.grad.square()
    return plain.machine.seconds() - started


def steps(base: list[str], chosen: list[Task], found: Ratios) -> None:
    """Compare training steps with a penalty to steps without one."""
    plain = Contender("method=finetune", *base)
    contenders = {n: Contender(*o, "method.strength=1e-6", *base) for n, o in PENALTIES.items()}
    for contender in contenders.values():
        contender.train(chosen[0])
        contender.finish(chosen[0])
    everyone = {"finetune": plain, **contenders}
    seconds = rounds(chosen, {name: c.train for name, c in everyone.items()})
    print("\na step with a penalty, as a multiple of one without")
    for name, value in seconds.items():
        print(f"{name:32}{value / seconds['finetune']:9.2f}")
        if name in PENALTIES:
            cost = value / seconds["finetune"]
            found.add(" ".join(PENALTIES[name]), "cost of a step over a plain step's", cost)


def growth(overrides: list[str], found: Ratios) -> None:
    """Measure how the time of a task and its curvature grows over 100 tasks (manypmnist)."""
    print("\n100 tasks: median time of the last five over that of the second to the sixth")
    folders = [word for word in overrides if word.startswith(("data_dir=", "cache_dir="))]
    base = ["dataset=manypmnist", "runtime.threads=1", "optimizer.lr=0.01", *folders]
    found.overrides = base
    apart = "merging=apart", "method.step=explicit", "method.strength=0.01"
    cases = {name: [f"method={name}"] for name in ("ewc", "osla", "mas", "si", "l2", "lwf")}
    for name, chosen in {**cases, "ewc merging=apart": ["method=ewc", *apart]}.items():
        contender = Contender(*base, *chosen)
        tasks = contender.stream.tasks
        seconds = [contender.train(task) + contender.finish(task) for task in tasks]
        ratio = statistics.median(seconds[-5:]) / statistics.median(seconds[1:6])
        print(f"{name:32}{ratio:9.2f}")
        found.add(" ".join(chosen), "time of the last of 100 tasks over that of the first", ratio)


def against_curvlinops(samples: int, found: Ratios) -> None:
    """Compare K-FAC of a ResNet-18 (11.2 M parameters, batch norm folded) with curvlinops."""
    import warnings

    warnings.simplefilter("ignore")
    from curvlinops import FisherType, KFACLinearOperator

    machine, learner, task, estimate = folded_resnet(samples)
    found.overrides = ["dataset=seqcifar100"]  # whose shapes the images have
    seen, parameters = learner.transform.view(task.x), list(learner.net.parameters())
    options = {"fisher_type": FisherType.MC, "separate_weight_and_bias": False}
    loss = torch.nn.CrossEntropyLoss()

    def theirs() -> None:
        data = list(zip(seen.split(32), task.y.split(32), strict=True))
        net = learner.net.eval()
        made = KFACLinearOperator(net, loss, parameters, data, check_deterministic=False, **options)
        _ = made @ torch.zeros_like(learner.flat.grad)

    runners = {"ours": lambda: estimate(learner, task), "curvlinops": theirs}
    taken: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(3):
        for name, run in runners.items():
            started = machine.seconds()
            run()
            taken[name].append(machine.seconds() - started)
    one, two = (statistics.median(seconds) for seconds in taken.values())
    found.add("curvature=kfac, ResNet-18 of 64 images", "speed over curvlinops", two / one)
    ratio = f"{one:.2f} s, curvlinops {two / one:.2f} times it"
    print(f"\nK-FAC of ResNet-18, {samples} samples: {ratio}")


def folded_resnet(samples: int) -> tuple[Any, Learner, Task, Any]:
    """The machine, a learner of a ResNet-18, a task of random images, and the K-FAC estimator."""
    data = "dataset=seqcifar100", "model=resnet18", "model.norm=folded", "runtime.threads=1"
    cfg = composed(*data, "curvature=kfac")
    machine = build(cfg.runtime, seed=0)
    net = machine.place(make_network(cfg.model, (3, 32, 32), 100))
    transform = build(cfg.dataset.transform, device=machine.device)
    optimizer = build(without_keys(cfg.optimizer, "weight_decay"))
    learner = Learner(net, CrossEntropy(), optimizer, 0.0, transform, machine)
    learner.begin_task(torch.ones(1, 100, dtype=torch.bool), torch.tensor([0]), None)
    x = torch.randint(0, 256, (samples, 3, 32, 32), dtype=torch.uint8)
    y = torch.randint(0, 100, (samples,))
    x, y = x.to(machine.device), y.to(machine.device)
    task = Task(0, x, y, torch.zeros_like(y))
    return machine, learner, task, build(cfg.curvature)
