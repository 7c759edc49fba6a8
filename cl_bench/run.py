"""python -m cl_bench.run method=ewc dataset=pmnist: one run, from its config to its record."""

from __future__ import annotations

import os
import sys
import traceback

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from cl_bench.base.exceptions import StopRun
from cl_bench.base.signals import end_with_parent
from cl_bench.config import errors
from cl_bench.config.command import PARENT, run_command
from cl_bench.config.nodes import CONF
from cl_bench.engine import sweep_failures


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float:
    """One run, or the report of one that is done; returns ACC, a sweep's objective."""
    sweeping, planned = HydraConfig.get().mode is RunMode.MULTIRUN, None
    worker = sweeping and follow_parent()
    try:
        from cl_bench.engine import job  # PyTorch is loaded once Hydra has composed the config

        planned = job.plan(cfg)
        return job.run(planned) if cfg.get("study") is None else job.study(planned)
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
    end_with_parent(parent)
    return True


def release(error: BaseException) -> None:
    """Let go of what a failed run holds: a sweep keeps its errors, and with them their frames."""
    for link in errors.exception_chain(error):
        traceback.clear_frames(link.__traceback__)


def cli() -> None:
    """The command line of a run, or of a sweep of runs."""
    run_command(main)


if __name__ == "__main__":
    cli()
