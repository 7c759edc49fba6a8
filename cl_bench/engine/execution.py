"""Makes a planned run or study: builds its objects, trains, and writes the results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.base.signals import StopSignals
from cl_bench.config import errors, nodes
from cl_bench.config.boundaries import require_tests
from cl_bench.config.build import (
    build,
    make_method,
    make_stream,
    read_backbone_info,
    recorded_stream,
    refuse_leak,
)
from cl_bench.config.parent import Parent
from cl_bench.core import parallel
from cl_bench.core.runtime import Runtime, seed_global
from cl_bench.core.types import Stream
from cl_bench.engine import checkpoint, experiment, going_on, resume, trained
from cl_bench.engine.host import RunHost
from cl_bench.engine.session import Host, Progress, Session
from cl_bench.results import figures
from cl_bench.results.folder import Folder
from cl_bench.results.record import FORMAT, RunRecord, json_value, sha256_of
from cl_bench.results.source_code import Code, software_versions
from cl_bench.results.tracking import Null, Sink


@dataclass(frozen=True)
class Plan:
    """A run before it starts: its checked config, its hash, its folder and its code."""

    cfg: DictConfig
    resolved: dict[str, Any]  # the same config as plain values
    hash: str
    labels: list[str]  # the chosen options of dataset, scenario and method
    folder: Folder
    code: Code  # the code that would make the run now
    parent: Parent | None = None  # the finished run that it goes on from
    draws: bool = True  # pictures of its accuracies

    @property
    def title(self) -> str:
        """`ewc on pmnist, data-incremental`."""
        dataset, scenario, method = self.labels
        return f"{method} on {dataset}, {scenario}-incremental"


def train_and_record(plan: Plan) -> RunRecord | None:
    """Train what is left of a run, from its checkpoint if there is one, and write its results.

    None in all of several processes (torchrun) but the first. Raises UserError where the checkpoint
    does not fit the run; force=true starts over instead.
    """
    with refusals_before_training():
        machine = build(plan.cfg.runtime, seed=plan.cfg.seed)
    with closing(machine):
        fresh = machine.state()
        try:
            return _train(plan, machine)
        except resume.UnusableError as error:
            if not plan.cfg.force:
                line = f"{plan.folder.checkpoint}: {error}; nothing was changed: force=true starts"
                raise UserError(f"{line} over") from None
        processes = machine.processes
        processes.one_after_the_other(lambda: processes.rank or resume.start_over(plan.folder))
        machine.restore(fresh)
        seed_global(plan.cfg.seed)
        return _train(plan, machine)


@contextmanager
def refusals_before_training() -> Iterator[None]:
    """Mark each UserError that is raised inside as raised before training."""
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


def _train(plan: Plan, machine: Runtime) -> RunRecord | None:
    """Build the run, load its checkpoint if there is one, train, and write the results."""
    cfg, folder = plan.cfg, plan.folder
    processes = machine.processes
    with refusals_before_training():
        identity = {"config": plan.hash, "seed": cfg.seed, "device": machine.device.type}
        found = folder, identity, plan.code, machine.device, machine.machine_info()["device"]
        start = processes.one_after_the_other(
            lambda: resume.find_start(*found, cfg.code_changed, cfg.force)
        )
        if not processes.rank:
            files.write_text(folder.path / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        stream, backbone = make_stream(cfg, machine.device), read_backbone_info(cfg)
        refuse_leak(stream, backbone)
        start.require_same(
            parent=plan.parent and f"{plan.parent.hash}-s{plan.parent.seed}",
            data=str(stream.description["sha256"]),
            backbone=str(backbone and backbone["sha256"]),
        )
        if plan.parent is not None and start.saved is None:
            folders = {"data_dir": cfg.data_dir, "cache_dir": cfg.cache_dir}
            learned = recorded_stream(plan.parent.config, **folders)
            start = going_on.begin(start, plan.parent, learned, stream, machine.device)
    with Null() if processes.rank else make_sink(plan) as sink, StopSignals() as stop:
        sink.describe(stream.description)
        with refusals_before_training():
            session, host = _build_session(plan, machine, stream, sink, stop, start)
        if host is None:
            assist(session, stop)
            return None
        with host.progress_bar(sum(map(session.schedule.steps, stream.tasks)), plan.title):
            experiment.run(session)
        with stop.holding():
            record = make_record(plan, session, machine, backbone, start)
            pictures = _write_results(plan, session, record)
        sink.finish(record, pictures)
    return record


def assist(session: Session, stop: StopSignals) -> None:
    """Train with the first process, until it ends: a signal is for that one to answer."""
    try:
        experiment.run(session)
    except RuntimeError as error:
        if parallel.is_lost(error) and stop.pending is not None:
            stop.deliver()
        raise


def _build_session(
    plan: Plan,
    machine: Runtime,
    stream: Stream,
    sink: Sink,
    stop: StopSignals,
    start: resume.Start,
) -> tuple[Session, RunHost | None]:
    """The session of a run, in the state of its checkpoint, and the host that writes, if any."""
    cfg, progress = plan.cfg, Progress.start(stream)
    method = make_method(cfg, machine, stream)
    going_on.add_head_rows(start.saved, method.learner)
    start.resume(method, progress, machine)
    parts = machine, method, progress, sink, stop, cfg.log_every, cfg.save_every, start
    host = None if machine.processes.rank else RunHost(plan.folder, *parts)
    services = host or Host(machine.seconds, cfg.log_every)
    schedule, evaluation = build(cfg.schedule), build(cfg.evaluation)
    require_tests(evaluation.every, sum(schedule.epochs_of(t) * len(t) for t in stream.tasks))
    parts = method, stream, schedule, evaluation, machine.order, progress, services
    return Session(*parts, cfg.get("probe") and build(cfg.probe), cfg.budget_mib), host


def make_sink(plan: Plan) -> Sink:
    """The sink for the rows of a run, with the run's name and group in wandb."""
    dataset, scenario, method = plan.labels
    return build(
        plan.cfg.tracking,
        config={**plan.resolved, "hash": plan.hash},
        group="/".join([*plan.labels, plan.hash]),
        name=f"{method}-{dataset}-s{plan.cfg.seed}",
        identity=f"{plan.hash}-s{plan.cfg.seed}",
        folder=plan.folder.path,
        job_type=scenario if plan.cfg.evaluation.split == "test" else "tune",
        tags=plan.labels,
    )


def _write_results(plan: Plan, session: Session, record: RunRecord) -> dict[str, Path]:
    """Write network, record and pictures; returns the paths of the pictures by name.

    Whatever may fail comes before the record, with which the run is finished.
    """
    tables = figures.prediction_tables(plan.folder.path, record)
    plan.folder.write_tables(tables)
    pictures = figures.draw_record(record, tables, plan.title) if plan.draws else {}
    if plan.cfg.save_network:
        trained.write(session.method, plan.folder.path)
    plan.folder.finish(record)
    return plan.folder.write_pictures(pictures)


def make_record(
    plan: Plan,
    session: Session,
    machine: Runtime,
    backbone: dict[str, Any] | None,
    start: resume.Start,
) -> RunRecord:
    """The record of a run that was trained on all of its tasks."""
    method, stream, progress = session.method, session.stream, session.progress
    return RunRecord(
        format=FORMAT,
        labels=dict(zip(nodes.LABELS, plan.labels, strict=True)),
        config=plan.resolved,
        hash=plan.hash,
        seed=plan.cfg.seed,
        code=plan.code.with_earlier(start.earlier),
        stream=_describe(stream),
        accuracy=json_value(progress.matrix.values.tolist()),
        initial=json_value(progress.matrix.initial.tolist()),
        metrics=json_value(progress.summary()),
        parameters=method.learner.flat.theta.numel(),
        state_bytes=checkpoint.state_bytes(method),
        theta_sha256=sha256_of(network.theta for _, network in method.networks()),
        measured={
            **session.measured(),
            "peak_mib": machine.peak_mib(),
            **machine.machine_info(),
            "device": ", then ".join(start.devices),
            **software_versions(),
        },
        backbone=backbone,
        gradients_per_sample=method.learner.sample_gradients / sum(map(len, stream.tasks)),
        method=method.capacity(),
        forgetting_of_task=json_value(progress.matrix.forgetting_of_task.tolist()),
        along=list(progress.along) or None,
        best_epochs=list(progress.best_epochs) or None,
        parent=plan.parent and {"hash": plan.parent.hash, "seed": plan.parent.seed},
    )


def _describe(stream: Stream) -> dict[str, Any]:
    """What the record says of the stream."""
    held_out = [len(task) for task in stream.held_out]
    return {
        **stream.description,
        "train_images": [len(task) for task in stream.tasks],
        "test_images": [len(test) for test in stream.tests],
        **({"held_out_images": held_out} if held_out else {}),
        "image_shape": list(stream.tests[0].x.shape[1:]),
        "classes_at_end": [row.nonzero().flatten().tolist() for row in stream.live_at_end],
    }
