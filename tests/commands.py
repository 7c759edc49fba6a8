"""Command lines made from groups and keys: each ends in one line and exit code 2, or runs.

python tests/commands.py          every command with what the check says of it
python tests/commands.py --run    every accepted one as a process of its own, on few images
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest
from omegaconf import DictConfig, OmegaConf

from cl_bench.config import errors
from cl_bench.config.arguments import checked_arguments
from cl_bench.config.build import build, make_method, make_stream
from cl_bench.config.check import check_config
from cl_bench.config.name import config_hash, normalise_floats
from cl_bench.config.nodes import CONF, GROUPS, OPTIONAL, all_leaves
from cl_bench.engine import experiment
from cl_bench.engine.session import Host, Progress, Session

Command = tuple[str, ...]
GROUPS = (*GROUPS, *OPTIONAL)
BASES: tuple[Command, ...] = (  # together they have every group and most options
    (),
    ("method=ewc", "curvature=diag_hessian"),
    ("method=dlcft", "dataset=seqcifar100", "model.pretrained=null"),
    ("method=halrp", "dataset=cifar100_split", "model=alexnet"),
    ("method=lamaml", "optimizer=adam"),
    ("method=emcl", "probe=max_eigenvalue"),
    ("study=taylor_error",),
)
OPTIMIZERS = (
    *("Adam", "AdamW", "Adamax", "Adagrad", "Adadelta", "ASGD", "LBFGS", "NAdam", "RAdam"),
    *("RMSprop", "Rprop", "SGD", "SparseAdam", "Optimizer", "nope"),
)
BY_HAND: tuple[Command, ...] = (
    ("=0",),
    ("",),
    (" ",),
    ("--foo",),
    ("--config-dir=/nope",),
    ("dataset.source=5",),
    ("dataset.transform=null",),
    ("optimizer=adam", "optimizer.betas=[2,3]"),
    ("optimizer=adam", "optimizer.betas=[0.9,0.99,0.999]"),
    ("optimizer=adam", "+optimizer.eps=-1"),
    ("optimizer.lr=1e308",),
    ("model.hidden=[1000000000]",),
    ("model.hidden=[65536,65536,65536]",),
    ("criterion._target_=torch.nn.CrossEntropyLoss",),
    ("method._target_=torch.nn.Linear",),
    ("method._target_=os.system",),
    ("dataset.source._target_=builtins.dict",),
    ("method._partial_=false",),
    ("+criterion._partial_=true",),
    ("+method._args_=[1]",),
    ("+method._convert_=foo",),
    ("+method._recursive_=false",),
    ("runtime.threads=100000",),
    ("tracking.project=a/b:c",),
    ("tracking.init_timeout=-1",),
    ("output_dir=''",),
    ("data_dir=''",),
    ("cache_dir=''",),
    ("output_dir=~/x",),
    ("output_dir=a(b)",),
    ("output_dir=a,b=c",),
    ("output_dir=données",),
    ("output_dir=a b",),
    ("dataset.transform.mean=[0,0]",),
    ("dataset.train_per_task=99999999",),
    ("method=ewc", "curvature=full"),
    ("method=ewc", "curvature=full_hessian"),
    ("method=ewc", "curvature=diag_hessian", "curvature.estimate=exact"),
    *((f"optimizer._target_=torch.optim.{name}", "~optimizer.momentum") for name in OPTIMIZERS),
    ("method=er", "buffer._target_=collections.deque"),
    ("scenario=class", "dataset=seqcifar100", "dataset.tasks=100"),
    ("experiment=[dlcft/data10,dlcft/linear]",),
    ("experiment=[dlcft/data10,nope]",),
    ("experiment=dlcft/figure6", "model.pretrained=null", "~probe"),
    ("hydra/job_logging=null",),
    ("--cfg",),
    ("--info=nope",),
    ("--multirun", "--cfg=job"),
    ("--resolve",),
    ("output_dir=it's",),
    ('output_dir="a',),
    ("output_dir=a,b",),
    ("méthode=er",),
    ("seed=foo(1)",),
    ("seed=${seed}",),
    ("-m", "seed=range(1,0)"),
    ("-m", "method=glob(nope*)"),
    ("seed=${nope}",),
    ("model.pretrained='a\nb\x1b'",),
    ("method._target_=5",),
    ("method._target_=cl_bench.methods.base.Method",),
    ("criterion._target_=cl_bench.core.criteria.Criterion",),
    ("+runtime.seed=3",),
    ("+model.num_classes=7",),
    ("scenario.live=5",),
    ("scenario.live._target_=cl_bench.data.scenario.class_il",),
    ("schedule.batch_size=99999999999999999999",),
    ("dataset.tasks=2147483647",),
    ("dataset=pmnist", "dataset.tasks=10000"),
    ("method=er", "buffer.capacity=2000000000"),
    ("method=gem", "buffer.per_task=20000000"),
    ("method=ewc", "method.strength=1e308"),
    ("optimizer._target_=torch.optim.SGD", "optimizer.momentum=1.5"),
    ("optimizer._target_=torch.optim.AdamW", "~optimizer.momentum", "optimizer.lr=1e-6"),
    ("optimizer=adam", "+optimizer.eps=0"),
    ("dataset=five_datasets", "dataset.source.of=[mnist,nope]"),
    ("study=hessian_ratio", "study.dimensions=[]"),
)
FEW = ("stream.first=2", "schedule.epochs=2", "dataset.train_per_task=20", "evaluation.when=final")
UNDERSCORE = ("_args_", "_convert_", "_recursive_", "_partial", "_foo_")
WRONG = ("null", "abc", "-1", "0", "1e308", "nan", "[]", "{}", "true", "[1,x]", "1.5", "''")


def commands() -> list[Command]:
    """At least 300, the same each time."""
    rng = random.Random(0)
    found: list[Command] = [*BY_HAND]
    found += [(f"{group}={value}",) for group in GROUPS for value in ("null", "nope", "5", "[1]")]
    found += [(f"~{group}",) for group in GROUPS]
    found += [(f"+{group}.{rng.choice(UNDERSCORE)}=1",) for group in GROUPS]
    for base in BASES:
        content: Any = OmegaConf.to_container(composed(base))
        keys = [key for key, _ in all_leaves(content, "")]
        keys = [key for key in keys if not key.endswith("_target_") and not key.startswith("tuned")]
        half = rng.sample(keys, len(keys) // 2)
        found += [(*base, f"{key}={rng.choice(WRONG)}") for key in half]
        found += [(*base, f"{_typo(key, rng)}=1") for key in rng.sample(keys, 4)]
        found.append((*base, f"~{rng.choice(keys)}"))
    options = {group: _options(group) for group in GROUPS}
    for _ in range(40):
        chosen = rng.sample(sorted(options), 4)
        found.append(tuple(f"{group}={rng.choice(options[group])}" for group in chosen))
    return list(dict.fromkeys(found))


def _options(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def _typo(key: str, rng: random.Random) -> str:
    """Two letters of a key's last part in each other's place, or one more."""
    head, dot, tail = key.rpartition(".")
    place = rng.randrange(len(tail))
    swapped = tail[:place] + tail[place : place + 2][::-1] + tail[place + 2 :]
    return head + dot + (swapped if swapped != tail else f"{tail}x")


def composed(command: Command) -> DictConfig:
    """The config of a command line, as the command composes it."""
    return conftest.composed(*checked_arguments(list(command)))


def said(command: Command) -> str | None:
    """The one line that a command is refused with; None: it is accepted."""
    return refusal(lambda: composed(command))


def refusal(make: Callable[[], DictConfig]) -> str | None:
    """The line that a config is refused with when it is made and checked; None: it is right."""
    try:
        cfg = make()
        plain = check_config(cfg)
        normalise_floats(cfg, plain)
        config_hash(cfg)
    except Exception as error:
        line = errors.explain(error)
        if line is None:
            raise
        return line
    return None


def few(command: Command) -> list[str]:
    """Overrides that make a run short; a stream without boundaries has one epoch anyway."""
    hidden = {"stream=online", "stream.boundaries=false"} & {*command}
    return [word for word in FEW if not (hidden and word.startswith("schedule.epochs="))]


def first_step(command: Command, home: Path) -> float:
    """The loss of the first step of an accepted command, on few images; all is built for it."""
    typed = {word.lstrip("+~").partition("=")[0] for word in command}
    small = [word for word in few(command) if word.partition("=")[0] not in typed]
    cfg = composed((*command, *small, f"data_dir={home}"))
    normalise_floats(cfg, check_config(cfg))
    machine = build(cfg.runtime, seed=0)
    stream = make_stream(cfg, machine.device)
    method, schedule = make_method(cfg, machine, stream), build(cfg.schedule)
    task, progress, host = stream.tasks[0], Progress.start(stream), Host()
    method.learner.reveal(stream.live(task.id), task.t.unique(), stream.live_at_end)
    rest = schedule, build(cfg.evaluation), machine.order, progress, host
    experiment.prepare_task(Session(method, stream, *rest), task)
    return method.observe(next(task.batches(schedule.batch_size, machine.order))).item()


def run(command: Command, where: Path) -> str:
    """What a whole process makes of a command: done, one line, or a traceback.

    It works in the folder `where`, so that nothing is written beside it.
    """
    where.mkdir(parents=True)
    small = ["tracking=none", "runtime.threads=1", f"output_dir={where}", *few(command)]
    typed = {word.lstrip("+~").partition("=")[0] for word in command}
    groups = {key.partition(".")[0] for key in typed}
    extra = [word for word in small if word.partition("=")[0] not in typed]
    if "study" in groups:
        extra = extra[:3]
    words = [sys.executable, "-m", "cl_bench.run", *command, *extra]
    done = subprocess.run(
        words,
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode == 0:
        return "done"
    lines = done.stderr.strip().splitlines()
    one = done.returncode == 2 and len([x for x in lines if x.startswith("error: ")]) == 1
    return lines[-1] if one and "Traceback" not in done.stderr else f"BROKEN: {lines[-1:]}"


def main() -> None:
    whole, outcomes = "--run" in sys.argv, Counter[str]()
    with tempfile.TemporaryDirectory() as where:
        for number, command in enumerate(commands()):
            line = said(command)
            if line is None and whole:
                line = run(command, Path(where) / str(number))
            kind = "accepted" if line in (None, "done") else "refused"
            outcomes["BROKEN" if line and line.startswith("BROKEN") else kind] += 1
            shown = re.sub(r"\s+", " ", line or "accepted")
            print(f"{' '.join(command) or '(defaults)'}\n    {shown}", flush=True)
    print(dict(outcomes))


if __name__ == "__main__":
    main()
