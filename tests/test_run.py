"""The command itself, as a user meets it: each test is a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SLOW, command, composed, finished

import cl_bench.run  # noqa: F401  (the module imports without a config)
from cl_bench.config.name import config_hash

SMALL = ("dataset.tasks=3", "dataset.train_per_task=300", "tracking=none", "runtime.threads=1")


def only(where: Path, pattern: str) -> Path:
    """The one file of that name below `where`."""
    (found,) = where.rglob(pattern)
    return found


def record(where: Path) -> dict[str, Any]:
    return json.loads(only(where, "record.json").read_text())


def proved(where: Path) -> dict[str, Any]:
    """The record without what differs between two runs of one config."""
    found = record(where)
    found.pop("measured")
    for place in ("output_dir", "data_dir"):
        found["config"].pop(place)
    found["config"]["dataset"]["source"].pop("data_dir")
    return found


def test_a_run_leaves_its_evidence_and_is_not_repeated(tmp_path: Path) -> None:
    code, out, err = finished(command(*SMALL, "method=er", where=tmp_path))
    assert code == 0, err
    folder = only(tmp_path, "record.json").parent
    names = {p.name for p in folder.iterdir()}
    left = {"config.yaml", "metrics.jsonl", "record.json", "status.json", "accuracy.csv"}
    assert left | {"accuracy.png", "acc.png", "checkpoint.pt"} <= names
    assert (
        folder
        == tmp_path / "pmnist5k/data/er" / config_hash(composed(*SMALL, "method=er")) / "seed0"
    )
    proof = record(tmp_path)
    assert "ACC" in out and f"{100 * proof['metrics']['ACC']:.2f}" in out and str(folder) in out
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tasks = [row for row in rows if row["event"] == "task"]
    assert [row["task"] for row in tasks] == [0, 1, 2]
    assert tasks[-1]["metrics"] == proof["metrics"]
    assert proof["stream"]["train_images"] == [300, 300, 300]
    assert proof["parameters"] == 89_610 and proof["state_bytes"] > 200 * 784
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    before = (folder / "record.json").stat().st_mtime_ns
    (folder / "status.json").write_text('{"state": "running", "pid": 1}')  # killed right after it
    code, out, err = finished(command(*SMALL, "method=er", where=tmp_path))
    assert code == 0 and "not repeated" in out
    assert (folder / "record.json").stat().st_mtime_ns == before
    code, out, err = finished(command(*SMALL, "method=er", "force=true", where=tmp_path))
    assert code == 0 and (folder / "record.json").stat().st_mtime_ns != before
    again = record(tmp_path)
    assert {k: v for k, v in again.items() if k not in ("measured", "config")} == {
        k: v for k, v in proof.items() if k not in ("measured", "config")
    }


LONG = (*SLOW, *SMALL, "schedule.epochs=5", "log_every=25")


def interrupted(where: Path, how: signal.Signals) -> tuple[int, str]:
    """Start a run, wait until it is in the middle of a task, send it a signal."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # tests in the background; runs inherit
        signal.signal(signal.SIGINT, signal.default_int_handler)
    process = command(*LONG, where=where)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        rows = [p.read_text().count("\n") for p in where.rglob("metrics.jsonl")]
        if rows and rows[0] >= 9:  # a task of 7 rows, and a bit
            break
        time.sleep(0.005)
    process.send_signal(how)
    code, _, err = finished(process)
    return code, err


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run lies that was never stopped."""
    where = tmp_path_factory.mktemp("straight")
    assert finished(command(*LONG, where=where))[0] == 0
    return where


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stop_and_continue(how: signal.Signals, tmp_path: Path, straight: Path) -> None:
    """Whatever stops a run, typing it again gives the record of a run that was never stopped."""
    broken = tmp_path / "broken"
    code, err = interrupted(broken, how)
    assert code == -how, (code, err)
    assert not list(broken.rglob("record.json")), "it was stopped before its end"
    state = json.loads(only(broken, "status.json").read_text())["state"]
    if how != signal.SIGKILL:
        assert state == "stopped" and "the same command continues" in err
        assert only(broken, "checkpoint.pt").exists()
    assert finished(command(*LONG, where=broken))[0] == 0
    assert proved(broken) == proved(straight)
    lines = [only(where, "metrics.jsonl").read_text() for where in (straight, broken)]
    assert lines[0] == lines[1]


WRONG = [
    ("method=nope", "error: method=nope: no such method; there are"),
    ("dataset=nope", "error: dataset=nope: no such dataset; there are"),
    ("method=ewc,er", "error: Ambiguous value for argument 'method=ewc,er': several values are a"),
    ("method.nope=1", "error: method.nope: no such key"),
    ("seed=abc", "error: seed=abc: must be an integer"),
    ("dataset.heads=apart", "error: dataset.heads=apart: with dataset.split=permutation"),
    ("stream=joint", "error: stream=joint: stream=joint and method=joint need each other"),
]


@pytest.mark.parametrize(("override", "line"), WRONG, ids=[w[0] for w in WRONG])
def test_mistakes_cost_one_line(override: str, line: str, tmp_path: Path) -> None:
    nowhere = tmp_path / "data"
    code, out, err = finished(command(override, f"data_dir={nowhere}", where=tmp_path / "out"))
    assert code == 2 and out == ""
    assert err.startswith(line) and err.count("\n") == 1
    assert not nowhere.exists(), "no data was touched"
    assert not list(tmp_path.rglob("status.json")), "no run was begun"


def test_missing_data_is_one_line(tmp_path: Path) -> None:
    """A folder data set is never downloaded: what was sought, where, and in which layout."""
    code, _, err = finished(
        command("dataset=folder", f"data_dir={tmp_path}", "tracking=none", where=tmp_path / "out")
    )
    assert code == 2 and str(tmp_path / "images") in err.splitlines()[-1]
    assert "{train,test}/<class>/*" in err.splitlines()[-1]
    assert not list((tmp_path / "out").rglob("status.json")), "no run has begun"


def test_a_loss_that_is_not_finite_fails_the_run(tmp_path: Path) -> None:
    code, _, err = finished(command(*SMALL, "optimizer.lr=1e6", where=tmp_path))
    assert code == 2 and "the loss is" in err and "lower optimizer.lr" in err
    assert json.loads(only(tmp_path, "status.json").read_text())["state"] == "failed"


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    words = (*LONG, "schedule.epochs=15")
    first = command(*words, where=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.01)
    code, _, err = finished(command(*words, where=tmp_path))
    assert code == 2 and "another process is working on this run" in err
    assert finished(first)[0] == 0


def test_a_sweep_goes_on_past_a_failure_and_repeats_nothing(tmp_path: Path) -> None:
    sweep = ("-m", "method=finetune,er", "optimizer.lr=0.03,1e6", *SMALL)
    sweep += ("hydra.sweep.subdir=job_${hydra.job.num}",)
    code, _, err = finished(command(*sweep, where=tmp_path))
    assert code == 2 and "the loss is" in err
    told = err[err.index("2 jobs failed:") :].splitlines()
    assert told[1].startswith("  method=finetune optimizer.lr=1000000.0")
    assert "the loss is" in told[1] and str(tmp_path) in told[1] and len(told) == 3
    states = [json.loads(p.read_text())["state"] for p in tmp_path.rglob("status.json")]
    assert sorted(states) == ["done", "done", "failed", "failed"]
    assert not [*tmp_path.rglob("*.png")], "the jobs of a sweep are not drawn unless it is asked"
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("record.json")}
    finished(command(*sweep, where=tmp_path))
    assert times == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("record.json")}


def test_a_fresh_interpreter_gives_the_same_record(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """`python -m cl_bench.run` itself: nothing is imported before, sets of texts have any order."""
    words = (*SMALL, "method=ewc", f"output_dir={tmp_path}", f"data_dir={tmp_path / 'data'}")
    here = {"PYTHONHASHSEED": "1", "CL_BENCH_DATA": str(tmp_path_factory.getbasetemp() / "fresh")}
    call = [sys.executable, "-m", "cl_bench.run", *words]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, env=os.environ | here)
    assert done.returncode == 0, done.stderr
    forked = tmp_path / "forked"
    assert finished(command(*SMALL, "method=ewc", where=forked))[0] == 0
    assert proved(tmp_path / "pmnist5k") == proved(forked)
