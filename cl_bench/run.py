"""python -m cl_bench.run method=ewc dataset=pmnist: one run, from its config to its record."""

from __future__ import annotations

import os
import sys
import traceback

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from cl_bench.base import files
from cl_bench.base.exceptions import StopRun, UserError
from cl_bench.base.signals import end_with
from cl_bench.config import errors, tuned
from cl_bench.config.check import check_config
from cl_bench.config.command import PARENT, run_command
from cl_bench.config.name import config_hash, normalise_floats
from cl_bench.config.nodes import CONF, targets
from cl_bench.engine import resume, sweep_failures
from cl_bench.engine.execution import Plan, conduct, execute, guarded
from cl_bench.results.folder import Folder
from cl_bench.results.record import RunRecord
from cl_bench.results.source_code import code_of


def plan(cfg: DictConfig) -> Plan:
    """Check the config whole; nothing is loaded or written yet."""
    known = HydraConfig.get()
    choices = known.runtime.choices
    labels = [choices[group] for group in ("dataset", "scenario", "method")]
    if cfg.get("tuned"):
        tuned.apply(cfg, tuned.place(CONF, *labels), known.overrides.task)
    plain = check_config(cfg)
    normalise_floats(cfg, plain)
    name = config_hash(cfg)
    if (choices["stream"] == "joint") != (choices["method"] == "joint"):
        raise UserError(f"stream={choices['stream']}: stream=joint is method=joint, and no other")
    place = labels if cfg.get("study") is None else ["studies", choices["study"]]
    path = files.absolute(cfg.output_dir).joinpath(*place, name, f"seed{cfg.seed}")
    return Plan(cfg, plain, name, labels, Folder(path), code_of(targets(plain)))


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float:
    """One run, or the report of one that is done; returns ACC, a sweep's objective."""
    sweeping, planned = HydraConfig.get().mode is RunMode.MULTIRUN, None
    worker = sweeping and follow_parent()
    try:
        planned = plan(cfg)
        return run(planned) if cfg.get("study") is None else study(planned)
    except StopRun as stop:
        if worker:
            os._exit(128 + stop.number)
        raise
    except Exception as error:
        line = errors.explain(error)
        if line is not None:
            print(f"error: {line}", file=sys.stderr)
        release(error)
        if sweeping:  # the other jobs go on
            sweep_failures.note(line or repr(error), planned and planned.folder.path)
            return float("nan")
        if line is None:
            raise
        sys.exit(2)


def follow_parent() -> bool:
    """Let a process that Joblib started for a sweep end with the sweep; False in any other."""
    parent = int(os.environ.get(PARENT, os.getpid()))
    launcher = HydraConfig.get().launcher._target_
    if parent == os.getpid() or not launcher.endswith(".JoblibLauncher"):
        return False
    end_with(parent)
    return True


def release(error: BaseException) -> None:
    """Let go of what a failed run holds: a sweep keeps its errors, and with them their frames."""
    for link in errors.exception_chain(error):
        traceback.clear_frames(link.__traceback__)


def run(planned: Plan) -> float:
    """The run in its folder, unless it is there already."""
    from cl_bench.results.terminal import present

    cfg, folder = planned.cfg, planned.folder
    this = planned.hash, cfg.seed
    outcome = None if cfg.force else folder.finished(*this)
    if outcome is None or again(planned, outcome):
        folder.prepare()
        with folder.locked():
            if cfg.force and folder.record.exists():
                folder.clear()
            outcome = folder.finished(*this)  # by another process, meanwhile
            if outcome is not None and again(planned, outcome):
                folder.clear()
                outcome = None
            if outcome is None:
                outcome = guarded(planned, execute)
                assert outcome is not None
                present(outcome, folder, planned.title, "done")
                return objective(outcome)
    other = resume.described(planned.code, outcome.code)
    choices = "force=true or code_changed=repeat repeats" if other else "force=true repeats"
    note = f"done before{other}, not repeated ({choices})"
    present(outcome, folder, planned.title, note)
    return objective(outcome)


def again(planned: Plan, outcome: RunRecord) -> bool:
    """Whether a finished run is repeated because other code made it."""
    other = outcome.code["sha256"] != planned.code.sha256
    return other and planned.cfg.code_changed == "repeat"


def objective(outcome: RunRecord) -> float:
    """ACC, or NaN where it was not measured."""
    acc = outcome.metrics["ACC"]
    return float("nan") if acc is None else acc


def study(planned: Plan) -> float:
    """A study's page in its folder, unless it is there already."""
    cfg, folder, page = planned.cfg, planned.folder, planned.folder.path / "page.md"
    status, other = folder.status(), ""
    done = status.get("state") == "done" and page.is_file() and not cfg.force
    if done:
        other = resume.described(planned.code, status.get("code") or {})
    if not done or (other and cfg.code_changed == "repeat"):
        folder.prepare()
        with folder.locked():
            guarded(planned, conduct)
    elif other:
        print(f"made before{other}, not made again (force=true or code_changed=repeat does)")
    print(f"{page.read_text()}\nfiles: {page.parent}", flush=True)
    return float("nan")


def cli() -> None:
    """The command line of a run, or of a sweep of runs."""
    run_command(main)


if __name__ == "__main__":
    cli()
