"""How every command of this package runs: one line and exit code 2 for the user's mistakes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from cl_bench.base.exceptions import StopRun
from cl_bench.base.signals import end_with_parent
from cl_bench.config import errors, hydra_errors
from cl_bench.config.arguments import checked_arguments

PARENT = "CL_BENCH_PARENT"  # the process that a sweep's workers, or a search's runs, end with


def run_command(work: Callable[[], object], takes_overrides: bool = True) -> None:
    """Call `work`; a refusal becomes one line on stderr and exit code 2, a signal ends the process.

    `takes_overrides`: sys.argv is a command line of Hydra's, which is checked first.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # so that errors reach this function
    if os.environ.get(PARENT) == str(os.getppid()):
        end_with_parent(os.getppid())
    os.environ[PARENT] = str(os.getpid())
    try:
        if takes_overrides:
            sys.argv[1:] = checked_arguments(sys.argv[1:])
        work()
        sys.stdout.flush()
    except StopRun as stop:
        signal.signal(stop.number, signal.SIG_DFL)
        os.kill(os.getpid(), stop.number)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # whoever reads this command's output has ended: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        _refuse(error)


def _refuse(error: Exception) -> NoReturn:
    """One line where the error is not one of the code; the error itself elsewhere."""
    line = hydra_errors.of_own_options(error, sys.argv[1:]) or errors.explain(error)
    if line is None:
        raise error
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
