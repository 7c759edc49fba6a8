"""Explains an error in one line where the user, the disk or the memory is its cause."""

from __future__ import annotations

import argparse
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cl_bench.base import files
from cl_bench.base.escape import visible
from cl_bench.base.exceptions import StopRun, UserError, one_line
from cl_bench.config import folders, hydra_errors

LIBRARIES = {sysconfig.get_path(name) for name in ("stdlib", "platlib", "purelib")}
NO_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory")


def explain(error: BaseException) -> str | None:
    """One line for an error that the user, the disk or the memory caused; None for another one."""
    line = _line(error)
    return None if line is None else visible(line)


def describe(error: BaseException) -> str:
    """One line for any error: `explain`'s, else `ValueError: no such column (mydata.py, line 9)`.

    The place is the innermost one in code of the user's or of this package. Of an error that Hydra
    raised because of another one, the other one is described.
    """
    line = explain(error)
    if line is not None:
        return line
    while error.__cause__ and hydra_errors.module_that_raised(error).startswith("hydra."):
        error = error.__cause__
    message = "" if not str(error) else f": {one_line(error, 400)}"
    return visible(f"{type(error).__name__}{message}{_place(error)}")


def _place(error: BaseException) -> str:
    """` (mydata.py, line 9)` for the innermost line outside of Python and installed libraries."""
    if isinstance(error, SyntaxError):
        return ""  # its message has the place
    own = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package == "cl_bench":
            own = f" ({'/'.join(file.parts[-3:])}, line {number})"
        elif not any(file.is_relative_to(p) for p in LIBRARIES) and "<frozen" not in str(file):
            own = f" ({file.name}, line {number})"
    return own


def explain_command(error: BaseException, words: Sequence[str]) -> str | None:
    """`explain`, where `words` of a command line may have set Hydra's own keys, or output_dir."""
    line = hydra_errors.explain_hydra_keys(error, words)
    return line or _explain_output_dir(error, words) or explain(error)


def _explain_output_dir(error: BaseException, words: Sequence[str]) -> str | None:
    """A line for an output_dir in which Hydra cannot make the folder of a sweep."""
    typed = [word for word in words if word.startswith("output_dir=")]
    if not typed or not isinstance(error, OSError) or not isinstance(error.filename, str):
        return None
    file, folder = Path(error.filename), files.absolute(typed[-1].partition("=")[2].strip("'\""))
    of_sweep = file == folder or folder / ".sweeps" in (file, *file.parents)
    missing = file in folder.parents and not file.exists()  # the first folder that was to be made
    if not of_sweep and not missing:
        return None
    return visible(f"{typed[-1]}: {error.filename} cannot be written ({error.strerror})")


def _line(error: BaseException) -> str | None:
    chain = list(exception_chain(error))
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
    for explain_one in (
        hydra_errors.explain_key,
        hydra_errors.explain_composition,
        _explain_resources,
    ):
        for link in chain:
            if not _is_wrapper(link) and (line := explain_one(link)) is not None:
                return line
    return None


def _is_wrapper(error: BaseException) -> bool:
    """Whether Hydra raised this error because of another one, which says more."""
    return type(error).__name__ == "InstantiationException" and error.__cause__ is not None


def _explain_resources(error: BaseException) -> str | None:
    """A line for a full disk, a folder that cannot be written, or too little memory."""
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
    """An argument parser that prints a refusal in one line, without its usage.

    Its help has the option of all commands, which is read before (`folders.take_options`).
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_argument(
            *folders.OPTIONS,
            metavar="FOLDER",
            help=f"a folder of your own options; {folders.VARIABLE} names several at once",
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; --help lists the options\n")


def exception_chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, its cause, the cause of that and so on; each once, as a chain may be a loop."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def is_storage(error: BaseException) -> bool:
    """Whether a file or a folder could not be written or read."""
    return any(isinstance(link, OSError) and link.filename for link in exception_chain(error))


def stop_request(error: BaseException) -> BaseException | None:
    """The StopRun or KeyboardInterrupt in the chain of an error; None where there is none.

    A library may have raised an error of its own in answer to it.
    """
    links = exception_chain(error)
    return next((e for e in links if isinstance(e, StopRun | KeyboardInterrupt)), None)
