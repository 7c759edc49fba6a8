"""wandb, read back with wandb's own tool from what an offline run left on the disk."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, command, finished

from cl_bench.results import tracking

SMALL = ("dataset.tasks=3", "dataset.train_per_task=200", "runtime.threads=1")


def inspected(run: Path) -> dict[str, Any]:
    """`wandb leet inspect --summary --json` of one offline run."""
    tool = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(run)]
    out = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    return json.loads(out)


def lines(run: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of one offline run by their kind, in their order."""
    tool = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    out = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[dict[str, Any]]] = {}
    for line in map(json.loads, out.splitlines()):
        found.setdefault(line["type"], []).append(line.get(line["type"]))
    return found


def test_each_run_of_a_process_is_a_wandb_run(tmp_path: Path) -> None:
    tool = [sys.executable, str(ROOT / "scripts/workspace.py"), "--show", "me"]
    view = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    shown = {"eval/ACC", "eval/BWT", "train/loss", "ACC", "BWT", "gradients_per_sample", "peak_mib"}
    assert all(f'"{name}"' in view or f":{name}" in view for name in shown), view
    sweep = ("-m", "method=er", "seed=0,1", "figures=true", *SMALL)
    code, out, err = finished(command(*sweep, where=tmp_path))
    assert code == 0, err
    assert "wandb: offline" in out
    runs = sorted(tmp_path.rglob("offline-run-*"))
    records = sorted(tmp_path.rglob("record.json"))
    assert len(runs) == len(records) == 2
    groups, ids = set(), set()
    for run in runs:
        record = json.loads((run.parents[1] / "record.json").read_text())
        seen, kept = inspected(run), lines(run)
        assert seen["summary"]["ACC"] == pytest.approx(record["metrics"]["ACC"])
        assert seen["summary"]["BWT"] == pytest.approx(record["metrics"]["BWT"])
        assert seen["config"]["seed"] == record["seed"]
        ids.add(run.name.rpartition("-run-")[2].partition("-")[2])
        groups.add(record["hash"])
        place = run.parents[1].relative_to(tmp_path)
        assert kept["run"][0]["run_group"] == str(place.parent)
        history = [line["item"] for line in kept["history"]]
        curve = {item["task"]: item["eval/ACC"] for item in history if "eval/ACC" in item}
        until = [record["accuracy"][t][: t + 1] for t in range(3)]
        assert curve == pytest.approx({t: sum(row) / (t + 1) for t, row in enumerate(until)})
        globs = {m.get("glob_name"): m.get("step_metric") for m in kept["metric"]}
        assert globs["eval/*"] == "task" and globs["train/*"] == "step"
        media = {p.parent.name for p in (run / "files/media").rglob("*.*")}
        assert media == {"images", "table"}
        assert shown <= seen["summary"].keys()
    assert len(ids) == 2 and len(groups) == 1
    code, out, _ = finished(command(*sweep, where=tmp_path))
    assert code == 0 and out.count("not repeated") == 2
    assert sorted(tmp_path.rglob("offline-run-*")) == runs


def test_a_killed_run_is_whole_in_its_one_folder(tmp_path: Path) -> None:
    """kill -9 once a task is done: what wandb had of it, if anything, is written again.

    The folder of the killed attempt is gone: `wandb sync` of all folders sends no row twice.
    """
    one = ("method=gem", "dataset.tasks=4", "runtime.threads=1", "log_every=20")
    process = command(*one, where=tmp_path)
    end = time.monotonic() + 200
    while not any(tmp_path.rglob("checkpoint.pt")) and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert finished(process)[0] == -signal.SIGKILL, "killed before its end"
    code, _, err = finished(command(*one, where=tmp_path))
    assert code == 0 and ": continues at " in err, err
    runs = sorted(tmp_path.rglob("offline-run-*"))
    record = json.loads((runs[-1].parents[1] / "record.json").read_text())
    assert len(runs) == 1
    history = [line["item"] for line in lines(runs[-1])["history"]]
    assert [item["task"] for item in history if "eval/ACC" in item] == [0, 1, 2, 3]
    steps = [item["step"] for item in history if "train/loss" in item]
    journal = (runs[-1].parents[1] / "metrics.jsonl").read_text().splitlines()
    told = [row["step"] for row in map(json.loads, journal) if row["event"] == "step"]
    assert steps == told and told[0] == 20
    assert inspected(runs[-1])["summary"]["ACC"] == pytest.approx(record["metrics"]["ACC"])


def test_what_the_server_has_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Online, a run that continues has the server's step, which may be past its checkpoint."""
    import wandb

    sent: list[dict[str, Any]] = []

    class Run:
        step = 2
        dir = str(tmp_path / "wandb/run-i/files")

        def define_metric(self, *_: Any, **__: Any) -> None: ...

        def log(self, row: dict[str, Any]) -> None:
            sent.append(row)

    monkeypatch.setattr(wandb, "init", lambda **_: Run())
    words = {"group": "g", "name": "n", "identity": "i", "job_type": "data", "tags": []}
    sink = tracking.Wandb("p", None, "offline", 1.0, config={}, folder=tmp_path, **words)
    rows = [{"event": "step", "step": step, "task": 0, "loss": 0.5} for step in (10, 20, 30)]
    task = {"event": "task", "task": 0, "metrics": {"ACC": 0.5}, "accuracy": {"0": 0.5}}
    last = {"task": 0, "eval/ACC": 0.5, "eval/task_00": 0.5}
    sink.replay([*rows, task])
    assert sent == [{"step": 30, "train/loss": 0.5}, last]
    sink.replay([])  # a run that starts anew under a name that the server knows
    sink.log(task)
    assert sent[2:] == [last]
    Run.step, sent[:] = 9, []
    sink.replay([*rows, task])
    assert sent == []


def test_mode_auto_asks_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert tracking._resolve_mode("auto") == "offline"
    assert tracking._resolve_mode("disabled") == "disabled"
    import wandb

    host = wandb.Settings().base_url.partition("//")[2]
    (tmp_path / "netrc").write_text(f"machine {host} login user password {'a' * 40}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert tracking._resolve_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert tracking._resolve_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.setenv("NETRC", str(tmp_path / "other"))
    assert tracking._resolve_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert tracking._resolve_mode("auto") == "online"


def test_no_answer_means_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key, but a server that cannot be reached: one line, and the run goes on offline."""
    import wandb

    asked: list[str] = []

    class Run:
        def define_metric(self, *_: Any, **__: Any) -> None: ...

    def init(mode: str, **_: Any) -> Run:
        asked.append(mode)
        if mode == "online":
            raise wandb.Error("Timed out\nand more")
        return Run()

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    words = {
        "config": {},
        "group": "g",
        "name": "n",
        "identity": "i",
        "job_type": "data",
        "tags": [],
    }
    tracking.Wandb("p", None, "auto", 1.0, folder=tmp_path, **words)
    assert asked == ["online", "offline"]
    assert "wandb: no answer (Timed out), logged offline" in capsys.readouterr().err
