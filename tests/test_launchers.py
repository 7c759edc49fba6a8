"""Sweeps by every launcher: the same records, also when killed half way and typed again."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import SLOW, command, finished

RUNS = ("-m", *SLOW, "dataset.tasks=2", "runtime.threads=1", "tracking=none")
RUNS += ("dataset.train_per_task=200",)
# two runs: the second one still trains, for seconds, when the first one ends
SWEEP = (*RUNS, "schedule.epochs=1,12")
RAY = ("hydra.launcher.ray.init.address=null", "hydra.launcher.ray.remote.num_gpus=0")
OWN: dict[str, tuple[str, ...]] = {"cores": ("hydra.launcher.n_jobs=2",), "ray_cluster": RAY}
PLUGIN = {"cores": "joblib", "slurm_local": "submitit", "ray_cluster": "ray"}


def records(where: Path) -> dict[str, Any]:
    """What each run proved, by its folder."""
    found = {}
    for file in where.rglob("record.json"):
        proof = json.loads(file.read_text())
        kept = ("hash", "seed", "stream", "accuracy", "metrics", "theta_sha256")
        found[str(file.parent.relative_to(where))] = {name: proof[name] for name in kept}
    return found


def until(true: Callable[[], Any], what: str, seconds: float = 200) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.05)


def running(where: Path) -> list[int]:
    """The processes that are at a run without a record."""
    files = [f for f in where.rglob("status.json") if not (f.parent / "record.json").exists()]
    states = [json.loads(file.read_text()) for file in files]
    pids = [state["pid"] for state in states if state["state"] == "running"]
    return [pid for pid in pids if Path(f"/proc/{pid}/stat").exists() and not zombie(pid)]


def zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The sweep by Hydra's own launcher, undisturbed."""
    where = tmp_path_factory.mktemp("straight") / "outputs"
    code, _, err = finished(command(*SWEEP, where=where))
    assert code == 0, err
    found = records(where)
    assert len(found) == 2
    return found


LAUNCHERS = ["basic", "cores", "slurm_local", pytest.param("ray_cluster", marks=pytest.mark.ray)]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_killed_sweep_goes_on(launcher: str, straight: dict[str, Any], tmp_path: Path) -> None:
    """kill -9 on the parent and the worker that is at the second run: no loss, no repetition."""
    plugin = PLUGIN.get(launcher)
    if plugin and find_spec(f"hydra_plugins.hydra_{plugin}_launcher") is None:
        pytest.skip(f"hydra-{plugin}-launcher is not installed")
    sweep = (*SWEEP, f"hydra/launcher={launcher}", *OWN.get(launcher, ()))
    where = tmp_path / "outputs"
    process = command(*sweep, where=where, RAY_AUTH_MODE="disabled")
    first = lambda: records(where) and (launcher == "basic" or running(where))  # noqa: E731
    until(lambda: first() or process.poll() is not None, "one record, and the other run at work")
    assert process.poll() is None, finished(process)[2]
    for pid in {process.pid, *running(where)}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    until(lambda: not running(where), "the workers' end")
    done = {file: file.stat().st_mtime for file in where.rglob("record.json")}
    assert len(done) == 1, "it was killed before its end"

    code, _, err = finished(command(*sweep, where=where, RAY_AUTH_MODE="disabled"))
    assert code == 0, err
    assert {file: file.stat().st_mtime for file in done} == done
    assert records(where) == straight


def test_workers_end_with_their_command(tmp_path: Path) -> None:
    """kill -9 on the parent alone: its workers write a checkpoint and end; none waits for work."""
    if find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        pytest.skip("hydra-joblib-launcher is not installed")
    where = tmp_path / "outputs"
    long = (*RUNS, "seed=0,1", "schedule.epochs=500", "hydra/launcher=cores", *OWN["cores"])
    process = command(*long, where=where)
    rows = "metrics.jsonl"
    until(lambda: len([f for f in where.rglob(rows) if f.stat().st_size]) == 2, "two runs' rows")
    workers = running(where)
    assert len(workers) == 2 and process.pid not in workers
    os.kill(process.pid, signal.SIGKILL)
    finished(process)
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), "their end")
    states = [json.loads(file.read_text())["state"] for file in where.rglob("status.json")]
    assert states == ["stopped"] * 2 and len(list(where.rglob("checkpoint.pt"))) == 2


def test_a_preempted_job_is_queued_again(straight: dict[str, Any], tmp_path: Path) -> None:
    """SIGUSR2, as SLURM sends it: a checkpoint, a requeue, the record of a straight run.

    And it sees the GPUs that the command sees, which submitit hides.
    """
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    where = tmp_path / "outputs"
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    words = (*RUNS, "schedule.epochs=12", "hydra/launcher=slurm_local")
    process = command(*words, where=where, CUDA_VISIBLE_DEVICES=gpus)
    until(lambda: any(f.stat().st_size for f in where.rglob("metrics.jsonl")), "a first row")
    (worker,) = running(where)
    os.kill(worker, signal.SIGUSR2)
    code, _, err = finished(process)
    assert code == 0, err
    told = "".join(file.read_text() for file in where.rglob("*_log.*"))
    assert "Requeued job" in told and ": continues at " in told
    assert set(re.findall("sees GPUs (.*)", told)) == {gpus}
    (name, found), *_ = records(where).items()
    assert found == straight[name]
