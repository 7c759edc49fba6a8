"""One job of the command: a run or a study, planned, and made unless its result is there."""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.config import tuned
from cl_bench.config.check import check_config
from cl_bench.config.name import config_hash, normalise_floats
from cl_bench.config.nodes import CONF, targets
from cl_bench.engine import resume
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
