"""python -m cl_bench.run method=ewc dataset=pmnist: one run, from its config to its record."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cl_bench import checkpoint, config, experiment, failures, record, runtime, tuned
from cl_bench.parts import make_backbone, make_method, make_stream, refuse_leak
from cl_bench.record import Folder, RunRecord
from cl_bench.types import Stream, UserError

CONF = str(config.CONF)


@dataclass(frozen=True)
class Plan:
    """A run before it starts: its config, its name, its place."""

    cfg: DictConfig
    plain: dict[str, Any]  # the config, resolved and checked
    hash: str
    labels: list[str]  # dataset, scenario, method, as chosen
    folder: Folder

    @property
    def title(self) -> str:
        dataset, scenario, method = self.labels
        return f"{method} on {dataset}, {scenario}-incremental"


def plan(cfg: DictConfig) -> Plan:
    """Check the config whole; nothing is loaded or written yet."""
    known = HydraConfig.get()
    choices = known.runtime.choices
    labels = [choices[group] for group in ("dataset", "scenario", "method")]
    if cfg.get("tuned"):
        tuned.apply(cfg, tuned.place(Path(CONF), *labels), known.overrides.task)
    plain = config.check(cfg)
    config.settle(cfg, plain)
    name = config.digest(cfg)
    if (choices["stream"] == "joint") != (choices["method"] == "joint"):
        raise UserError(f"stream={choices['stream']}: stream=joint is method=joint, and no other")
    place = labels if cfg.get("study") is None else ["studies", choices["study"]]
    path = Path(cfg.output_dir).joinpath(*place, name, f"seed{cfg.seed}")
    return Plan(cfg, plain, name, labels, Folder(path))


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> float:
    """One run, or the report of one that is done; returns ACC, a sweep's objective."""
    sweeping, this = HydraConfig.get().mode is RunMode.MULTIRUN, None
    try:
        this = plan(cfg)
        return run(this) if cfg.get("study") is None else study(this)
    except Exception as error:
        line = config.explain(error)
        if line is not None:
            print(f"error: {line}", file=sys.stderr)
        release(error)
        if sweeping:  # the other jobs go on
            failures.note(line or repr(error), this and this.folder.path)
            return float("nan")
        if line is None:
            raise
        sys.exit(2)


def release(error: BaseException) -> None:
    """Let go of what a failed run holds: a sweep keeps its errors, and with them their frames."""
    for link in config.causes(error):
        traceback.clear_frames(link.__traceback__)


def run(this: Plan) -> float:
    """The run in its folder, unless it is there already."""
    from cl_bench.present import present

    outcome, note = this.folder.finished(), "done before, not repeated (force=true repeats)"
    if outcome is None or this.cfg.force:
        with this.folder.locked():
            if outcome is not None:
                this.folder.clear()
            outcome = this.folder.finished()  # by another process, meanwhile
            if outcome is None:
                outcome, note = guarded(this, execute), "done"
    assert outcome is not None
    present(outcome, this.folder, this.title, note)
    return float("nan") if (acc := outcome.metrics["ACC"]) is None else acc


def study(this: Plan) -> float:
    """A study's page in its folder, unless it is there already."""
    page = this.folder.path / "page.md"
    if this.folder.status().get("state") != "done" or this.cfg.force:
        with this.folder.locked():
            guarded(this, conduct)
    print(f"{page.read_text()}\nfiles: {page.parent}", flush=True)
    return float("nan")


def conduct(this: Plan) -> None:
    """Hand the study what it asks for: a seed, or a learner with its stream and schedule."""
    cfg = this.cfg
    machine = config.build(cfg.runtime, seed=cfg.seed)
    asked, given = config.parameters(cfg.study), {"seed": cfg.seed}
    if "learner" in asked:
        stream = make_stream(cfg, machine)
        given |= {"learner": make_method(cfg, machine, stream).learner, "stream": stream}
        given |= {"order": machine.order, "schedule": config.build(cfg.schedule)}
    (this.folder.path / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    page = config.build(cfg.study, **{k: v for k, v in given.items() if k in asked})
    page.write(this.folder.path)
    this.folder.mark("done")


def guarded(this: Plan, work: Callable[[Plan], RunRecord | None]) -> RunRecord | None:
    """`work`, with the folder's status telling how it went, whatever happens."""
    folder = this.folder
    folder.mark("running")
    try:
        return work(this)
    except (runtime.StopRun, KeyboardInterrupt):
        if folder.status()["state"] != "done":
            folder.mark("stopped")
            again = "continues" if folder.checkpoint.exists() else "starts over"
            print(f"stopped; the same command {again} ({folder.path})", file=sys.stderr)
        raise
    except BaseException as error:
        if folder.status()["state"] == "running":
            folder.mark("failed", traceback.format_exc())
        if config.explain(error) is None:
            print(f"{this.title} failed: {error!r} ({folder.path})", file=sys.stderr)
        raise


def execute(this: Plan) -> RunRecord:
    """Build everything, run what is left to run, leave the record."""
    from cl_bench.figures import draw
    from cl_bench.host import Host

    cfg, folder = this.cfg, this.folder
    (folder.path / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    machine = config.build(cfg.runtime, seed=cfg.seed)
    schedule, evaluation = config.build(cfg.schedule), config.build(cfg.evaluation)
    stream, backbone = make_stream(cfg, machine), make_backbone(cfg)
    refuse_leak(stream, backbone)
    with make_sink(this) as sink, runtime.Stop() as stop:
        sink.describe(stream.facts)
        method = make_method(cfg, machine, stream)
        progress = experiment.Progress.start(stream)
        known = {"data": str(stream.facts["sha256"]), "device": machine.device.type}
        known |= {"backbone": backbone["sha256"]} if backbone else {}
        often = cfg.log_every, cfg.save_every
        host = Host(folder, machine, method, progress, sink, stop, *often, known)
        with host.shown(sum(schedule.steps(task) for task in stream.tasks), this.title):
            order, probe = machine.order, cfg.get("probe") and config.build(cfg.probe)
            experiment.run(method, stream, order, schedule, evaluation, progress, host, probe)
        outcome = conclude(this, stream, machine, method, progress, backbone)
        figures = draw(progress.matrix, f"{this.title}, seed {cfg.seed}", folder.path)
        folder.finish(outcome)  # from here on the run is done, whatever becomes of its mirror
        sink.finish(outcome, figures)
    return outcome


def make_sink(this: Plan) -> Any:
    """Where rows are mirrored."""
    dataset, scenario, method = this.labels
    return config.build(
        this.cfg.tracking,
        config={**this.plain, "hash": this.hash},
        group="/".join([*this.labels, this.hash]),
        name=f"{method}-{dataset}-s{this.cfg.seed}",
        identity=f"{this.hash}-s{this.cfg.seed}",
        folder=this.folder.path,
        job_type=scenario if this.cfg.evaluation.split == "test" else "tune",
        tags=this.labels,
    )


def conclude(
    this: Plan,
    stream: Stream,
    machine: runtime.Runtime,
    method: Any,
    progress: experiment.Progress,
    backbone: dict[str, Any] | None,
) -> RunRecord:
    """What the run has proved."""
    return RunRecord(
        config=this.plain,
        hash=this.hash,
        seed=this.cfg.seed,
        stream={
            **stream.facts,
            "train_images": [len(task) for task in stream.tasks],
            "test_images": [len(test) for test in stream.tests],
        },
        accuracy=record.plain(progress.matrix.values.tolist()),
        initial=record.plain(progress.matrix.initial.tolist()),
        metrics=record.plain(progress.matrix.summary()),
        parameters=method.learner.flat.theta.numel(),
        state_bytes=checkpoint.nbytes(method),
        theta_sha256=record.sha256(method.weights()),
        measured={
            "train_seconds": progress.train_seconds,
            "eval_seconds": progress.eval_seconds,
            "peak_mib": machine.peak_mib(),
            **machine.facts(),
            **record.software(),
        },
        backbone=backbone,
        gradients_per_sample=method.learner.evaluated / sum(map(len, stream.tasks)),
        method=method.facts(),
        forgetting_of_task=record.plain(progress.matrix.forgetting_of_task.tolist()),
    )


def cli(work: Callable[[], object] = main) -> None:
    """`work`, with one line and exit code 2 for the user's mistakes."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach this function
    sys.argv[1:] = config.rearranged(sys.argv[1:])
    try:
        work()
    except runtime.StopRun as stop:
        signal.signal(stop.number, signal.SIG_DFL)
        os.kill(os.getpid(), stop.number)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        line = config.explain(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    cli()
