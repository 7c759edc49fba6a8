"""An error in one line, where the user, the disk or the machine is at fault."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NoReturn

from cl_bench.base.escape import visible
from cl_bench.base.exceptions import StopRun, UserError, one_line
from cl_bench.config import hydra_errors

NO_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory")


def explain(error: BaseException) -> str | None:
    """One line for what is no error of the code; None for what is."""
    line = _line(error)
    return None if line is None else visible(line)


def _line(error: BaseException) -> str | None:
    chain = list(exception_chain(error))
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
    for explanation in (hydra_errors.explain_key, hydra_errors.explain_composition, _of_machine):
        for link in chain:
            if not _wraps(link) and (line := explanation(link)) is not None:
                return line
    return None


def _wraps(error: BaseException) -> bool:
    """Whether an error of Hydra's stands for another one, which is explained instead."""
    return type(error).__name__ == "InstantiationException" and error.__cause__ is not None


def _of_machine(error: BaseException) -> str | None:
    """A line for a full disk, a folder that cannot be written, too little memory."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if not isinstance(error, MemoryError | RuntimeError):
        return None
    message = one_line(error, 2000)
    if isinstance(error, MemoryError) or any(words in message for words in NO_MEMORY):
        return (
            f"out of memory ({message[:160]}); use a smaller model, schedule.batch_size or "
            "evaluation.batch_size, or fewer jobs at once"
        )
    return None


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusals are one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; --help lists the options\n")


def exception_chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what caused it, what caused that; each once, as a chain may lead back."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def is_storage(error: BaseException) -> bool:
    """Whether a file or a folder could not be written or read."""
    return any(isinstance(link, OSError) and link.filename for link in exception_chain(error))


def stop_of(error: BaseException) -> BaseException | None:
    """The request to stop behind an error, also where a library made another error of it."""
    links = exception_chain(error)
    return next((e for e in links if isinstance(e, StopRun | KeyboardInterrupt)), None)
