"""Measures the overhead of the framework and of methods over a training loop in plain PyTorch.

    python scripts/bench.py                        # the embedded digits: no download
    python scripts/bench.py dataset=pmnist         # any data set, any override of cl_bench.run
    python scripts/bench.py dataset=seqcifar100 dataset.tasks=20 --tasks 2
    python scripts/bench.py dataset=pmnist --curvature   # curvatures, penalties, curvlinops
    python scripts/bench.py --linearized --tasks 3       # linearised networks (CIFAR-100)
    python scripts/bench.py --lowrank --tasks 3 schedule.epochs=5   # HALRP (CIFAR-100)
    python scripts/bench.py dataset=pmnist --online --tasks 3    # replay, projection, meta-learning
    python scripts/bench.py dataset=pmnist --peers --tasks 6     # Avalanche, where it is installed
    python scripts/bench.py dataset=pmnist --gpu --tasks 3       # CUDA graphs, several runs at once

In each round one task is trained by the plain loop and by each contender in turn, so that a slow
moment of the machine affects all of them. The ratios are those of the medians over the rounds. The
CPU runs with one thread, since such small networks gain nothing from a second one. With --save the
ratios are written to results/speed.csv.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time

import torch
from bench_curvature import curvature
from bench_gpu import gpu
from bench_linearized import linearized
from bench_lowrank import lowrank
from bench_online import online
from bench_peers import peers
from contenders import Bare, Contender, composed, rounds
from ratios import Ratios

from cl_bench.base.exceptions import UserError
from cl_bench.config.errors import Parser
from cl_bench.core.types import Task
from cl_bench.engine import checkpoint


def positive(text: str) -> int:
    """The value of an argument that must be a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be an integer, at least 1")
    return int(text)


LOOP = "the loop of a run, against a bare PyTorch loop over the same tensors"


def training(overrides: list[str], tasks: int, compiled: bool, found: Ratios) -> None:
    """Compare the training loop with the plain one, and each method with finetune."""
    base = ["runtime.threads=1", *overrides]
    plain = Contender("method=finetune", *base)
    bare = Bare(plain, composed(*base))
    contenders = {"finetune": plain}
    if compiled:
        contenders["finetune compiled"] = Contender("runtime.compile=true", *base)
    for name in ("er", "agem", "ewc"):
        contenders[name] = Contender(f"method={name}", *base)
    chosen = plain.stream.tasks[:tasks]
    after: dict[str, float] = {}  # seconds of what a method does after a task
    for name in ("er", "agem", "ewc"):  # so that there is a past task to replay or protect
        contenders[name].train(chosen[0])
        after[name] = contenders[name].finish(chosen[0])
    seconds = rounds(chosen, {"bare": bare.train, **{n: c.train for n, c in contenders.items()}})
    samples = len(chosen[0])
    print(f"\ntraining, {samples} samples a task, median of {len(chosen)} tasks")
    print(f"{'':20}{'samples/s':>12}{'of bare':>10}{'cost / finetune':>17}{'state MiB':>11}")
    for name, value in seconds.items():
        state = checkpoint.state_bytes(contenders[name].method) / 2**20 if name != "bare" else 0
        print(
            f"{name:20}{samples / value:12.0f}{seconds['bare'] / value:10.2f}"
            f"{value / seconds['finetune']:17.2f}{state:11.2f}"
        )
    found.add(LOOP, "training speed", seconds["bare"] / seconds["finetune"])
    for name, value in after.items():
        print(
            f"after a task: {name} {value:.3f} s, {value / seconds['finetune']:.2f} of its training"
        )
    testing(plain, bare, chosen, found)


def testing(plain: Contender, bare: Bare, chosen: list[Task], found: Ratios) -> None:
    """Compare evaluation with the plain one, on the same test sets in batches of 1,000."""
    tests = [plain.stream.tests[task.id] for task in chosen]
    runners = {"bare": bare, "cl_bench": plain}
    seconds = rounds(tests, {n: (lambda t, r=r: r.evaluate(t, 1000)) for n, r in runners.items()})
    print(f"\nevaluation in batches of 1,000, median of {len(tests)} test sets")
    found.add(LOOP, "test speed", seconds["bare"] / seconds["cl_bench"])
    for name, value in seconds.items():
        ratio = seconds["bare"] / value
        print(f"{name:20}{len(tests[0]) / value:12.0f} images/s{ratio:8.2f} of bare")


def process(overrides: list[str]) -> None:
    """Measure a whole run as a user starts it, and the same command again."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cl_bench.run", f"output_dir={folder}", *overrides]
        started = time.perf_counter()
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        whole = time.perf_counter() - started
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        again = time.perf_counter() - started
    row = [cell.strip() for cell in out.split("│")[1:-1]]
    print(f"\nwhole process {whole:.1f} s: training {row[7]} s, evaluation {row[8]} s,")
    print(f"peak memory {row[9]} MiB; the same command again (start-up and report) {again:.1f} s")


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = Parser(description="Measure the overhead of the framework and of methods.")
    parser.add_argument("overrides", nargs="*", help="those of cl_bench.run")
    parser.add_argument(
        "--tasks", type=positive, default=10, help="number of rounds, one task each"
    )
    parser.add_argument("--no-compile", action="store_true", help="skip runtime.compile=true")
    parser.add_argument(
        "--no-process", action="store_true", help="skip the measurement of a whole run"
    )
    parser.add_argument(
        "--curvature", action="store_true", help="measure curvatures and penalties instead"
    )
    parser.add_argument(
        "--only",
        metavar="NAMES",
        help="with --curvature, passes of these alone, e.g. 'diag_fisher sampled,mas'",
    )
    parser.add_argument(
        "--linearized", action="store_true", help="measure linearised networks instead"
    )
    parser.add_argument("--online", action="store_true", help="measure single-pass methods instead")
    parser.add_argument("--lowrank", action="store_true", help="measure HALRP instead")
    parser.add_argument(
        "--peers", action="store_true", help="measure against other frameworks that are installed"
    )
    parser.add_argument(
        "--gpu", action="store_true", help="measure CUDA graphs and several runs at once instead"
    )
    parser.add_argument(
        "--runs", type=positive, default=8, help="with --gpu, the number of runs at once"
    )
    parser.add_argument("--save", action="store_true", help="write the ratios to results/speed.csv")
    args = parser.parse_intermixed_args()
    if args.only is not None and not args.curvature:
        parser.error(f"--only {args.only}: has no meaning without --curvature")
    return args


def main() -> None:
    """Run the benchmark that the command line asks for."""
    args = arguments()
    print(f"torch {torch.__version__}, {' '.join(args.overrides) or 'pmnist5k'}")
    found = Ratios(args.overrides)
    measure(args, args.overrides, args.tasks, found)
    if args.save:
        found.save()


def measure(args: argparse.Namespace, overrides: list[str], tasks: int, found: Ratios) -> None:
    """Run what the command line asks for; the ratios are added to `found`."""
    if args.online:
        online(overrides, tasks, not args.no_compile, found)
    elif args.lowrank:
        lowrank(overrides, tasks, found)
    elif args.linearized:
        linearized(overrides, tasks, found)
    elif args.peers:
        peers(overrides, tasks, found)
    elif args.gpu:
        gpu(overrides, tasks, args.runs, found)
    elif args.curvature:
        curvature(overrides, tasks, args.only, found)
    else:
        training(overrides, tasks, not args.no_compile, found)
        if not args.no_process:
            process(overrides)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
