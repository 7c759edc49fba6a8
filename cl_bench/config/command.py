"""What all commands of this package share: one-line errors, exit codes, and signals."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from cl_bench.base.exceptions import StopRun, UserError
from cl_bench.base.signals import end_with_parent
from cl_bench.config import errors, folders
from cl_bench.config.arguments import checked_arguments

PARENT = "CL_BENCH_PARENT"  # environment: the process with which a worker or a run of it ends
# environment: CUDA_VISIBLE_DEVICES of the command, EVERY_GPU where that is not set
VISIBLE, EVERY_GPU = "CL_BENCH_VISIBLE_GPUS", "every"


def run_command(
    work: Callable[[], object], takes_overrides: bool = True, together: bool = False
) -> None:
    """Call `work` as the main function of a command; `together`: in several processes of torchrun.

    An error of the user's, the disk or the memory becomes one line on stderr and exit code 2;
    another error keeps its traceback. A signal that stopped a run ends the process by that signal.
    With `takes_overrides`, sys.argv is a command line of Hydra's, which is checked first. The
    option `--config-dir` is that of all commands (`config.folders`).
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # so that errors reach this function
    if os.environ.get(PARENT) == str(os.getppid()):
        end_with_parent(os.getppid())
    os.environ[PARENT] = str(os.getpid())
    os.environ[VISIBLE] = os.environ.get("CUDA_VISIBLE_DEVICES", EVERY_GPU)
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ and not together:
            raise UserError("torchrun: it starts python -m cl_bench.run, no other command")
        check = checked_arguments if takes_overrides else folders.take_options
        sys.argv[1:] = check(sys.argv[1:])
        work()
        sys.stdout.flush()
    except StopRun as stop:
        signal.signal(stop.number, signal.SIG_DFL)
        os.kill(os.getpid(), stop.number)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of this command's output has ended, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        _refuse(error)


def _refuse(error: Exception) -> NoReturn:
    """Print one line and exit with code 2; raise the error where it is one of the code."""
    line = errors.explain_command(error, sys.argv[1:])
    if line is None:
        raise error
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
