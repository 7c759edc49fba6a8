"""What the framework costs: ratios within one run, against a loop written by hand.

    python scripts/bench.py                        # the embedded digits: no download
    python scripts/bench.py dataset=pmnist         # any dataset, any override of cl_bench.run
    python scripts/bench.py dataset=seqcifar100 dataset.tasks=20 --tasks 2
    python scripts/bench.py dataset=pmnist --curvature   # backends, penalties, curvlinops

Each round trains one task by the bare loop and by every contender in turn, so that a slow moment
of the machine falls on all of them; the ratio is that of the medians over the rounds. One thread
on the CPU: for nets this small a second one only waits.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from cl_bench import checkpoint, config, experiment
from cl_bench.criteria import CrossEntropy
from cl_bench.learner import Learner
from cl_bench.parts import make_method, make_stream
from cl_bench.run import CONF
from cl_bench.types import Task


class Silent:
    """A host that keeps nothing."""

    every = 10**9

    def __init__(self, seconds: Callable[[], float]) -> None:
        self.seconds = seconds

    def log(self, row: dict[str, Any]) -> None: ...
    def advance(self, steps: int) -> None: ...
    def save(self) -> None: ...
    def stop(self) -> None: ...

    def stopping(self) -> bool:
        return False


class Contender:
    """One method on its own network, trained by the project's loop."""

    def __init__(self, *overrides: str) -> None:
        cfg = composed(*overrides)
        self.machine = config.build(cfg.runtime, seed=0)
        self.stream = make_stream(cfg, self.machine)
        self.method = make_method(cfg, self.machine, self.stream)
        self.schedule = config.build(cfg.schedule)
        self.host = Silent(self.machine.seconds)
        self.end_task, self.method.end_task = self.method.end_task, lambda task: None

    def train(self, task: Task) -> float:
        """Seconds for the steps of one task, without what comes after its last."""
        progress = experiment.Progress.start(self.stream)
        order = self.machine.order
        experiment.learn(self.method, self.stream, task, order, self.schedule, progress, self.host)
        return progress.train_seconds[-1]

    def finish(self, task: Task) -> float:
        """Seconds for what comes after the last step of a task: a curvature, a memory."""
        started = self.machine.seconds()
        self.end_task(task)
        return self.machine.seconds() - started

    def evaluate(self, test: Task, size: int) -> float:
        """Seconds to test on one task."""
        self.method.learner.reveal(self.stream.live(test.id), test.t.unique())
        started = self.machine.seconds()
        experiment.accuracies(self.method, [test], size)
        return self.machine.seconds() - started


class Bare:
    """The loop that anybody would write: the same tensors, network, loss and optimizer."""

    def __init__(self, twin: Contender, cfg: DictConfig) -> None:
        self.machine, stream = twin.machine, twin.stream
        shape = tuple(stream.transform.view(stream.tasks[0].x[:1]).shape[1:])
        net = config.build(cfg.model, shape=shape, num_classes=stream.num_classes)
        self.net = self.machine.place(net)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=cfg.optimizer.lr)
        self.size, self.stream = cfg.schedule.batch_size, stream
        self.masked = not bool(stream.live(0).all())

    def train(self, task: Task) -> float:
        started = self.machine.seconds()
        order = torch.randperm(len(task)).to(task.y.device)
        own = self.stream.live(task.id)[task.id].nonzero().flatten()
        first, last = int(own.min()), int(own.max()) + 1
        self.net.train()
        for index in order.split(self.size):
            x, y = task.x[index].float().div_(255), task.y[index]
            self.optimizer.zero_grad()
            logits = self.net(x)
            if self.masked:
                logits, y = logits[:, first:last], y - first
            F.cross_entropy(logits, y).backward()
            self.optimizer.step()
        return self.machine.seconds() - started

    @torch.inference_mode()
    def evaluate(self, test: Task, size: int) -> float:
        started = self.machine.seconds()
        self.net.eval()
        hits = torch.zeros((), dtype=torch.long, device=test.y.device)
        for i in range(0, len(test), size):
            x, y = test.x[i : i + size].float().div_(255), test.y[i : i + size]
            hits += (self.net(x).argmax(1) == y).sum()
        hits.item()
        return self.machine.seconds() - started


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", list(overrides))


def rounds(tasks: list[Task], runners: dict[str, Callable[[Task], float]]) -> dict[str, float]:
    """The median seconds of each runner over the tasks, all runners in turn on each."""
    for run in runners.values():  # warm: allocator, kernels, compiled graphs
        run(tasks[0])
    taken: dict[str, list[float]] = {name: [] for name in runners}
    for task in tasks:
        for name, run in runners.items():
            taken[name].append(run(task))
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def training(overrides: list[str], tasks: int, compiled: bool) -> None:
    """Steps of the bare loop against the project's, and of each method against finetune."""
    base = ["runtime.threads=1", *overrides]
    plain = Contender("method=finetune", *base)
    bare = Bare(plain, composed(*base))
    contenders = {"finetune": plain}
    if compiled:
        contenders["finetune compiled"] = Contender("runtime.compile=true", *base)
    for name in ("er", "agem", "ewc"):
        contenders[name] = Contender(f"method={name}", *base)
    chosen = plain.stream.tasks[:tasks]
    ends: dict[str, float] = {}
    for name in ("er", "agem", "ewc"):  # a past to replay, project on and stay close to
        contenders[name].train(chosen[0])
        ends[name] = contenders[name].finish(chosen[0])
    seconds = rounds(chosen, {"bare": bare.train, **{n: c.train for n, c in contenders.items()}})
    samples = len(chosen[0])
    print(f"\ntraining, {samples} samples a task, median of {len(chosen)} tasks")
    print(f"{'':20}{'samples/s':>12}{'of bare':>10}{'cost / finetune':>17}{'state MiB':>11}")
    for name, value in seconds.items():
        state = checkpoint.nbytes(contenders[name].method) / 2**20 if name != "bare" else 0
        print(
            f"{name:20}{samples / value:12.0f}{seconds['bare'] / value:10.2f}"
            f"{value / seconds['finetune']:17.2f}{state:11.2f}"
        )
    for name, value in ends.items():
        print(
            f"after a task: {name} {value:.3f} s, {value / seconds['finetune']:.2f} of its training"
        )
    testing(plain, bare, chosen)


def testing(plain: Contender, bare: Bare, chosen: list[Task]) -> None:
    """The same test sets in batches of 1,000."""
    tests = [plain.stream.tests[task.id] for task in chosen]
    sizes = {"bare": bare, "cl_bench": plain}
    seconds = rounds(tests, {n: (lambda t, r=r: r.evaluate(t, 1000)) for n, r in sizes.items()})
    print(f"\nevaluation in batches of 1,000, median of {len(tests)} test sets")
    for name, value in seconds.items():
        ratio = seconds["bare"] / value
        print(f"{name:20}{len(tests[0]) / value:12.0f} images/s{ratio:8.2f} of bare")


def process(overrides: list[str]) -> None:
    """A whole run as a user starts it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cl_bench.run", f"output_dir={folder}", *overrides]
        started = time.perf_counter()
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        whole = time.perf_counter() - started
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        again = time.perf_counter() - started
    row = [cell.strip() for cell in out.split("│")[1:-1]]
    print(f"\nwhole process {whole:.1f} s: training {row[6]} s, evaluation {row[7]} s,")
    print(f"peak memory {row[8]} MiB; the same command again (start-up and report) {again:.1f} s")


BACKENDS = {
    "diag_fisher labels=empirical": ["curvature=diag_fisher", "curvature.labels=empirical"],
    "diag_fisher labels=sampled": ["curvature=diag_fisher", "curvature.labels=sampled"],
    "diag_fisher labels=exact": ["curvature=diag_fisher", "curvature.labels=exact"],
    "diag_batched": ["curvature=diag_batched"],
    "diag_hessian, 10 probes": ["curvature=diag_hessian"],
    "hessian_row_sums": ["curvature=hessian_row_sums", "curvature.samples=null"],
    "mas": ["curvature=mas"],
    "kfac": ["curvature=kfac"],
    "kfac labels=exact": ["curvature=kfac", "curvature.labels=exact"],
    "tkfac": ["curvature=tkfac"],
    "ekfac": ["curvature=ekfac"],
}
PENALTIES = {
    "diagonal, implicit": ["method=ewc"],
    "diagonal, explicit": ["method=ewc", "method.step=explicit"],
    **{
        f"kfac, {step}, every {n}": ["method=osla", f"method.step={step}", f"method.every={n}"]
        for step in ("implicit", "explicit")
        for n in (1, 10, 20)
    },
    "si": ["method=si"],
}


def curvature(overrides: list[str], tasks: int) -> None:
    """Backends against an epoch of training, penalties against a plain step, Fisher and a loop."""
    base = ["runtime.threads=1", *overrides]
    plain = Contender("method=finetune", *base)
    learner, chosen = plain.method.learner, plain.stream.tasks[:tasks]
    plain.train(chosen[0])

    def passes(estimate: Any) -> Callable[[Task], float]:
        def run(task: Task) -> float:
            started = plain.machine.seconds()
            estimate(learner, task)
            return plain.machine.seconds() - started

        return run

    made = {n: config.build(composed(*base, *o).curvature) for n, o in BACKENDS.items()}
    runners = {"an epoch of training": plain.train, **{n: passes(e) for n, e in made.items()}}
    seconds = rounds(chosen, runners)
    print(f"\none pass over {len(chosen[0])} samples, median of {len(chosen)} tasks")
    for name, value in seconds.items():
        print(f"{name:32}{value:9.3f} s{value / seconds['an epoch of training']:9.2f} epochs")
    few = Task(0, *(getattr(chosen[0], f)[:200] for f in "xyt"))
    loop = looped_fisher(plain, few)
    fast = statistics.median(passes(made["diag_fisher labels=empirical"])(few) for _ in range(5))
    print(f"per-sample Fisher of {len(few)} samples: {loop / fast:.0f} times faster than a loop")
    steps(base, chosen)


def looped_fisher(plain: Contender, task: Task) -> float:
    """Seconds for a backward pass a sample, in Python."""
    learner = plain.method.learner
    total, started = torch.zeros_like(learner.flat.grad), plain.machine.seconds()
    for single in next(task.chunks(len(task))).singles():
        learner.flat.grad.zero_()
        learner.loss(learner.flat.theta, single).backward()
        total += learner.flat.grad.square()
    return plain.machine.seconds() - started


def steps(base: list[str], chosen: list[Task]) -> None:
    """Training steps with a penalty against those without."""
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


def growth() -> None:
    """A task's whole time, its curvature included, over the 100 tasks of manypmnist."""
    print("\n100 tasks: median time of the last five over that of the second to the sixth")
    base = ["dataset=manypmnist", "runtime.threads=1", "optimizer.lr=0.01"]
    apart = "merging=apart", "method.step=explicit", "method.strength=0.01"
    cases = {name: [f"method={name}"] for name in ("ewc", "osla", "mas", "si", "l2", "lwf")}
    for name, chosen in {**cases, "ewc merging=apart": ["method=ewc", *apart]}.items():
        contender = Contender(*base, *chosen)
        tasks = contender.stream.tasks
        seconds = [contender.train(task) + contender.finish(task) for task in tasks]
        ratio = statistics.median(seconds[-5:]) / statistics.median(seconds[1:6])
        print(f"{name:32}{ratio:9.2f}")


def against_curvlinops(samples: int) -> None:
    """K-FAC with sampled labels of a folded ResNet-18 (11.2 M parameters), both on one thread."""
    import warnings

    warnings.simplefilter("ignore")
    from curvlinops import FisherType, KFACLinearOperator

    data = "dataset=seqcifar100", "model=resnet18", "model.norm=folded", "runtime.threads=1"
    cfg = composed(*data, "curvature=kfac")
    machine = config.build(cfg.runtime, seed=0)
    net = machine.place(config.build(cfg.model, shape=(3, 32, 32), num_classes=100))
    transform = config.build(cfg.dataset.transform, device=machine.device)
    optimizer = config.build(config.without(cfg.optimizer, "weight_decay"))
    learner = Learner(net, CrossEntropy(), optimizer, 0.0, transform, machine)
    learner.begin_task(torch.ones(1, 100, dtype=torch.bool), torch.tensor([0]))
    x = torch.randint(0, 256, (samples, 3, 32, 32), dtype=torch.uint8)
    y = torch.randint(0, 100, (samples,))
    task = Task(0, *(part.to(machine.device) for part in (x, y, torch.zeros_like(y))))
    estimate, seen = config.build(cfg.curvature), transform.view(task.x)
    parameters = [p for p in net.parameters() if p.requires_grad]
    options = {"fisher_type": FisherType.MC, "separate_weight_and_bias": False}
    loss = torch.nn.CrossEntropyLoss()

    def ours() -> None:
        estimate(learner, task)

    def theirs() -> None:
        data = [(part, label) for part, label in zip(seen.split(32), task.y.split(32), strict=True)]
        made = KFACLinearOperator(
            net.eval(), loss, parameters, data, check_deterministic=False, **options
        )
        _ = made @ torch.zeros(learner.flat.theta.numel(), device=machine.device)

    taken: dict[str, list[float]] = {"ours": [], "curvlinops": []}
    for _ in range(3):
        for name, run in (("ours", ours), ("curvlinops", theirs)):
            started = machine.seconds()
            run()
            taken[name].append(machine.seconds() - started)
    one, two = (statistics.median(seconds) for seconds in taken.values())
    print(
        f"\nK-FAC of ResNet-18, {samples} samples: {one:.2f} s, curvlinops {two / one:.2f} times it"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="The framework's cost")
    parser.add_argument("overrides", nargs="*", help="as for cl_bench.run")
    parser.add_argument("--tasks", type=int, default=10, help="rounds")
    parser.add_argument("--no-compile", action="store_true", help="skip runtime.compile=true")
    parser.add_argument("--no-process", action="store_true", help="skip the whole process")
    parser.add_argument("--curvature", action="store_true", help="curvature and penalties instead")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {' '.join(args.overrides) or 'pmnist5k'}")
    if args.curvature:
        curvature(args.overrides, args.tasks)
        growth()
        against_curvlinops(64)
        return
    training(args.overrides, args.tasks, not args.no_compile)
    if not args.no_process:
        process(args.overrides)


if __name__ == "__main__":
    main()
