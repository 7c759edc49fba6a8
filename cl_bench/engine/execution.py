"""A run that is to be made: built from its config, run, and recorded; or a study's page."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.base.signals import StopSignals
from cl_bench.config import errors
from cl_bench.config.build import (
    build,
    make_backbone,
    make_method,
    make_stream,
    parameters,
    refuse_leak,
)
from cl_bench.core.runtime import Runtime
from cl_bench.core.types import Stream
from cl_bench.engine import checkpoint, experiment, resume, trained
from cl_bench.engine.host import RunHost
from cl_bench.engine.session import Progress, Session
from cl_bench.results import figures, record, source_code
from cl_bench.results.folder import Folder
from cl_bench.results.record import RunRecord
from cl_bench.results.source_code import Code


@dataclass(frozen=True)
class Plan:
    """A run before it starts: its config, its name, its place."""

    cfg: DictConfig
    plain: dict[str, Any]  # the config, resolved and checked
    hash: str
    labels: list[str]  # dataset, scenario, method, as chosen
    folder: Folder
    code: Code  # the sources that the run is made of

    @property
    def title(self) -> str:
        dataset, scenario, method = self.labels
        return f"{method} on {dataset}, {scenario}-incremental"


def conduct(planned: Plan) -> None:
    """Hand the study what it asks for: a seed, or a learner with its stream and schedule."""
    cfg = planned.cfg
    machine = build(cfg.runtime, seed=cfg.seed)
    asked, given = parameters(cfg.study), {"seed": cfg.seed}
    if "learner" in asked:
        stream = make_stream(cfg, machine)
        given |= {"learner": make_method(cfg, machine, stream).learner, "stream": stream}
        given |= {"order": machine.order, "schedule": build(cfg.schedule)}
    files.write_text(planned.folder.path / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    page = build(cfg.study, **{k: v for k, v in given.items() if k in asked})
    page.write(planned.folder.path)
    planned.folder.mark("done", code=asdict(planned.code))


def guarded(planned: Plan, work: Callable[[Plan], RunRecord | None]) -> RunRecord | None:
    """`work`, with the folder's status telling how it went, whatever happens."""
    folder, before = planned.folder, planned.folder.status()
    folder.mark("running")
    try:
        return work(planned)
    except BaseException as error:
        stop = errors.stop_of(error)
        if stop is None:
            if isinstance(error, UserError) and error.before_training:
                folder.restore(before)
                raise
            line = errors.explain(error)
            folder.mark_if_possible("failed", line or traceback.format_exc())
            if line is None:
                print(f"{planned.title} failed: {error!r} ({folder.path})", file=sys.stderr)
            elif errors.is_storage(error):
                raise UserError(f"{line}; {folder.safe()}") from error
            raise
        if folder.status().get("state") != "done":
            folder.mark_if_possible("stopped")
            print(f"stopped; {folder.safe()} ({folder.path})", file=sys.stderr)
        raise stop from None


def execute(planned: Plan) -> RunRecord:
    """Run what is left to run of a plan, and leave its record.

    UserError where the folder has a checkpoint that is not this run's; with force=true the run
    starts over then.
    """
    try:
        return _execute(planned)
    except resume.UnusableError as error:
        if not planned.cfg.force:
            raise UserError(
                f"{planned.folder.checkpoint}: {error}; nothing was changed: force=true starts over"
            ) from None
        resume.start_over(planned.folder)
        return _execute(planned)


@contextmanager
def before_training() -> Iterator[None]:
    """Refusals inside are those of a run that has not begun."""
    try:
        yield
    except resume.UnusableError:
        raise
    except Exception as error:  # Hydra wraps what is raised while it builds an object
        links = errors.exception_chain(error)
        refusal = next((link for link in links if isinstance(link, UserError)), None)
        if refusal is None:
            raise
        refusal.before_training = True
        raise refusal from None


def _execute(planned: Plan) -> RunRecord:
    cfg, folder = planned.cfg, planned.folder
    with before_training():
        machine = build(cfg.runtime, seed=cfg.seed)
        identity = {"config": planned.hash, "seed": cfg.seed, "device": machine.device.type}
        where = machine.device, machine.machine_info()["device"]
        start = resume.find(folder, identity, planned.code, *where, cfg.code_changed, cfg.force)
        files.write_text(folder.path / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        stream, backbone = make_stream(cfg, machine), make_backbone(cfg)
        refuse_leak(stream, backbone)
        start.require(
            data=str(stream.description["sha256"]), backbone=str(backbone and backbone["sha256"])
        )
    with make_sink(planned) as sink, StopSignals() as stop:
        sink.describe(stream.description)
        with before_training():
            session, host = _session(planned, machine, stream, sink, stop, start)
        total = sum(session.schedule.steps(task) for task in stream.tasks)
        with host.shown(total, planned.title):
            experiment.run(session)
        with stop.holding():
            outcome = conclude(planned, session, machine, backbone, start)
            pictures = figures.drawn(session.progress.matrix, f"{planned.title}, seed {cfg.seed}")
            if cfg.save_network:
                trained.write(session.method, folder.path)
            folder.finish(outcome)  # from here on the run is done, whatever becomes of the rest
            paths = folder.write_pictures(pictures)
        sink.finish(outcome, paths)
    return outcome


def _session(
    planned: Plan,
    machine: Runtime,
    stream: Stream,
    sink: Any,
    stop: StopSignals,
    start: resume.Start,
) -> tuple[Session, RunHost]:
    """The run, built and put to where its checkpoint left it; and its host."""
    cfg, progress = planned.cfg, Progress.start(stream)
    method = make_method(cfg, machine, stream)
    start.resume(method, progress, machine)
    often = cfg.log_every, cfg.save_every
    host = RunHost(planned.folder, machine, method, progress, sink, stop, *often, start)
    schedule, evaluation = build(cfg.schedule), build(cfg.evaluation)
    probe = cfg.get("probe") and build(cfg.probe)
    order = machine.order
    return Session(method, stream, schedule, evaluation, order, progress, host, probe), host


def make_sink(planned: Plan) -> Any:
    """Where rows are mirrored."""
    dataset, scenario, method = planned.labels
    return build(
        planned.cfg.tracking,
        config={**planned.plain, "hash": planned.hash},
        group="/".join([*planned.labels, planned.hash]),
        name=f"{method}-{dataset}-s{planned.cfg.seed}",
        identity=f"{planned.hash}-s{planned.cfg.seed}",
        folder=planned.folder.path,
        job_type=scenario if planned.cfg.evaluation.split == "test" else "tune",
        tags=planned.labels,
    )


def conclude(
    planned: Plan,
    session: Session,
    machine: Runtime,
    backbone: dict[str, Any] | None,
    start: resume.Start,
) -> RunRecord:
    """The record of a run whose last task is learned."""
    method, stream, progress = session.method, session.stream, session.progress
    return RunRecord(
        format=record.FORMAT,
        labels=dict(zip(record.LABELS, planned.labels, strict=True)),
        config=planned.plain,
        hash=planned.hash,
        seed=planned.cfg.seed,
        code=planned.code.joined(start.earlier),
        stream={
            **stream.description,
            "train_images": [len(task) for task in stream.tasks],
            "test_images": [len(test) for test in stream.tests],
        },
        accuracy=record.plain(progress.matrix.values.tolist()),
        initial=record.plain(progress.matrix.initial.tolist()),
        metrics=record.plain(progress.matrix.summary()),
        parameters=method.learner.flat.theta.numel(),
        state_bytes=checkpoint.nbytes(method),
        theta_sha256=record.sha256(network.theta for _, network in method.networks()),
        measured={
            "train_seconds": progress.train_seconds,
            "eval_seconds": progress.eval_seconds,
            "peak_mib": machine.peak_mib(),
            **machine.machine_info(),
            "device": ", then ".join(start.devices),
            **source_code.software(),
        },
        backbone=backbone,
        gradients_per_sample=method.learner.sample_gradients / sum(map(len, stream.tasks)),
        method=method.capacity(),
        forgetting_of_task=record.plain(progress.matrix.forgetting_of_task.tolist()),
    )
