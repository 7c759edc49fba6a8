"""Makes a study: a function that returns a page, in place of a run."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import Any

from omegaconf import OmegaConf

from cl_bench.base import files
from cl_bench.config.build import build, make_method, make_stream, parameter_names
from cl_bench.core.runtime import Runtime
from cl_bench.engine.execution import Plan
from cl_bench.results.source_code import software_versions


def make_study(plan: Plan) -> None:
    """Make a study, which is a function that returns a page, and write the page.

    The study is called with those of these arguments that it has parameters for: seed, learner,
    stream, order (the generator of the order of samples) and schedule.
    """
    cfg = plan.cfg
    with closing(build(cfg.runtime, seed=cfg.seed)) as machine:
        page = _study_page(plan, machine)
    page.write(plan.folder.path)
    measured = {"device": machine.machine_info()["device"], **software_versions()}
    plan.folder.set_status("done", code=asdict(plan.code), measured=measured)


def _study_page(plan: Plan, machine: Runtime) -> Any:
    """Call the study; returns its page."""
    cfg = plan.cfg
    names, arguments = parameter_names(cfg.study), {"seed": cfg.seed}
    if "learner" in names:
        stream = make_stream(cfg, machine.device)
        arguments |= {"learner": make_method(cfg, machine, stream).learner, "stream": stream}
        arguments |= {"order": machine.order, "schedule": build(cfg.schedule)}
    files.write_text(plan.folder.path / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    return build(cfg.study, **{k: v for k, v in arguments.items() if k in names})
