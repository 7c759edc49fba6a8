"""One job of `python -m cl_bench.run`: shows a finished run or study, or makes it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from math import nan
from typing import Any, TypeVar

from omegaconf import DictConfig

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.config import compose, errors, parent
from cl_bench.config.check import check_config
from cl_bench.config.name import config_hash, normalise_floats
from cl_bench.config.nodes import targets
from cl_bench.core import parallel
from cl_bench.engine.budget import require_within
from cl_bench.engine.execution import Plan, train_and_record
from cl_bench.engine.resume import other_code_note
from cl_bench.engine.study import make_study
from cl_bench.results import figures
from cl_bench.results.folder import Folder
from cl_bench.results.record import RunRecord
from cl_bench.results.source_code import code_of

Result = TypeVar("Result")
DONE = "done"  # the note on a run that was made by this command


def make_plan(cfg: DictConfig, hydra: Any) -> Plan:
    """Check the config, and find its hash, its folder and its code; no data is loaded.

    `hydra` has Hydra's own settings: the options that were chosen, and the overrides. What a
    backbone fixes, and tuned values (tuned=true), are put into the config first. Raises UserError
    where it is wrong.
    """
    choices = hydra.runtime.choices
    labels = compose.labels_of(hydra)
    changed = compose.fill_in(cfg, hydra)
    if changed:
        print("as the backbone was trained:", *(f"{key}={value}" for key, value in changed.items()))
    resolved = check_config(cfg)
    normalise_floats(cfg, resolved)
    found = parent.find(cfg, resolved)
    if found is not None:
        resolved[parent.KEY] = found.pattern
    name = config_hash(cfg)
    if (choices["stream"] == "joint") != (choices["method"] == "joint"):
        raise UserError(
            f"stream={choices['stream']}: stream=joint and method=joint need each other"
        )
    place = labels if cfg.get("study") is None else ["studies", choices["study"]]
    path = files.absolute(cfg.output_dir).joinpath(*place, name, f"seed{cfg.seed}")
    code, in_sweep = code_of(targets(resolved)), getattr(hydra.mode, "name", None) == "MULTIRUN"
    if in_sweep and parallel.local_rank() is not None:
        raise UserError("torchrun: several processes make one run, not a sweep (-m)")
    draws = not in_sweep if cfg.figures == "auto" else cfg.figures
    return Plan(cfg, resolved, name, labels, Folder(path), code, found, draws)


def run(plan: Plan) -> float:
    """Print the record of a run, which is made first unless it is finished; returns its ACC.

    Of several processes (torchrun) the first one does that; the others return NaN.
    """
    if parallel.rank():
        _assist(plan)
        return nan
    record, note = find_or_make(plan)
    from cl_bench.results.terminal import print_record

    print_record(record, plan.folder, plan.title, note)
    acc = record.metrics["ACC"]
    return nan if acc is None else acc


def _assist(plan: Plan) -> None:
    """Take part in a run, unless it is finished. What stops the first process is told by that."""
    try:
        if plan.cfg.force or _record_to_show(plan) is None:
            train_and_record(plan)
    except RuntimeError as error:
        if parallel.is_lost(error):
            raise UserError(f"process {parallel.rank()} ends, as the first one has") from None
        raise


def find_or_make(plan: Plan) -> tuple[RunRecord, str]:
    """The record of a run, which is made unless it is finished, and a note on which of both."""
    record = None if plan.cfg.force else _record_to_show(plan)
    if record is None:
        return _make(plan)
    require_within(plan.cfg.budget_mib, record.state_bytes, f"{plan.folder.path}: at the end")
    if plan.cfg.figures is True:
        tables = figures.prediction_tables(plan.folder.path, record)
        plan.folder.write_pictures(figures.draw_record(record, tables, plan.title))
    return record, _note_on_finished(plan, record)


def _make(plan: Plan) -> tuple[RunRecord, str]:
    """Make the run, unless another process has just finished it; its record, and a note on it."""
    folder = plan.folder
    _require_writable(plan)
    with folder.locked():
        if plan.cfg.force and folder.record.exists():
            folder.clear()
        record = _record_to_show(plan)
        if record is not None:
            return record, _note_on_finished(plan, record)
        if folder.record.exists():  # by other code, and code_changed=repeat
            folder.clear()
        record = run_with_status(plan, train_and_record)
        assert record is not None, "this is the first process"
        return record, DONE


def _require_writable(plan: Plan) -> None:
    """Create the folder; UserError where no file can be made in it."""
    try:
        plan.folder.require_writable()
    except OSError as error:
        raise UserError(
            f"output_dir={plan.cfg.output_dir}: {plan.folder.path} cannot be written "
            f"({error.strerror})"
        ) from error


def _record_to_show(plan: Plan) -> RunRecord | None:
    """The record of the finished run; None where there is none, or the run is to be repeated."""
    record = plan.folder.finished(plan.hash, plan.cfg.seed)
    if record is None or plan.cfg.code_changed != "repeat":
        return record
    return record if record.code["sha256"] == plan.code.sha256 else None


def _note_on_finished(plan: Plan, record: RunRecord) -> str:
    other = other_code_note(plan.code, record.code)
    options = "force=true or code_changed=repeat repeats" if other else "force=true repeats"
    return f"done before{other}, not repeated ({options} it)"


def run_study(plan: Plan) -> float:
    """Print the page of a study, which is made first unless it is done; returns NaN, for no ACC."""
    if parallel.local_rank() is not None:
        raise UserError("torchrun: a study has one process; use python -m cl_bench.run")
    cfg, folder, page = plan.cfg, plan.folder, plan.folder.path / "page.md"
    status, other = folder.status(), ""
    done = status.get("state") == "done" and page.is_file() and not cfg.force
    if done:
        other = other_code_note(plan.code, status.get("code") or {})
    if not done or (other and cfg.code_changed == "repeat"):
        _require_writable(plan)
        with folder.locked():
            run_with_status(plan, make_study)
    elif other:
        print(f"made before{other}, not made again (force=true or code_changed=repeat does)")
    print(f"{page.read_text()}\nfiles: {page.parent}", flush=True)
    return nan


def run_with_status(plan: Plan, work: Callable[[Plan], Result]) -> Result:
    """Call `work(plan)`, and keep status.json up to date however it ends.

    The status is running, then stopped after a signal or failed after an error. Where the run was
    refused before training, the status from before is restored.
    """
    folder, before = plan.folder, plan.folder.status()
    folder.set_status("running")
    try:
        return work(plan)
    except BaseException as error:
        stop = errors.stop_request(error)
        if stop is None:
            if isinstance(error, UserError) and error.before_training:
                folder.restore_status(before)
                raise
            line = errors.explain(error)
            if line is None:
                told, trace = errors.describe(error), traceback.format_exc()
                folder.try_set_status("failed", told, traceback=trace)
                print(f"{plan.title} failed: {told} ({folder.path})", file=sys.stderr)
                raise
            folder.try_set_status("failed", line)
            if errors.is_storage(error):
                raise UserError(f"{line}; {folder.recovery_note()}") from error
            raise
        if folder.status().get("state") != "done":
            folder.try_set_status("stopped")
            print(f"stopped; {folder.recovery_note()} ({folder.path})", file=sys.stderr)
        raise stop from None
