"""Hundreds of command lines, drawn from the groups themselves: one line each, or a run."""

from __future__ import annotations

from pathlib import Path

import commands
import pytest
from conftest import command, finished

COMMANDS = commands.commands()
CHUNK = 12  # commands a test: enough tests to share among processes


def test_there_are_enough_and_they_are_the_same_each_time() -> None:
    assert len(COMMANDS) >= 300 and commands.commands() == COMMANDS


@pytest.mark.parametrize("start", range(0, len(COMMANDS), CHUNK))
def test_each_is_refused_in_one_line_or_accepted(start: int) -> None:
    """`said` raises what no line explains."""
    for words in COMMANDS[start : start + CHUNK]:
        line = commands.said(words)
        if line is not None:
            assert "\n" not in line and 10 < len(line) < 500, (words, line)
            assert ":" in line and "Traceback" not in line, (words, line)


REFUSED = [
    (("=0",), "=0: no key before the ="),
    (("",), "'': an argument is empty"),
    (("--foo",), "--foo: no such option; there are --cfg"),
    (("--config-dir=/nope",), "--config-dir /nope: no such folder"),
    (("dataset=null",), "dataset=null: no such dataset; there are cifar100_split"),
    (("probe=null",), "; leave it out for none"),
    (("dataset.source=5",), "dataset.source=5: must be a node with a _target_"),
    (("dataset.transform=null",), "dataset.transform=None: must be a node with a _target_"),
    (("optimizer=adam", "optimizer.betas=[2,3]"), "Invalid beta parameter at index 0: 2"),
    (("optimizer=adam", "optimizer.betas=[0.9,0.9,0.9]"), "must be a list of 2 values"),
    (("optimizer=adam", "+optimizer.eps=-1"), "Invalid epsilon value: -1"),
    (("optimizer.lr=1e308",), "optimizer._target_=cl_bench.optim.SGD: refuses its options"),
    (("model.hidden=[1000000000]",), "model.hidden=[1000000000]: must be between 1 and 65536"),
    (("model.hidden=[65536,65536,65536]",), "model: 8,642,166,794 parameters take at least"),
    (("criterion._target_=torch.nn.CrossEntropyLoss",), "it lacks with_slope, hessian_root"),
    (("method._partial_=false",), "method._partial_=False: must be true here"),
    (("+method._args_=[1]",), "method._args_=[1]: of these keys only _target_ and _partial_"),
    (("+method._convert_=foo",), "method._convert_=foo: of these keys only"),
    (("runtime.threads=100000",), "runtime.threads=100000: must be between 1 and 1024"),
    (("tracking.project=a/b:c",), "tracking.project=a/b:c: must be a text that is not empty"),
    (("tracking.init_timeout=-1",), "tracking.init_timeout=-1: must be above 0"),
    (("output_dir=''",), "output_dir=: must be a text that is not empty"),
    (("output_dir=~/x",), "is quoted twice, \"output_dir='~/x'\""),
    (("output_dir=/données",), "is quoted twice, \"output_dir='/données'\""),
    (("method=ewc", "curvature=full"), "curvature: a dense matrix of 89610 parameters"),
    (("optimizer._target_=torch.optim.LBFGS", "~optimizer.momentum"), "argument: 'closure'"),
    (("optimizer._target_=torch.optim.SparseAdam", "~optimizer.momentum"), "refuses its options"),
    (("optimizer._target_=torch.optim.AdamW", "~optimizer.momentum"), "whose gradient is zero"),
    (("optimizer._target_=torch.optim.nope",), "optimizer._target_=torch.optim.nope: "),
]


@pytest.mark.parametrize(
    ("words", "line"), REFUSED, ids=[" ".join(r[0]) or "empty" for r in REFUSED]
)
def test_what_is_said(words: tuple[str, ...], line: str) -> None:
    said = commands.said(words)
    assert said is not None and line in said


def test_an_empty_sweep_is_no_success(tmp_path: Path) -> None:
    code, out, err = finished(command("-m", "seed=range(1,0)", where=tmp_path))
    assert code == 2 and "Launching 0 jobs" in out
    assert err == "error: this sweep has no jobs: one of its keys has no values\n"
