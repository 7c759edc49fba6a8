"""python scripts/same_results.py REVISION: compares the results of this tree with a revision's.

A dozen small configs, which together use every part of the package, are run with both sources. The
accuracy matrices and the SHA-256 of the final parameters must be equal. Run it before a commit that
says "Changes results: no". `--keys old=new,...` lists config keys that were renamed since, and
`--data DIR` names a folder with MNIST/ and cifar100/, which some configs need.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMALL = ("tracking=none", "runtime.threads=1", "dataset.tasks=3", "seed=1")
DIGITS = (*SMALL, "dataset.train_per_task=120")
IMAGES = (*SMALL, "dataset=seqcifar100", "dataset.train_per_task=60", "schedule.epochs=2")
IMAGES += ("evaluation.when=final", "model.pretrained=null", "scenario=task")
KILLED = "er, killed and continued"
CONFIGS = {
    "finetune": (*DIGITS, "method=finetune"),
    KILLED: (*DIGITS, "method=er", "dataset.train_per_task=1000"),
    "derpp, class-IL": (*DIGITS, "dataset=seqmnist", "scenario=class", "method=derpp"),
    "gem": (*DIGITS, "method=gem"),
    "lamaml": (*DIGITS, "method=lamaml"),
    "emcl": (*DIGITS, "method=emcl"),
    "mer": (*DIGITS, "method=mer"),
    "osla": (*DIGITS, "method=osla", "schedule.epochs=2"),
    "ewc on a residual network": (*IMAGES, "model=reduced_resnet18", "method=ewc"),
    "dlcft": (*IMAGES, "model=lenet", "method=dlcft"),
    "halrp": (*IMAGES, "model=lenet", "method=halrp", "method.growth=null"),
    "apd": (*DIGITS, "scenario=task", "method=apd"),
    "a study": ("experiment=taylor_error", "study.samples=500", "study.repeats=1", "tracking=none"),
}


def main() -> None:
    """Run and compare all configs; the exit code is 1 where one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision", help="a commit, or a folder with another checkout")
    parser.add_argument("--keys", default="", metavar="OLD=NEW,...", help="renamed config keys")
    parser.add_argument("--data", help="data_dir of the runs")
    parser.add_argument("--only", help="run only configs whose name contains this")
    asked = parser.parse_args()
    renamed = dict(pair.split("=") for pair in asked.keys.split(",") if pair)
    with tempfile.TemporaryDirectory() as scratch:
        other = checkout(asked.revision, Path(scratch) / "other")
        failed = 0
        for name, words in CONFIGS.items():
            if asked.only and asked.only not in name:
                continue
            old = [next((w.replace(n, o) for o, n in renamed.items() if n in w), w) for w in words]
            data = [f"data_dir={asked.data}"] if asked.data else []
            before = outcome(other, [*old, *data], Path(scratch) / "before" / name, name == KILLED)
            after = outcome(ROOT, [*words, *data], Path(scratch) / "after" / name, name == KILLED)
            same = before == after and not after.startswith("exit code")
            failed += not same
            print(f"{'equal    ' if same else 'DIFFERENT'}  {name}: {after[:60]}", flush=True)
            if not same:
                print(f"           before: {before[:300]}\n           after:  {after[:300]}")
    sys.exit(failed > 0)


def checkout(revision: str, folder: Path) -> Path:
    """A folder with the sources of a revision, cloned to `folder` unless it is a folder itself."""
    if Path(revision).is_dir():
        return Path(revision).absolute()
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "checkout", "-q", revision], check=True)
    return folder


def outcome(sources: Path, words: list[str], where: Path, killed: bool) -> str:
    """The result of a run: theta's hash and the accuracies, the table of a study, or the error.

    With `killed`, the run is killed as soon as it has written a checkpoint, and then continued.
    """
    command = [sys.executable, "-m", "cl_bench.run", *words, f'output_dir="{where}"']
    environment = {**os.environ, "PYTHONPATH": str(sources), "OMP_NUM_THREADS": "1"}
    quiet = subprocess.DEVNULL
    if killed:
        process = subprocess.Popen(
            command, env=environment, cwd=sources, stdout=quiet, stderr=quiet
        )
        while process.poll() is None and not [*where.rglob("checkpoint.pt")]:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, env=environment, cwd=sources, text=True, capture_output=True)
    if done.returncode:
        return f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"
    tables = [*where.rglob("table.csv")]
    if tables:
        return tables[0].read_text()
    (file,) = where.rglob("record.json")
    record = json.loads(file.read_text())
    return f"theta {record['theta_sha256'][:12]}, accuracy {record['accuracy']}"


if __name__ == "__main__":
    main()
