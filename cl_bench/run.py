"""Makes one run, or shows a finished one.

    python -m cl_bench.run method=ewc dataset=pmnist5k seed=1

From Python this module is called as a function, which is `cl_bench.api.making.run` and returns a
`cl_bench.Run`; `python -m pydoc` with these names prints what they take and have.

    run = cl_bench.run("method=ewc", "dataset=pmnist5k", seed=1)
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from cl_bench.base.exceptions import StopRun
from cl_bench.base.signals import end_with_parent
from cl_bench.config import compose, errors, folders
from cl_bench.config.command import EVERY_GPU, PARENT, VISIBLE, run_command
from cl_bench.config.nodes import CONF
from cl_bench.engine import sweep_failures
from cl_bench.results.sweeps import note_folder

if TYPE_CHECKING:
    from cl_bench.api import Run


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float:
    """Make one run, or show a finished one; returns ACC, the objective of a sweep.

    A job of a sweep returns NaN after an error, so that the other jobs are run.
    """
    sweeping, plan = HydraConfig.get().mode is RunMode.MULTIRUN, None
    worker = sweeping and follow_sweep()
    show_gpus()
    try:
        folders.register()  # once more for a worker process of a sweep
        # imported here, so that a config that cannot be composed is refused without PyTorch
        from cl_bench.engine import job

        plan = job.make_plan(cfg, HydraConfig.get())
        freeze_imports()
        if sweeping:
            note_folder(Path(HydraConfig.get().runtime.output_dir), plan.folder.path)
        return job.run(plan) if cfg.get("study") is None else job.run_study(plan)
    except StopRun as stop:
        if worker:
            os._exit(128 + stop.number)
        raise
    except Exception as error:
        line = errors.explain(error)
        if line is not None:
            print(f"error: {line}", file=sys.stderr)
        release_frames(error)
        if sweeping:
            sweep_failures.write_note(errors.describe(error), plan and plan.folder.path)
            return float("nan")
        if line is None:
            raise
        sys.exit(2)


def follow_sweep() -> bool:
    """Tie a worker process of Joblib to its sweep, and return True; False in another process."""
    parent = int(os.environ.get(PARENT, os.getpid()))
    launcher = HydraConfig.get().launcher._target_
    if parent == os.getpid() or not launcher.endswith(".JoblibLauncher"):
        return False
    end_with_parent(parent)
    return True


def show_gpus() -> None:
    """Let a job of hydra/launcher=slurm_local see the GPUs of its sweep's command.

    Submitit hides them from its local processes. Where gpus_per_node is given, a job sees the first
    ones, as many as it says. Of those it sees, it takes one (`core.devices`).
    """
    launcher, visible = HydraConfig.get().launcher, os.environ.get(VISIBLE)
    if not launcher._target_.endswith("submitit_launcher.LocalLauncher") or visible is None:
        return
    number = launcher.get("gpus_per_node")
    if visible != EVERY_GPU:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible.split(",")[:number])
    elif number is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)


def freeze_imports() -> None:
    """Let the collector of garbage leave out, from now on, what is there before the first job.

    That is modules above all. A job begins with a collection, which would take 0.1 s for them.
    """
    if not gc.get_freeze_count():
        gc.freeze()


def release_frames(error: BaseException) -> None:
    """Free the memory of a failed run: the error, which a sweep keeps, refers to its variables."""
    for link in errors.exception_chain(error):
        traceback.clear_frames(link.__traceback__)


def cli() -> None:
    """The command line of a run, or of a sweep of runs."""
    run_command(_with_all_folders, together=True)


def _with_all_folders() -> None:
    folders.register()
    text = compose.shown(sys.argv[1:])
    if text is None:
        main()
    else:
        sys.stdout.write(text)


class _Callable(ModuleType):
    """This module, which is also the function `cl_bench.run` (`api.making.run`)."""

    def __call__(self, *overrides: str, **settings: Any) -> Run:
        from cl_bench.api.making import run

        return run(*overrides, **settings)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    cli()
