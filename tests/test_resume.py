"""What a run may continue from, whose record it shows, and what it says where a disk fails it."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, command, finished
from test_kills import Killed, after_checkpoint, data, planned, proved

from cl_bench.base import files
from cl_bench.base.exceptions import StopRun, UserError
from cl_bench.config import errors
from cl_bench.config.check import check_config
from cl_bench.config.name import config_hash
from cl_bench.core import runtime
from cl_bench.engine import checkpoint, execution, job
from cl_bench.engine.execution import Plan
from cl_bench.results import folder
from cl_bench.results.folder import Folder
from cl_bench.results.source_code import Code

__all__ = ["data"]  # fixtures


@pytest.fixture
def plan(tmp_path: Path, data: Path) -> Plan:
    return planned("er", tmp_path / "seed0", data)


def half_done(plan: Plan) -> Folder:
    """A run that was killed after the first of its two tasks."""
    with pytest.MonkeyPatch.context() as patch:
        after_checkpoint(1)(patch)
        with pytest.raises(Killed):
            plan.folder.require_writable()
            execution.train_and_record(plan)
    return plan.folder


def changed(plan: Plan, **keys: Any) -> Plan:
    """The same run with other values at some keys, in the same folder."""
    cfg = plan.cfg.copy()
    for key, value in keys.items():
        group, _, name = key.partition("__")
        node = cfg[group] if name else cfg
        node[name or group] = value
    plain = check_config(cfg)
    return replace(plan, cfg=cfg, resolved=plain, hash=config_hash(cfg))


def edited(plan: Plan) -> Plan:
    """The same run by other code."""
    sources = {**plan.code.files, "cl_bench.methods.er": "0"}
    return replace(plan, code=Code("other", sources, plan.code.packages))


OTHERS = [{"optimizer__lr": 0.5}, {"seed": 1}, {"method__replay": 3}]


@pytest.mark.parametrize("keys", OTHERS, ids=str)
def test_a_checkpoint_of_another_config_or_seed_is_refused(
    keys: dict[str, Any], plan: Plan
) -> None:
    """Nothing in the folder is touched, until the user agrees to start over."""
    other = changed(plan, **keys)
    half_done(other)
    before = {p: p.read_bytes() for p in plan.folder.path.iterdir() if p.is_file()}
    with pytest.raises(UserError, match=r"checkpoint\.pt: is of (config|seed) .*this run has"):
        execution.train_and_record(plan)
    assert before == {p: p.read_bytes() for p in plan.folder.path.iterdir() if p.is_file()}
    execution.train_and_record(changed(plan, force=True))
    again = replace(plan, folder=Folder(plan.folder.path.parent / "clean"))
    again.folder.require_writable()
    execution.train_and_record(again)
    assert proved(plan.folder) == proved(again.folder)


def done_99(state: dict[str, Any]) -> None:
    state["progress"]["done"] = 99


def no_method(state: dict[str, Any]) -> None:
    state["method"] = {}


def no_theta(state: dict[str, Any]) -> None:
    state["learner"]["theta"] = state["learner"]["theta"][:5]


def no_generators(state: dict[str, Any]) -> None:
    state["generators"] = {}


@pytest.mark.parametrize("damage", [done_99, no_method, no_theta, no_generators])
def test_a_checkpoint_that_cannot_be_is_refused(
    damage: Callable[[dict[str, Any]], None], plan: Plan
) -> None:
    """Even where its checksum and its identity are right."""
    half_done(plan)
    file = plan.folder.checkpoint
    state = checkpoint.load(file, runtime.torch.device("cpu"), {}) or {}
    damage(state)
    checkpoint.save(state, file)
    rows = plan.folder.metrics.read_bytes()
    with pytest.raises(UserError, match=r"checkpoint\.pt: .*nothing was changed: force=true"):
        execution.train_and_record(plan)
    assert plan.folder.metrics.read_bytes() == rows and not plan.folder.record.exists()
    execution.train_and_record(changed(plan, force=True))
    assert plan.folder.record.exists(), "it has started over"


def test_rows_that_are_not_the_checkpoints_are_refused(plan: Plan) -> None:
    half_done(plan)
    rows = plan.folder.metrics.read_bytes()
    for content in (rows[:-5], rows.replace(b"0.", b"1.", 1), b""):
        plan.folder.metrics.write_bytes(content)
        with pytest.raises(UserError, match=r"metrics\.jsonl: its first \d+ bytes are not those"):
            execution.train_and_record(plan)
        assert plan.folder.metrics.read_bytes() == content
    plan.folder.metrics.write_bytes(rows + b'{"half a r')
    execution.train_and_record(plan)
    assert plan.folder.metrics.read_bytes().startswith(rows)


def test_other_code_is_told_in_the_same_line(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    job.run(plan)
    stamp = plan.folder.record.stat().st_mtime_ns
    job.run(plan)
    assert "done before, not repeated (force=true repeats it)" in capsys.readouterr().out
    job.run(edited(plan))
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "er on pmnist5k" in x]
    assert "done before by other code (cl_bench.methods.er differs), not repeated" in line
    assert "force=true or code_changed=repeat repeats" in line
    assert plan.folder.record.stat().st_mtime_ns == stamp
    job.run(changed(edited(plan), code_changed="repeat"))
    assert plan.folder.record.stat().st_mtime_ns != stamp
    assert json.loads(plan.folder.record.read_text())["code"]["sha256"] == "other"


def test_other_code_does_not_continue_a_run_unasked(plan: Plan) -> None:
    half_done(plan)
    rows = plan.folder.metrics.read_bytes()
    with pytest.raises(UserError, match=r"written by other code \(cl_bench\.methods\.er differs\)"):
        execution.train_and_record(edited(plan))
    assert plan.folder.metrics.read_bytes() == rows
    execution.train_and_record(changed(edited(plan), code_changed="continue"))
    code = json.loads(plan.folder.record.read_text())["code"]
    assert code["parts"] == [plan.code.sha256, "other"]
    assert code["sha256"] not in code["parts"], "it is neither's result"


def test_a_refusal_changes_no_status(plan: Plan) -> None:
    """Neither of a run that was stopped, nor of a folder that had none."""
    half_done(plan)
    plan.folder.set_status("stopped")
    before = plan.folder.status()
    with pytest.raises(UserError, match="written by other code"):
        job.run_with_status(edited(plan), execution.train_and_record)
    assert plan.folder.status() == before
    nowhere = changed(plan, dataset__name="other")
    source = {"_target_": "cl_bench.data.source.folder", "path": "/nope", "size": 8}
    nowhere.cfg.dataset.source = {**source, "data_dir": "/", "cache_dir": None}
    fresh = replace(nowhere, folder=Folder(plan.folder.path.parent / "fresh"))
    fresh.folder.require_writable()
    with pytest.raises(UserError):
        job.run_with_status(fresh, execution.train_and_record)
    assert not fresh.folder.path.exists()


def test_other_code_starts_over_where_that_is_wanted(plan: Plan) -> None:
    half_done(plan)
    execution.train_and_record(changed(edited(plan), code_changed="repeat"))
    code = json.loads(plan.folder.record.read_text())["code"]
    assert code["sha256"] == "other" and "parts" not in code


def test_a_damaged_record_is_refused_by_name(plan: Plan) -> None:
    job.run(plan)
    whole = plan.folder.record.read_text()
    content = json.loads(whole)
    ragged = {**content, "accuracy": [[0.5], [0.5, 0.5]]}
    old = {k: v for k, v in content.items() if k != "format"}
    damaged = [whole[:100], "null", "[1]", json.dumps(ragged), json.dumps({**content, "seed": "0"})]
    for text in (*damaged, json.dumps(old), json.dumps({**content, "format": 9})):
        plan.folder.record.write_text(text)
        with pytest.raises(UserError, match=r"record\.json: .*force=true starts the run over"):
            job.run(plan)
        assert plan.folder.record.read_text() == text
    job.run(changed(plan, force=True))
    assert plan.folder.finished(plan.hash, plan.cfg.seed) is not None


def test_a_record_of_another_config_or_seed_is_refused(plan: Plan, tmp_path: Path) -> None:
    """A folder that was copied to another seed's place is no result of that seed."""
    job.run(plan)
    other = Folder(tmp_path / "seed1")
    shutil.copytree(plan.folder.path, other.path)
    for keys in OTHERS:
        moved = replace(changed(plan, **keys), folder=other)
        with pytest.raises(UserError, match=r"record\.json: is of config .* force=true starts"):
            job.run(moved)
    again = changed(replace(plan, folder=other), seed=1, force=True)
    job.run(again)
    assert json.loads(other.record.read_text())["seed"] == 1


def test_force_killed_at_any_point_leaves_no_run_that_looks_done(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The record goes first, and what a link points to stays."""
    job.run(plan)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes").write_text("x")
    (plan.folder.path / "link").symlink_to(tmp_path / "mine")
    (plan.folder.path / "wandb/run").mkdir(parents=True)
    (plan.folder.path / "wandb/run/log").write_text("x")
    left, removed = len(list(plan.folder.path.rglob("*"))), 0
    for step in range(1, left + 3):
        folder = Folder(tmp_path / f"copy{step}")
        shutil.copytree(plan.folder.path, folder.path, symlinks=True)
        count = 0

        def killed(path: Any, *_: Any, step: int = step, **__: Any) -> None:
            nonlocal count
            count += 1
            if count == step:
                raise Killed
            with suppress(FileNotFoundError):
                os.remove(path)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", killed)
            tree = lambda path: [killed(p) for p in path.rglob("*") if p.is_file()]  # noqa: E731
            patch.setattr(shutil, "rmtree", tree)
            try:
                folder.clear()
            except Killed:
                removed += 1
        assert folder.record.exists() == (step == 1), step
    assert removed > 4
    plan.folder.clear()
    assert [p.name for p in plan.folder.path.iterdir()] == ["lock"]
    assert (tmp_path / "mine/notes").exists()


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/x/y")


PLACES = [(checkpoint, "save"), (files, "append"), (folder.files, "write_json")]


@pytest.mark.parametrize(("module", "name"), PLACES, ids=[p[1] for p in PLACES])
def test_a_full_disk_costs_one_line_and_nothing_else(
    module: Any, name: str, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_done(plan)
    plan.folder.set_status("running")
    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        if name == "write_json":
            patch.setattr(plan.folder.__class__, "set_status", lambda *_, **__: None)
        with pytest.raises(UserError) as caught:
            job.run_with_status(plan, execution.train_and_record)
    line = errors.explain(caught.value)
    assert line == (
        "/x/y: No space left on device; the last checkpoint is safe, the same command continues "
        "from it"
    )
    assert name == "write_json" or plan.folder.status()["state"] == "failed"
    assert job.run_with_status(plan, execution.train_and_record) is not None, "there is room again"


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("name", ["accuracy.png", "accuracy.csv", "record.json", "checkpoint.pt"])
def test_where_writing_fails_the_file_is_named(
    name: str, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the disk itself: a limit on the size of a file."""
    half_done(plan)
    write = files.replacing

    def limited(path: Path) -> Any:
        if path.name == name:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
        return write(path)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patch, pytest.raises(UserError) as caught:
            patch.setattr(files, "replacing", limited)
            job.run_with_status(plan, execution.train_and_record)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    done = name == "accuracy.png"
    assert str(caught.value).startswith(f"{plan.folder.path / name}: File too large; ")
    assert ("the record is written" if done else "the last checkpoint is safe") in str(caught.value)
    assert plan.folder.record.exists() == done
    job.run(plan)
    assert plan.folder.record.exists()


def test_a_removed_folder_costs_one_line(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def removed(state: dict[str, Any], path: Path) -> None:
        for entry in path.parent.iterdir():
            entry.unlink()
        path.parent.rmdir()
        save(state, path)

    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", removed)
    plan.folder.require_writable()
    with pytest.raises(UserError, match=r"checkpoint.pt: No such file .* its folder was removed"):
        job.run_with_status(plan, execution.train_and_record)


def test_a_second_signal_while_a_file_is_written_is_a_stop(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = checkpoint.save

    def twice(state: dict[str, Any], path: Path) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        save(state, path)

    monkeypatch.setattr(checkpoint, "save", twice)
    plan.folder.require_writable()
    with pytest.raises(StopRun):
        job.run_with_status(plan, execution.train_and_record)
    assert plan.folder.status()["state"] == "stopped"
    assert "the same command continues" in capsys.readouterr().err
    monkeypatch.undo()
    assert job.run_with_status(plan, execution.train_and_record) is not None


def test_a_stop_that_a_library_wraps_is_a_stop(plan: Plan) -> None:
    def wrapped(_: Plan) -> None:
        try:
            raise StopRun(signal.SIGTERM)
        except BaseException:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904

    plan.folder.require_writable()
    with pytest.raises(StopRun):
        job.run_with_status(plan, wrapped)
    assert plan.folder.status()["state"] == "stopped"


def test_an_error_of_unknown_cause_is_in_the_status_with_its_traceback(plan: Plan) -> None:
    """A line for lists of runs, which names the place in this file, and the whole of it."""

    def wrong(plan: Plan) -> None:
        raise KeyError("colour")

    plan.folder.require_writable()
    with pytest.raises(KeyError):
        job.run_with_status(plan, wrong)
    status = plan.folder.status()
    line = wrong.__code__.co_firstlineno + 1
    assert status["state"] == "failed"
    assert status["error"] == f"KeyError: 'colour' (test_resume.py, line {line})"
    assert status["traceback"].startswith("Traceback") and "in wrong" in status["traceback"]


def test_a_home_folder_is_expanded_once(tmp_path: Path) -> None:
    """Also for a sweep, whose own folder Hydra makes; no folder is called `~`."""
    small = ("dataset.tasks=2", "dataset.train_per_task=20", "tracking=none")
    cache = {"CL_BENCH_DATA": str(tmp_path / "cache")}
    process = command(*small, "-m", "seed=0", where=Path("'~/x'"), HOME=str(tmp_path), **cache)
    code, out, err = finished(process)
    assert code == 0, err
    assert len(list((tmp_path / "x").rglob("record.json"))) == 1
    assert (tmp_path / "x/.sweeps").is_dir() and f"files: {tmp_path}/x/pmnist5k" in out
    assert not list(Path(ROOT).glob("*~*"))


def test_where_no_file_can_be_made_nothing_is_begun(tmp_path: Path) -> None:
    """Before any data is loaded."""
    (tmp_path / "file").write_text("")
    cache = tmp_path / "cache"
    process = command("tracking=none", where=tmp_path / "file/x", CL_BENCH_DATA=str(cache))
    code, _, err = finished(process)
    assert (
        code == 2
        and err.count("\n") == 1
        and err.startswith(f"error: output_dir={tmp_path}/file/x: ")
    ), err
    assert not cache.exists()
    for where in (Path("/proc/nope"), tmp_path / ("n" * 300)):
        with pytest.raises(OSError) as caught:
            Folder(where).require_writable()
        line = errors.explain(caught.value)
        assert line is not None and line.startswith(f"{where}: ") and "\n" not in line
