"""Command lines made from groups and keys: each ends in one line and exit code 2, or runs.

python tests/commands.py          every command with what the check says of it
python tests/commands.py --run    every accepted one as a process of its own, on few images
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cl_bench import config, errors, hydra_errors

Command = tuple[str, ...]
CONF = str(config.CONF)
GROUPS = (*config.GROUPS, *config.OPTIONAL)
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
    ("output_dir=/a(b)",),
    ("output_dir=/a,b=c",),
    ("output_dir=/données",),
    ("output_dir=/a b",),
    ("dataset.transform.mean=[0,0]",),
    ("dataset.train_per_task=99999999",),
    ("method=ewc", "curvature=full"),
    ("method=ewc", "curvature=full_hessian"),
    ("method=ewc", "curvature=diag_hessian", "curvature.estimate=exact"),
    *((f"optimizer._target_=torch.optim.{name}", "~optimizer.momentum") for name in OPTIMIZERS),
    ("method=er", "buffer._target_=collections.deque"),
    ("scenario=class", "dataset=seqcifar100", "dataset.tasks=100"),
)
WRONG = ("null", "abc", "-1", "0", "1e308", "nan", "[]", "{}", "true", "[1,x]", "1.5", "''")


def commands() -> list[Command]:
    """At least 300, the same each time."""
    rng = random.Random(0)
    found: list[Command] = [*BY_HAND]
    found += [(f"{group}={value}",) for group in GROUPS for value in ("null", "nope", "5", "[1]")]
    found += [(f"~{group}",) for group in GROUPS]
    for base in BASES:
        whole: Any = OmegaConf.to_container(composed(base))
        keys = [key for key, _ in config._leaves(whole, "")]
        keys = [key for key in keys if not key.endswith("_target_") and not key.startswith("tuned")]
        for key in rng.sample(keys, min(len(keys), 18)):
            found.append((*base, f"{key}={rng.choice(WRONG)}"))
        found += [(*base, f"{_typo(key, rng)}=1") for key in rng.sample(keys, 4)]
        found.append((*base, f"~{rng.choice(keys)}"))
    options = {group: _options(group) for group in GROUPS}
    for _ in range(40):
        chosen = rng.sample(sorted(options), 4)
        found.append(tuple(f"{group}={rng.choice(options[group])}" for group in chosen))
    return list(dict.fromkeys(found))


def _options(group: str) -> list[str]:
    return sorted(p.stem for p in (config.CONF / group).glob("*.yaml"))


def _typo(key: str, rng: random.Random) -> str:
    """Two letters of a key's last part in each other's place, or one more."""
    head, dot, tail = key.rpartition(".")
    place = rng.randrange(len(tail))
    swapped = tail[:place] + tail[place : place + 2][::-1] + tail[place + 2 :]
    return head + dot + (swapped if swapped != tail else f"{tail}x")


def composed(command: Command) -> DictConfig:
    """The config of a command line, as Hydra makes it."""
    words = hydra_errors.arguments(list(command))
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", words)


def said(command: Command) -> str | None:
    """The one line that a command is refused with; None: it is accepted."""
    try:
        cfg = composed(command)
        plain = config.check(cfg)
        config.settle(cfg, plain)
        config.digest(cfg)
    except Exception as error:
        line = errors.explain(error)
        if line is None:
            raise
        return line
    return None


def run(command: Command, where: Path) -> str:
    """What a whole process makes of a command: done, one line, or a traceback."""
    small = ["tracking=none", "runtime.threads=1", f"output_dir={where}"]
    small += ["stream.first=2", "schedule.epochs=1", "dataset.train_per_task=20"]
    typed = {word.lstrip("+~").partition("=")[0] for word in command}
    groups = {key.partition(".")[0] for key in typed}
    extra = [word for word in small if word.partition("=")[0] not in typed]
    if "study" in groups:
        extra = extra[:3]
    words = [sys.executable, "-m", "cl_bench.run", *command, *extra]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
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
