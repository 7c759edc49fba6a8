"""Make a run from Python, as `python -m cl_bench.run` makes it from a command line."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cl_bench.api.loading import Run, load
from cl_bench.base import files
from cl_bench.base.exceptions import StopRun, UserError
from cl_bench.base.warn import warn_user
from cl_bench.config import compose, errors
from cl_bench.config.arguments import checked_arguments
from cl_bench.config.folders import OPTIONS
from cl_bench.config.words import typed
from cl_bench.core import parallel
from cl_bench.engine import job


def run(*overrides: str, config_dir: str | os.PathLike[str] | None = None, **values: Any) -> Run:
    """Make a run unless it is finished, and return it.

        run = cl_bench.run("method=er", "dataset=pmnist5k", "optimizer.lr=0.1", seed=1)

    `overrides` are the words of the command line, and `values` are those whose key has no dot.
    `config_dir` is a folder of your own options, as the command's --config-dir; it is known to all
    later calls of this process. Folders and results are those of the command: a run that was
    stopped is continued, and a finished one is loaded, whichever of both made it.

    Warns where the finished run was made by other code than the present. An interrupt writes a
    checkpoint and raises KeyboardInterrupt. Raises UserError, with the line that the command
    prints, where a key, a value or the data is wrong.
    """
    if not isinstance(config_dir, str | os.PathLike | None):
        raise UserError(f"config_dir={config_dir!r}: must be the path of a folder")
    own = [] if config_dir is None else [f"{OPTIONS[0]}={files.absolute(config_dir)}"]
    words = [*own, *overrides, *(_word(key, value) for key, value in values.items())]
    with _refusals_in_a_line(words):
        if parallel.local_rank() is not None:
            raise UserError("torchrun: it starts python -m cl_bench.run, not cl_bench.run()")
        cfg = compose.composed_by_hydra(*checked_arguments(words), with_hydra=True)
        hydra = compose.take_hydra(cfg)
        if hydra.mode is not None and hydra.mode.name == "MULTIRUN":
            raise UserError("this experiment is a sweep: make it by python -m cl_bench.run -m")
        if cfg.get("study") is not None:
            raise UserError("study: a study is made by python -m cl_bench.run")
        plan = job.make_plan(cfg, hydra)
        record, note = job.find_or_make(plan)
    if note != job.DONE and record.code["sha256"] != plan.code.sha256:
        warn_user(f"{plan.folder.path}: {note}")
    return load(plan.folder.path)


def _word(key: str, value: Any) -> str:
    """`key=value` as it is typed. Raises UserError where a value of this type cannot be typed."""
    try:
        return f"{key}={typed(value.folder if isinstance(value, Run) else value)}"
    except TypeError:
        raise UserError(
            f"{key}={value!r}: has the type {type(value).__name__}; give a text, a number, True, "
            "False, None, a path, a run or a list of these"
        ) from None


@contextmanager
def _refusals_in_a_line(words: list[str]) -> Iterator[None]:
    """Raise UserError for an error of the user's, and KeyboardInterrupt where Ctrl-C stopped it."""
    try:
        yield
    except StopRun as stop:
        if stop.number != signal.SIGINT:  # the process is to end, as a command would
            signal.signal(stop.number, signal.SIG_DFL)
            os.kill(os.getpid(), stop.number)
        raise KeyboardInterrupt from None
    except Exception as error:
        line = errors.explain_command(error, words)
        if line is None:
            raise
        raise UserError(line) from None
